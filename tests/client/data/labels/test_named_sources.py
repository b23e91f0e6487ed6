"""Folders, masks and reports found by file names, DICOM reports, and what contradicts what."""

import pickle
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from archives import (
    LIMITS,
    REAL_DATA,
    bright_boxes,
    item,
    join,
    write_object,
    write_phantom,
    write_picture,
    write_radiograph,
)

from medfed.client.data.archive.scan import scan_folder
from medfed.client.data.dicom.volume import read_series
from medfed.client.data.labels.grid import read_grid
from medfed.client.data.labels.section import LabelSection
from medfed.client.data.nifti import read_geometry
from medfed.common.errors import DataError, UnreadableImageError

BLANK = np.zeros((6, 8), np.uint8)


def spot(*places: tuple[int, int], value: int = 255) -> npt.NDArray[np.uint8]:
    mask = BLANK.copy()
    for place in places:
        mask[place] = value
    return mask


def read_mask(found: Any, key: tuple[str, int]) -> npt.NDArray[np.uint8]:
    reader = found.by_image[key].read_mask
    assert reader is not None
    mask: npt.NDArray[np.uint8] = pickle.loads(pickle.dumps(reader))()
    return mask


@pytest.mark.parametrize(
    ("level", "expected"), [(-1, "ill"), (-2, "site"), (1, "site"), (2, "ill")]
)
def test_folder_names_are_classes(tmp_path: Path, level: int, expected: str) -> None:
    write_picture(tmp_path / "archive" / "site" / "ill" / "1.png")
    write_picture(tmp_path / "archive" / "loose.png")
    found = join(tmp_path, {"folders": {"level": level}})
    assert found.counts()["classes"] == {expected: {"images": 1, "patients": 1}}
    assert found.unlabelled == (("loose.png", 0),)
    assert "loose.png lies in no folder" in found.unmatched_rows[0].reason


@pytest.mark.parametrize(("policy", "left"), [("refuse", 0), ("leave_out", 0), ("any", 1)])
def test_folder_and_table_that_contradict_are_listed(
    tmp_path: Path, policy: str, left: int
) -> None:
    write_picture(tmp_path / "archive" / "ill" / "1.png")
    (tmp_path / "t.csv").write_text("f,label\n1,well\n")
    table = {"file": "t.csv", "key": "file", "key_column": "f", "label_column": "label"}
    found = join(tmp_path, {"folders": {}, "tables": [table], "conflicts": policy})
    (conflict,) = found.conflicts
    assert conflict.said == (("t.csv, line 2", "well"), ("folder ill", "ill"))
    assert len(found.by_image) == left
    assert len(found.left_out) == 1 - left
    assert found.unlabelled == ()


