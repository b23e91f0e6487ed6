import sys
from pathlib import Path

import pytest

from medfed.common.errors import DataError, UnreadableImageError
from medfed.simulations.datasets.chexpert import CLASSES, Uncertain, load_chexpert

sys.path.insert(0, str(Path(__file__).parent))

from layouts_core import write_picture
from layouts_other import write_csv
from layouts_radiology import CHEXPERT_HEADER, chexpert_line, write_chexpert

ROW = "train/patient00001/study2/view1_frontal.jpg"


def _write(folder: Path, **observations: str) -> Path:
    named = {name.replace("_", " "): value for name, value in observations.items()}
    write_csv(folder / "train.csv", CHEXPERT_HEADER, [chexpert_line(ROW, named)])
    write_picture(folder / ROW, 1)
    return folder


def test_chexpert_reads_paths_columns_and_sides(tmp_path: Path) -> None:
    write_chexpert(tmp_path)
    dataset = load_chexpert(tmp_path)
    assert [r.split for r in dataset.records] == ["train"] * 3 + ["test"] * 3
    first = dataset.records[0]
    assert first.record_id == "train/patient00001/study1/view1_frontal.jpg"
    assert first.patient_id == "patient00001"
    assert first.labels == ("No Finding",)
    assert first.columns == {
        "sex": "Female",
        "age": "68",
        "view": "Frontal",
        "projection": "AP",
        "study": "study1",
    }
    assert first.source == f"train.csv line 2 ({first.record_id})"


def test_chexpert_strips_the_prefix_whatever_the_folder_is_called(tmp_path: Path) -> None:
    """Rows say CheXpert-v1.0-small/ or CheXpert-v1.0/; the folder has any name."""
    write_chexpert(tmp_path)
    renamed = (tmp_path / "CheXpert-v1.0-small").rename(tmp_path / "chexpert")
    small = load_chexpert(renamed)
    assert small.records[1].read_image().shape == (20, 24)
    for table in ("train.csv", "valid.csv"):
        text = (renamed / table).read_text()
        (renamed / table).write_text(text.replace("CheXpert-v1.0-small/", "CheXpert-v1.0/"))
    full = load_chexpert(renamed)
    assert [r.record_id for r in full.records] == [r.record_id for r in small.records]


@pytest.mark.parametrize(
    ("uncertain", "labels"),
    [("zeros", [("Edema",)]), ("ones", [("Edema", "Fracture")]), ("leave_out", [])],
)
def test_chexpert_reads_uncertain_observations_by_policy(
    tmp_path: Path,
    uncertain: Uncertain,
    labels: list[tuple[str, ...]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    _write(tmp_path, Edema="1.0", Fracture="-1.0", Pneumonia="0.0")
    dataset = load_chexpert(tmp_path, uncertain)
    assert [r.labels for r in dataset.records] == labels
    assert ("1 image(s) with an uncertain" in caplog.text) == (uncertain == "leave_out")
    assert len({load_chexpert(tmp_path, how).digest for how in ("zeros", "ones")}) == 2


def test_chexpert_takes_labels_in_published_order_and_integers(tmp_path: Path) -> None:
    _write(tmp_path, **{name.replace(" ", "_"): "1" for name in reversed(CLASSES)})
    (record,) = load_chexpert(tmp_path).records
    assert record.labels == CLASSES
    assert record.split is None


@pytest.mark.parametrize("value", ["2.0", "yes", "nan"])
def test_chexpert_refuses_other_values(tmp_path: Path, value: str) -> None:
    _write(tmp_path, Edema=value)
    with pytest.raises(DataError, match=rf"train\.csv line 2, column Edema: .*'{value}'"):
        load_chexpert(tmp_path)


@pytest.mark.parametrize(
    "path", ["patient00001/study1/a.jpg", "train/../patient00001/study1/a.jpg", "train/x/study1/a"]
)
def test_chexpert_refuses_paths_of_another_form(tmp_path: Path, path: str) -> None:
    write_csv(tmp_path / "train.csv", CHEXPERT_HEADER, [chexpert_line(path, {})])
    with pytest.raises(DataError, match="line 2, column Path"):
        load_chexpert(tmp_path)


def test_chexpert_refuses_an_image_twice_under_two_prefixes(tmp_path: Path) -> None:
    line = chexpert_line(ROW, {})
    other = line.replace("v1.0-small", "v1.0")
    write_csv(tmp_path / "train.csv", CHEXPERT_HEADER, [line, other])
    with pytest.raises(DataError, match=r"line 3, column Path: .* line 2"):
        load_chexpert(tmp_path)


def test_chexpert_surfaces_missing_images(tmp_path: Path) -> None:
    (_write(tmp_path) / ROW).unlink()
    (record,) = load_chexpert(tmp_path).records
    with pytest.raises(UnreadableImageError, match=f"Expected {ROW}"):
        record.read_image()


def test_chexpert_refuses_another_policy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="zeros, ones or leave_out, got 'ignore'"):
        load_chexpert(tmp_path, "ignore")  # type: ignore[arg-type]
