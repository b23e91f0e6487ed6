"""Montgomery, Shenzhen, and both together."""

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medfed.common.errors import DataError, UnreadableImageError
from medfed.simulations.datasets.montgomery_tb import load_montgomery_tb
from medfed.simulations.datasets.shenzhen_tb import load_shenzhen_tb
from medfed.simulations.datasets.tb_chestxray import load_tb_chestxray

sys.path.insert(0, str(Path(__file__).parent))

from layouts_core import write_picture
from layouts_radiology import write_montgomery, write_reading, write_shenzhen, write_tb


def _write(root: Path, name: str, reading: str | None, seed: int = 0) -> None:
    write_picture(root / "CXR_png" / f"{name}.png", seed or int(name[7:11]))
    if reading is not None:
        write_reading(root, name, reading)


def test_montgomery_reads_labels_readings_and_masks(tmp_path: Path) -> None:
    write_montgomery(tmp_path)
    dataset = load_montgomery_tb(tmp_path)
    assert [r.record_id for r in dataset.records] == [
        "MCUCXR_0001_1",
        "MCUCXR_0002_0",
        "MCUCXR_0003_1",
        "MCUCXR_0004_0",
    ]
    first = dataset.records[0]
    assert first.labels == ("tuberculosis",)
    assert first.columns == {"dataset": "montgomery", "sex": "F", "age": "21"}
    assert first.report == "RUL infiltrate. Active TB."
    assert first.read_mask is not None
    mask = first.read_mask()
    assert dataset.structures == ("left lung", "right lung")
    # The left lung of the file is drawn at column 12, the right one at column 2.
    assert set(np.flatnonzero((mask == 1).any(axis=0))) == set(range(12, 18))
    assert set(np.flatnonzero((mask == 2).any(axis=0))) == set(range(2, 8))


@pytest.mark.parametrize(
    ("reading", "sex", "age", "text"),
    [
        ("Patient's Sex: F \nPatient's Age: 027Y\nnormal", "F", "27", "normal"),
        ("Patient's Sex: O\r\nPatient's Age: 005Y\r\nnormal", "O", "5", "normal"),
        ("male 45yrs\nnormal", "M", "45", "normal"),
        (
            "Female, 28yrs\n1.PTB in the right\n2.pleuritis",
            "F",
            "28",
            "1.PTB in the right 2.pleuritis",
        ),
        ("femal 32yrs\nnormal", "F", "32", "normal"),
        ("female24yrs\nnormal", "F", "24", "normal"),
        ("male , 29yrs  \t\nbilateral PTB", "M", "29", "bilateral PTB"),
        ("male 16month\nPTB", "M", "1", "PTB"),
        ("female 64days\nnormal", "F", "0", "normal"),
        ("male 42\nnormal", "M", "42", "normal"),
        ("normal\n", "", "", "normal"),
        ("PTB, 3 nodules of 5mm", "", "", "PTB, 3 nodules of 5mm"),
        ("", "", "", ""),
    ],
)
def test_tb_takes_sex_and_age_as_readings_write_them(
    tmp_path: Path, reading: str, sex: str, age: str, text: str
) -> None:
    _write(tmp_path, "CHNCXR_0007_1", reading)
    (record,) = load_shenzhen_tb(tmp_path).records
    assert (record.columns["sex"], record.columns["age"], record.report) == (sex, age, text)


def test_tb_joins_images_that_a_reading_says_are_one_patient(tmp_path: Path) -> None:
    _write(tmp_path, "MCUCXR_0161_1", "NO REPORT (same pt as MCUCXR_0162_1)")
    _write(tmp_path, "MCUCXR_0162_1", "Active TB.")
    _write(tmp_path, "MCUCXR_0163_1", "Active TB.")
    _write(tmp_path, "MCUCXR_0164_1", "Active TB.", seed=163)
    first, second, third, copy = load_montgomery_tb(tmp_path).records
    assert first.patient_id == second.patient_id != third.patient_id
    # The same file under two names.
    assert copy.patient_id == third.patient_id


def test_tb_refuses_a_reading_that_is_no_text(tmp_path: Path) -> None:
    _write(tmp_path, "MCUCXR_0161_1", "")
    (tmp_path / "ClinicalReadings" / "MCUCXR_0161_1.txt").write_bytes(b"\x81\x8d")
    with pytest.raises(DataError, match=r"MCUCXR_0161_1\.txt: expected the text"):
        load_montgomery_tb(tmp_path)


def test_tb_surfaces_missing_images_and_counts_what_is_odd(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_montgomery(tmp_path)
    root = tmp_path / "MontgomerySet"
    (root / "CXR_png" / "MCUCXR_0001_1.png").unlink()
    (root / "ClinicalReadings" / "MCUCXR_0002_0.txt").unlink()
    (root / "ManualMask" / "leftMask" / "MCUCXR_0003_1.png").unlink()
    (root / "CXR_png" / "Thumbs.db").touch()
    Image.new("L", (4, 4)).save(root / "CXR_png" / "overview.png")
    with caplog.at_level(logging.WARNING):
        first, second, third, _ = load_montgomery_tb(tmp_path).records
    with pytest.raises(UnreadableImageError, match=r"Expected MCUCXR_0001_1\.png"):
        first.read_image()
    assert (second.report, second.columns["sex"]) == ("", "")
    assert third.read_mask is None
    for message in (
        "1 picture(s) are not named",
        "1 image(s) of Montgomery County CXR have no reading",
        "1 image(s) have the mask of one lung only",
    ):
        assert message in caplog.text


def test_montgomery_refuses_masks_of_two_sizes(tmp_path: Path) -> None:
    write_montgomery(tmp_path, 1)
    Image.new("L", (5, 4)).save(tmp_path / "MontgomerySet/ManualMask/leftMask/MCUCXR_0001_1.png")
    (record,) = load_montgomery_tb(tmp_path).records
    assert record.read_mask is not None
    with pytest.raises(UnreadableImageError, match=r"\[4, 5\] and \[20, 24\]"):
        record.read_mask()


def test_shenzhen_reads_colour_as_grey_and_goes_without_masks(tmp_path: Path) -> None:
    write_shenzhen(tmp_path)
    dataset = load_shenzhen_tb(tmp_path)
    assert [r.read_mask is None for r in dataset.records] == [True, False, False, False]
    assert dataset.records[0].read_image().shape == (20, 24)
    assert {r.columns["dataset"] for r in dataset.records} == {"shenzhen"}


def test_tb_chestxray_joins_both_hospitals(tmp_path: Path) -> None:
    write_tb(tmp_path)
    dataset = load_tb_chestxray(tmp_path)
    assert [r.columns["dataset"] for r in dataset.records] == ["shenzhen"] * 4 + ["montgomery"] * 4
    assert len({r.patient_id for r in dataset.records}) == 8
    montgomery = dataset.records[-1]
    assert montgomery.read_mask is not None
    mask = montgomery.read_mask()
    # Both lungs are 1.
    assert set(np.flatnonzero(mask.any(axis=0))) == {*range(2, 8), *range(12, 18)}
    assert mask.max() == 1


@pytest.mark.parametrize("missing", ["MontgomerySet", "ChinaSet_AllFiles"])
def test_tb_chestxray_needs_both(tmp_path: Path, missing: str) -> None:
    write_tb(tmp_path)
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=f"Expected {missing}/ in .* Download"):
        load_tb_chestxray(tmp_path)