def test_masks_of_one_picture_are_united_and_are_no_images(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    for side in ("ill", "well"):
        write_picture(archive / side / "a (1).png", BLANK)
    write_picture(archive / "ill" / "a (1)_mask.png", spot((1, 2)))
    write_picture(archive / "ill" / "a (1)_mask_1.png", spot((3, 4)))
    Image.fromarray(BLANK).convert("RGBA").save(archive / "well" / "a (1)_mask.png")
    write_picture(archive / "well" / "b_mask.png", BLANK)
    section = {"masks": [{"pattern": "{stem}_mask*.png"}], "folders": {}}
    found = join(tmp_path, section, structures=("lesion",))
    np.testing.assert_array_equal(
        read_mask(found, ("ill/a (1).png", 0)), spot((1, 2), (3, 4), value=1)
    )
    assert not read_mask(found, ("well/a (1).png", -1)).any()
    assert found.counts()["images"] == 2
    assert len(found.not_images) == 4
    assert "b_mask.png: no image of this name" in found.unmatched_rows[0].reason


def test_values_of_a_mask_are_the_structures_that_are_named(tmp_path: Path) -> None:
    write_picture(tmp_path / "archive" / "a.png", BLANK)
    mask = spot((1, 1), value=7) + spot((2, 2), value=9) + spot((3, 3), value=200)
    write_picture(tmp_path / "masks" / "a.png", mask)

    def read(**section: Any) -> npt.NDArray[np.uint8]:
        masks = [{"folder": "masks", "pattern": "{stem}.png"} | section]
        return read_mask(join(tmp_path, {"masks": masks}), ("a.png", 0))

    values = read(structures={"vessel": 9, "lesion": 7})
    assert [int(values[at]) for at in ((1, 1), (2, 2), (3, 3))] == [2, 1, 0]
    assert read(structures={"lesion": ">127"}).sum() == 1
    with pytest.raises(UnreadableImageError, match=r"two values, got 0, 7, 9, 200"):
        read()
    write_picture(tmp_path / "masks" / "a.png", spot((1, 1)))
    with pytest.raises(UnreadableImageError, match="Expected the value 1 in this mask, got 255"):
        read(structures={"lesion": 1})


def test_pictures_that_are_no_masks_of_their_images_are_listed(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        write_picture(tmp_path / "archive" / f"{name}.png", BLANK)
    write_picture(tmp_path / "masks" / "a.png", np.zeros((8, 6), np.uint8))
    (tmp_path / "masks" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"damage")
    (tmp_path / "masks" / "c.png").symlink_to(tmp_path / "archive" / "c.png")
    write_picture(tmp_path / "masks" / "d.png", np.zeros((12, 16), np.uint8))
    found = join(tmp_path, {"masks": [{"folder": "masks", "pattern": "{stem}.png"}]})
    whats = {Path(one.path).name: one.what for one in found.problems}
    assert whats == {
        "a.png": "mask of another size",
        "b.png": "damaged",
        "c.png": "link out of the folder",
    }
    assert found.counts()["with_mask"] == 1


def test_two_observers_are_a_conflict(tmp_path: Path) -> None:
    write_picture(tmp_path / "archive" / "a.png", BLANK)
    for folder in ("first", "second"):
        write_picture(tmp_path / folder / "a.png", spot((1, 1)))
    masks = [{"folder": folder, "pattern": "{stem}.png"} for folder in ("first", "second")]
    found = join(tmp_path, {"masks": masks})
    assert found.conflicts[0].said == (("first/a.png", "a mask"), ("second/a.png", "a mask"))


def test_picture_mask_of_a_radiograph_and_its_study_report(tmp_path: Path) -> None:
    path = write_radiograph(tmp_path / "archive", "P3")
    (tmp_path / "texts").mkdir()
    uid = scan_folder(tmp_path / "archive", LIMITS).series[0].study
    (tmp_path / "texts" / f"{uid}.txt").write_bytes(
        "Größe: normal.\r\nNo change.\n".encode("cp1252")
    )
    (tmp_path / "texts" / "1.2.99.txt").write_text("of nobody")
    write_picture(tmp_path / "masks" / f"{path.stem}.png", np.eye(4, 6, dtype=np.uint8))
    found = join(tmp_path, {
        "masks": [{"folder": "masks", "pattern": "{stem}.png"}],
        "reports": [{"folder": "texts", "pattern": "{study}.txt"}],
    })  # fmt: skip
    (key,) = found.by_image
    assert found.by_image[key].report == "Größe: normal.\nNo change."
    assert read_mask(found, key).sum() == 4
    assert read_mask(found, (key[0], -1)).shape == (1, 4, 6)
    assert found.unmatched_rows[0].reason.startswith("1.2.99.txt: no study")


def test_names_that_lead_out_of_the_folder_find_nothing(tmp_path: Path) -> None:
    write_radiograph(tmp_path / "archive", "../secret")
    (tmp_path / "texts").mkdir()
    (tmp_path / "secret.txt").write_text("not of this archive")
    found = join(tmp_path, {"reports": [{"folder": "texts", "pattern": "{patient}.txt"}]})
    assert found.counts()["with_report"] == 0


def test_nifti_mask_of_a_dicom_series_lies_on_it(tmp_path: Path) -> None:
    write_phantom(tmp_path / "archive")
    (series,) = scan_folder(tmp_path / "archive", LIMITS).series
    volume, _ = read_series(series, (1000.0, 2001.0), LIMITS)
    truth = (volume > 100).astype(np.uint8) + (volume > 200)
    affine = read_grid(series, LIMITS).geometry().affine
    (tmp_path / "masks").mkdir()
    # As other software may write it: axes turned and flipped.
    turned = np.transpose(truth, (2, 0, 1))[:, ::-1]
    shuffle = np.zeros((4, 4))
    shuffle[2, 0], shuffle[0, 1], shuffle[1, 2], shuffle[3, 3] = 1, -1, 1, 1
    shuffle[0, 3] = truth.shape[0] - 1
    path = tmp_path / "masks" / "P1.nii.gz"
    nib.save(nib.Nifti1Image(turned, affine @ shuffle), path)
    section = {"masks": [{"folder": "masks", "pattern": "{patient}.nii.gz",
                          "structures": {"a": 1, "b": 2}}]}  # fmt: skip
    found = join(tmp_path, section)
    assert found.problems == ()
    np.testing.assert_array_equal(read_mask(found, (series.key, -1)), truth)
    planes = [read_mask(found, (series.key, at)) for at in range(5)]
    np.testing.assert_array_equal(np.stack(planes), bright_boxes())
    moved = affine.copy()
    moved[0, 3] += 1
    nib.save(nib.Nifti1Image(truth, moved), path)
    beside = join(tmp_path, section)
    assert "1 mm beside the image" in beside.problems[0].reason
    assert read_geometry(path).shape == truth.shape


def test_structured_report_is_text_of_its_images_without_persons(tmp_path: Path) -> None:
    write_radiograph(tmp_path / "archive", "P3")
    study = scan_folder(tmp_path / "archive", LIMITS).series[0].study

    def said(kind: str, name: str, **value: Any) -> Any:
        concept = [item(CodeValue="1", CodingSchemeDesignator="T", CodeMeaning=name)]
        return item(ValueType=kind, ConceptNameCodeSequence=concept, **value)

    size = item(NumericValue="14.5", MeasurementUnitsCodeSequence=[item(CodeMeaning="cm")])
    write_object(
        tmp_path / "archive" / "sr.dcm", "1.2.840.10008.5.1.4.1.1.88.11", "SR",
        SOPInstanceUID="1.2.55", StudyInstanceUID=study, PatientID="P3",
        ContentSequence=[
            said("PNAME", "Observer", PersonName="Secret^Reader"),
            said("CONTAINER", "Findings", ContentSequence=[
                said("TEXT", "Finding", TextValue="Clear lungs."),
                said("NUM", "Heart", MeasuredValueSequence=[size]),
                said("CODE", "Side", ConceptCodeSequence=[item(CodeMeaning="Left")]),
            ]),
        ],
    )  # fmt: skip
    found = join(tmp_path, {"reports": [{"structured_reports": True}]})
    (labels,) = found.by_image.values()
    assert labels.report == "Findings\nFinding: Clear lungs.\nHeart: 14.5 cm\nSide: Left"


def test_reports_of_a_table_are_joined_and_two_of_one_image_conflict(tmp_path: Path) -> None:
    write_radiograph(tmp_path / "archive", "P3")
    (tmp_path / "r.csv").write_text('id,findings,impression\nP3,"Clear.\nWell.",None.\n')
    table = {"file": "r.csv", "key": "patient", "key_column": "id",
             "text_columns": ["findings", "impression"]}  # fmt: skip
    found = join(tmp_path, {"reports": [{"table": table}]})
    assert [one.report for one in found.by_image.values()] == ["Clear.\nWell.\n\nNone."]
    (tmp_path / "r.csv").write_text("id,findings,impression\nP3,Clear.,\nP3,Other.,\n")
    torn = join(tmp_path, {"reports": [{"table": table}]})
    assert torn.conflicts[0].said[1] == ("r.csv, line 3", "6 characters")


def test_classes_written_in_two_ways_are_pointed_out(tmp_path: Path) -> None:
    for name in ("Pneumonia", "pneumonia ", "grade 1", "grade 2"):
        write_picture(tmp_path / "archive" / name / f"{name[0]}{name[-1]}.png")
    found = join(tmp_path, {"folders": {}})
    assert len([text for text in found.suggestions if "may be one" in text]) == 1


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"tables": [{"file": "a", "key": "patient", "key_column": "id"}]}, "a key alone"),
        ({"masks": [{"kind": "png", "pattern": "x.png"}]}, "expected one with {stem}"),
        ({"masks": [{"kind": "seg", "pattern": "{stem}"}]}, "name their images themselves"),
        ({"reports": [{}]}, "expected one of pattern, table"),
        ({"folders": {"level": 0}}, "from the archive"),
    ],
)
def test_section_that_says_nothing_or_too_much_is_refused(
    section: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LabelSection.model_validate(section)


def test_unknown_structures_fields_and_values_are_refused(tmp_path: Path) -> None:
    write_picture(tmp_path / "archive" / "a.png", BLANK)
    for mask, message in (
        ({"pattern": "{stem}.png", "structures": {"lesoin": 1}}, "Did you mean lesion"),
        ({"pattern": "{name}.png"}, "got {name}"),
        ({"pattern": "{stem}.png", "structures": {"lesion": "red"}}, "got 'red'"),
        ({"pattern": "{stem}.png", "folder": "nowhere"}, "nowhere"),
    ):
        with pytest.raises(DataError, match=message):
            join(tmp_path, {"masks": [mask]}, structures=("lesion",))


@pytest.fixture
def real() -> Path:
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real data at {REAL_DATA}; set MEDFED_TEST_DATA")
    return REAL_DATA


def test_busi_is_labelled_by_folders_and_masks(tmp_path: Path, real: Path) -> None:
    (tmp_path / "archive").symlink_to(real / "busi")
    section = {"folders": {}, "masks": [{"pattern": "{stem}_mask*.png"}]}
    found = join(tmp_path, section, structures=("lesion",))
    assert found.counts()["with_mask"] == found.counts()["images"] == 27
    assert len(found.not_images) == 29
    for key, labels in found.by_image.items():
        mask = read_mask(found, key)
        assert set(np.unique(mask)) == ({0} if labels.classes == ("normal",) else {0, 1})


def test_hippocampus_is_labelled_and_its_planted_errors_are_found(
    tmp_path: Path, real: Path
) -> None:
    folder = real / "msd_hippocampus" / "TrainingSet"
    (tmp_path / "archive").symlink_to(folder / "images")
    masks = [{"folder": str(folder / "labels"), "pattern": "{stem}.nii.gz",
              "structures": {"anterior": 1, "posterior": 2}}]  # fmt: skip
    found = join(tmp_path, {"masks": masks})
    assert found.unlabelled == (("hippocampus_118.nii.gz", -1),)
    assert "hippocampus_281" in found.unmatched_rows[0].reason
    key = next(iter(found.by_image))
    (series,) = [one for one in scan_folder(tmp_path / "archive", LIMITS).series
                 if one.key == key[0]]  # fmt: skip
    mask = read_mask(found, key)
    assert mask.shape == read_series(series, "auto", LIMITS)[0].shape
    assert set(np.unique(mask)) == {0, 1, 2}


def test_covid_metadata_gives_labels_patients_notes_and_masks(tmp_path: Path, real: Path) -> None:
    folder = real / "covid_chestxray"
    (tmp_path / "archive").symlink_to(folder / "images")
    rows = {"file": str(folder / "metadata.csv"), "key": "file", "key_column": "filename"}
    found = join(tmp_path, {
        "tables": [rows | {"label_column": "finding", "patient_column": "patientid",
                           "columns": ["sex", "age"]}],
        "reports": [{"table": rows | {"text_columns": ["clinical_notes"]}}],
        "masks": [{"folder": str(folder / "annotations" / "semantic_masks_v7labs_lungs"),
                   "pattern": "{stem}.*", "structures": {"lung": ">127"}}],
    })  # fmt: skip
    counts = found.counts()
    assert (counts["images"], counts["patients"], counts["with_mask"]) == (68, 33, 50)
    assert found.conflicts == ()
    assert found.unmatched_rows == ()
    filled = [read_mask(found, key).any() for key, one in found.by_image.items() if one.read_mask]
    assert sum(filled) > 30
