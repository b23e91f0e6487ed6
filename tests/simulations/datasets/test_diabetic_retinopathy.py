import logging
import sys
from collections import Counter
from pathlib import Path

import pytest

from medfed.common.errors import DataError, UnreadableImageError
from medfed.simulations.datasets.diabetic_retinopathy import CLASSES, load_diabetic_retinopathy

sys.path.insert(0, str(Path(__file__).parent))

from layouts_other import write_diabetic_retinopathy, write_picture


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_diabetic_retinopathy_keeps_both_eyes_of_a_patient_on_the_official_side(
    tmp_path: Path,
) -> None:
    write_diabetic_retinopathy(tmp_path, num_patients=3, num_test=2)
    dataset = load_diabetic_retinopathy(tmp_path)
    assert [r.record_id for r in dataset.records][:3] == ["10_left", "10_right", "11_left"]
    assert Counter((r.patient_id, r.split) for r in dataset.records) == {
        **{(str(patient), "train"): 2 for patient in (10, 11, 12)},
        **{(str(patient), "test"): 2 for patient in (13, 14)},
    }
    assert dataset.classes == CLASSES
    assert [r.labels[0] for r in dataset.records][:4] == ["No DR", "Mild", "Mild", "Moderate"]
    assert dataset.records[0].columns == {"eye": "left", "usage": ""}
    assert dataset.records[-1].columns == {"eye": "right", "usage": "Private"}
    assert dataset.records[-1].source == "retinopathy_solution.csv line 5 (14_right.jpeg)"


def test_diabetic_retinopathy_has_no_split_without_the_test_part(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_diabetic_retinopathy(tmp_path)
    (tmp_path / "retinopathy_solution.csv").unlink()
    with caplog.at_level(logging.WARNING):
        dataset = load_diabetic_retinopathy(tmp_path)
    assert {r.split for r in dataset.records} == {None}
    assert len(dataset.records) == 8
    assert "images of test/ have no retinopathy_solution.csv" in caplog.text


def test_diabetic_retinopathy_sorts_patients_as_numbers(tmp_path: Path) -> None:
    write_diabetic_retinopathy(tmp_path, num_patients=91, num_test=0)
    ids = [r.patient_id for r in load_diabetic_retinopathy(tmp_path).records]
    assert ids[-2:] == ["100", "100"]


def test_diabetic_retinopathy_takes_a_nested_folder_and_other_suffixes(tmp_path: Path) -> None:
    write_diabetic_retinopathy(tmp_path, num_test=0)
    (tmp_path / "train").rename(tmp_path / "inner")
    (tmp_path / "train").mkdir()
    (tmp_path / "inner").rename(tmp_path / "train" / "train")
    for path in (tmp_path / "train" / "train").iterdir():
        path.rename(path.with_suffix(".jpg"))
    records = load_diabetic_retinopathy(tmp_path).records
    assert all(r.read_image().shape == (20, 24, 3) for r in records)


def test_diabetic_retinopathy_surfaces_missing_images_and_warns_of_extra_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_diabetic_retinopathy(tmp_path)
    (tmp_path / "train" / "10_right.jpeg").unlink()
    write_picture(tmp_path / "train" / "99_left.jpeg", 1, 3)
    with caplog.at_level(logging.WARNING):
        records = load_diabetic_retinopathy(tmp_path).records
    assert "1 image(s) of train/ have no row in trainLabels.csv" in caplog.text
    with pytest.raises(UnreadableImageError, match=r"10_right\.jpeg.*found none in train/"):
        records[1].read_image()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("10_right,1", "10_right,5", "line 3, column level: expected a grade of 0 to 4, got '5'"),
        ("10_right,1", "10_right,1.0", "line 3, column level"),
        ("10_right,1", "10_right,", "line 3: column level is empty"),
        ("10_right,1", "10_left,1", "line 3, column image: 10_left is also in line 2"),
        ("10_right,1", "10_centre,1", "line 3, column image: expected <patient>_left"),
        ("10_right,1", "../10_left,1", "line 3, column image: expected <patient>_left"),
    ],
)
def test_diabetic_retinopathy_refuses_malformed_labels(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    write_diabetic_retinopathy(tmp_path)
    _edit(tmp_path / "trainLabels.csv", old, new)
    with pytest.raises(DataError, match=message) as caught:
        load_diabetic_retinopathy(tmp_path)
    assert "trainLabels.csv" in str(caught.value)


def test_diabetic_retinopathy_refuses_a_patient_in_both_parts(tmp_path: Path) -> None:
    write_diabetic_retinopathy(tmp_path)
    _edit(tmp_path / "retinopathy_solution.csv", "14_left", "10_left")
    with pytest.raises(DataError, match=r"1 patient\(s\), the first 10, are in trainLabels\.csv"):
        load_diabetic_retinopathy(tmp_path)


def test_diabetic_retinopathy_says_what_to_place_where(tmp_path: Path) -> None:
    write_diabetic_retinopathy(tmp_path)
    for path in (tmp_path / "train").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"Expected train/ with images.*kaggle\.com"):
        load_diabetic_retinopathy(tmp_path)
