"""Every example of where labels come from in docs/data.md, on a small archive that it fits."""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "client/data/labels"))

from archives import (
    LIMITS,
    box_outline,
    bright_boxes,
    item,
    join,
    write_object,
    write_phantom,
    write_picture,
    write_radiograph,
    write_structure_set,
)

from medfed.client.data.archive.scan import scan_folder
from medfed.client.data.dicom.volume import read_series
from medfed.client.data.labels.file_patterns import _FIELDS
from medfed.client.data.labels.grid import read_grid
from medfed.client.data.labels.joined import LabelJoin

_GUIDE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
_EXAMPLES = _GUIDE.split("## Where labels come from")[1].split("\n## ")[0]
_BLOCKS = re.findall(r"```toml\n(.*?)```", _EXAMPLES, re.DOTALL)


def example(words: str) -> dict[str, Any]:
    """The `[labels]` of the one example that holds `words`."""
    [text] = [text for text in _BLOCKS if words in text]
    section: dict[str, Any] = tomllib.loads(text)["labels"]
    return section


def only(found: LabelJoin) -> Any:
    assert found.problems == found.unmatched_rows == found.conflicts == ()
    [labels] = found.by_image.values()
    return labels


def test_every_example_is_tried_here() -> None:
    # Raise it with a test of the new example.
    assert len(_BLOCKS) == 8
    assert set(re.findall(r"`\{(\w+)\}`", _EXAMPLES)) == set(_FIELDS)


def test_table_with_a_column_a_class(tmp_path: Path) -> None:
    for number in range(3):
        write_radiograph(tmp_path / "archive", f"{number:05}")
    table = "id,nodule,effusion,set,医師\n0,1,0,train,田中\n1,0,-1,train,田中\n2,0,1,test,田中\n"
    (tmp_path / "findings.csv").write_bytes(table.encode("shift_jis"))
    found = join(tmp_path, example("findings.csv"))
    said = {(labels.classes, labels.split) for labels in found.by_image.values()}
    assert said == {(("nodule",), "train"), (("effusion",), "test")}
    assert len(found.left_out) == 1
    assert found.doubts == ()


def test_folder_that_holds_the_image(tmp_path: Path) -> None:
    write_picture(tmp_path / "archive" / "north" / "ill" / "1.png")
    assert only(join(tmp_path, example("[labels.folders]"))).classes == ("ill",)


def test_pictures_as_masks(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    write_picture(archive / "chest.png", np.zeros((6, 8), np.uint8))
    for number, name in enumerate(("chest_mask.png", "chest_mask_1.png")):
        values = np.zeros((6, 8), np.uint8)
        values[number, 2:4] = 255
        write_picture(archive / name, values)
    found = join(tmp_path, example("{stem}_mask"), structures=("lesion",))
    assert only(found).read_mask().sum() == 4


def test_volumes_as_masks(tmp_path: Path) -> None:
    write_phantom(tmp_path / "archive")
    [series] = scan_folder(tmp_path / "archive", LIMITS).series
    volume, _ = read_series(series, (1000.0, 2001.0), LIMITS)
    truth = (volume > 100).astype(np.uint8) + (volume > 200)
    (tmp_path / "outlines").mkdir()
    affine = read_grid(series, LIMITS).geometry().affine
    nib.save(nib.Nifti1Image(truth, affine), tmp_path / "outlines" / "P1.nii.gz")
    found = join(tmp_path, example(".nii.gz"), structures=("liver", "tumour"))
    np.testing.assert_array_equal(only(found).read_mask(), truth)


def test_outlines_as_masks(tmp_path: Path) -> None:
    write_phantom(tmp_path / "archive")
    closed = "CLOSED_PLANAR"
    first = [(closed, box_outline(2, 6, 3, 8, at)) for at in (1, 2, 3)]
    second = [(closed, box_outline(8, 10, 10, 14, at)) for at in (3, 4)]
    third = [(closed, box_outline(0, 11, 0, 15, 0))]
    write_structure_set(
        tmp_path / "archive" / "rt.dcm", {"first": first, "second": second, "third": third}
    )
    found = join(tmp_path, example("rtstruct"), structures=("liver", "tumour"))
    [key] = found.by_image
    planes = [found.by_image[key[0], at].read_mask for at in range(5)]
    read = np.stack([reader() for reader in planes if reader is not None])
    np.testing.assert_array_equal(read, bright_boxes())


def test_reports_as_files_and_in_a_table(tmp_path: Path) -> None:
    write_radiograph(tmp_path / "archive", "P3", AccessionNumber="A7")
    [series] = scan_folder(tmp_path / "archive", LIMITS).series
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / f"{series.study}.txt").write_text("Clear lungs.")
    assert only(join(tmp_path, example('folder = "texts"'))).report == "Clear lungs."
    (tmp_path / "reports.csv").write_text("number;findings;impression\nA7;Clear.;Well.\n")
    assert only(join(tmp_path, example("reports.csv"))).report == "Clear.\n\nWell."


def test_structured_reports(tmp_path: Path) -> None:
    write_radiograph(tmp_path / "archive", "P3")
    [series] = scan_folder(tmp_path / "archive", LIMITS).series
    concept = [item(CodeValue="1", CodingSchemeDesignator="T", CodeMeaning="Finding")]
    write_object(
        tmp_path / "archive" / "sr.dcm", "1.2.840.10008.5.1.4.1.1.88.11", "SR",
        SOPInstanceUID="1.2.55", StudyInstanceUID=series.study, PatientID="P3",
        ContentSequence=[
            item(ValueType="TEXT", ConceptNameCodeSequence=concept, TextValue="Clear lungs.")
        ],
    )  # fmt: skip
    found = join(tmp_path, example("structured_reports"))
    assert only(found).report == "Finding: Clear lungs."


@pytest.mark.parametrize("key", ["file", "patient", "study", "series", "image", "accession"])
def test_every_key_of_the_guide_finds_its_image(tmp_path: Path, key: str) -> None:
    assert f"`{key}`" in _EXAMPLES
    write_radiograph(tmp_path / "archive", "P3", AccessionNumber="A7")
    [series] = scan_folder(tmp_path / "archive", LIMITS).series
    uid = series.study.removesuffix(".1")
    cells = {"file": "P3-1", "patient": "P3", "study": series.study, "accession": "A7",
             "series": f"{uid}.2", "image": f"{uid}.3"}  # fmt: skip
    (tmp_path / "t.csv").write_text(f"k,label\n{cells[key]},ill\n")
    table = {"file": "t.csv", "key": key, "key_column": "k", "label_column": "label"}
    assert only(join(tmp_path, {"tables": [table]})).classes == ("ill",)
