"""`medfed explain` as a user runs it: every task, the files it leaves, and its errors."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

REPORT = {"type": "report", "report": {"max_words": 8, "findings": {"effusion": ["effusion"]}}}
MASKS = {"type": "segmentation", "classes": ["lung", "heart"]}


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "Mustermann_Erika.png"
    Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"task": {"classes": ["a", "b"]}}, {"image", "class-1", "class-2"}),
        ({"task": MASKS, "model": {"name": "unet"}}, {"image", "contour", "uncertainty"}),
        ({"task": REPORT, "model": {"name": "report_lstm"}}, {"image", "word-01"}),
    ],
)
def test_explain_writes_one_page_that_opens_offline(
    medfed: Callable[..., Any],
    make_run: Callable[..., Path],
    scan: Path,
    sections: dict[str, Any],
    expected: set[str],
) -> None:
    run = make_run(data={"image_size": 32}, **sections)
    done = medfed("explain", run, "--image", scan)
    assert "explanation/explanation.html" in done.stdout
    folder = Path("explanation")
    pictures = {path.stem for path in folder.glob("*.png")}
    assert expected <= pictures
    page = (folder / "explanation.html").read_text()
    assert page.count("data:image/png;base64,") == len(pictures)
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    for words in ("not for diagnosis", "What the pictures show", "What they do not show"):
        assert words in page
    facts = json.loads((folder / "explanation.json").read_text())
    assert facts["task"] == sections["task"].get("type", "classification")
    # The file's name may be the patient's.
    assert "Mustermann" not in page + json.dumps(facts)


def test_explain_gives_the_same_bytes_again(
    medfed: Callable[..., Any], make_run: Callable[..., Path], scan: Path
) -> None:
    run = make_run(task={"classes": ["a", "b"]}, data={"image_size": 32})
    for name in ("first", "second"):
        medfed("explain", run, "--image", scan, "--out", name)
    first, second = (
        {p.name: p.read_bytes() for p in Path(n).iterdir()} for n in ("first", "second")
    )
    assert first == second


def test_explain_escapes_what_a_study_is_called(
    medfed: Callable[..., Any], make_run: Callable[..., Path], scan: Path
) -> None:
    run = make_run(task={"classes": ["<script>x</script>", "b"]}, data={"image_size": 32})
    medfed("explain", run, "--image", scan)
    assert "<script>" not in Path("explanation/explanation.html").read_text()


def test_explain_shows_every_view_and_names_what_is_missing(
    medfed: Callable[..., Any], make_run: Callable[..., Path], scan: Path
) -> None:
    run = make_run(
        task={"classes": ["a", "b"]},
        model={"fusion": "late"},
        data={
            "image_size": 32,
            "views": ["frontal", "lateral"],
            "tabular": {"age": {"mean": 50, "std": 20}},
        },
    )
    medfed("explain", run, "--image", f"lateral={scan}", "--column", "age=40")
    names = {path.stem for path in Path("explanation").glob("*.png")}
    assert any(name.endswith("-lateral") for name in names)
    assert not any(name.endswith("-frontal") for name in names)
    assert "Missing: frontal" in Path("explanation/explanation.html").read_text()


def test_explain_shows_three_slices_of_a_volume(
    medfed: Callable[..., Any], make_run: Callable[..., Path], tmp_path: Path
) -> None:
    import nibabel as nib

    values = np.random.default_rng(0).normal(size=(20, 24, 18)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "scan.nii.gz")
    run = make_run(
        task=MASKS,
        model={"name": "unet", "widths": [4, 8]},
        data={"image_size": 16, "dimensions": 3, "fit": "patch"},
    )
    medfed("explain", run, "--image", tmp_path / "scan.nii.gz")
    with Image.open("explanation/contour.png") as picture:
        # Axial 20, coronal 20 and sagittal 24 voxels wide, enlarged to 300 / 24, with two gaps.
        assert picture.width == 2 * 250 + 300 + 2 * 12
    assert "sagittal" in Path("explanation/explanation.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "--image FILE"),
        (["--image", "gone.png"], 3, "found none"),
        (["--image", "scan.png", "--column", "age=3"], 2, "--column NAME=VALUE"),
    ],
)
def test_explain_says_what_is_wrong(
    medfed: Callable[..., Any],
    make_run: Callable[..., Path],
    scan: Path,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    scan.rename(scan.parent / "scan.png")
    run = make_run(task={"classes": ["a", "b"]}, data={"image_size": 32})
    done = medfed("explain", run, *arguments, code=code)
    assert message in done.stderr
    assert not Path("explanation").exists()


def test_explain_refuses_a_folder_that_is_no_run(
    medfed: Callable[..., Any], tmp_path: Path, scan: Path
) -> None:
    done = medfed("explain", tmp_path, "--image", scan, code=6)
    assert "run folder" in done.stderr
