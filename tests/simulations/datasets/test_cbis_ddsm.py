import logging
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from medfed.common.errors import DataError, UnreadableImageError
from medfed.simulations.datasets.cbis_ddsm import load_cbis_ddsm

sys.path.insert(0, str(Path(__file__).parent))

from layouts_other import write_csv
from layouts_radiology import (
    CALC_HEADER,
    MASS_HEADER,
    cbis_line,
    write_cbis,
    write_cbis_images,
    write_dicom,
)

CASE = "Mass-Training_P_00001_LEFT_CC"
TRAIN = "mass_case_description_train_set.csv"


def _write(folder: Path, *lines: str, name: str = TRAIN, header: str = MASS_HEADER) -> Path:
    write_csv(folder / name, header, list(lines))
    return folder


def test_cbis_joins_the_abnormalities_of_a_mammogram(tmp_path: Path) -> None:
    _write(
        tmp_path,
        cbis_line(CASE, 1, "BENIGN_WITHOUT_CALLBACK", assessment=2),
        cbis_line(CASE, 2, "MALIGNANT", assessment=5),
    )
    write_cbis_images(tmp_path / "CBIS-DDSM", CASE, [3, 14])
    (record,) = load_cbis_ddsm(tmp_path).records
    assert (record.record_id, record.patient_id) == (CASE, "P_00001")
    assert record.labels == ("malignant",)
    assert record.split is None
    assert record.columns == {
        "breast": "LEFT",
        "view": "CC",
        "density": "3",
        "abnormality": "mass",
        "assessment": "5",
        "subtlety": "4",
    }
    assert record.read_mask is not None
    mask = record.read_mask()
    # Mask and crop change places from one abnormality to the next.
    assert set(np.flatnonzero(mask.any(axis=0))) == {*range(3, 7), *range(14, 18)}
    assert set(np.flatnonzero(mask.any(axis=1))) == {*range(5, 9)}
    assert mask.max() == 1
    # 16 bits become 0..255.
    stored = np.random.default_rng(0).integers(0, 65536, (20, 24), dtype=np.uint16)
    np.testing.assert_allclose(record.read_image(), stored / 257, atol=1e-3)


@pytest.mark.parametrize("pathology", ["BENIGN", "BENIGN_WITHOUT_CALLBACK"])
def test_cbis_counts_benign_without_callback_as_benign(tmp_path: Path, pathology: str) -> None:
    write_cbis_images(tmp_path / "CBIS-DDSM", CASE, [3])
    (record,) = load_cbis_ddsm(_write(tmp_path, cbis_line(CASE, 1, pathology))).records
    assert record.labels == ("benign",)


def test_cbis_finds_the_folders_of_every_download(tmp_path: Path) -> None:
    """Speaking names, UIDs, mask and crop in series of their own, a manifest's folder."""
    line = cbis_line(CASE, 1, "BENIGN")
    _write(tmp_path, line)
    base = tmp_path / "CBIS-DDSM"
    write_cbis_images(base, CASE, [3])
    before = _pixels(tmp_path)
    image, study, series, _ = line.replace("\n", "").split(",")[-3].split("/")
    roi = line.replace('"', "").replace("\n", "").split(",")[-1].split("/")

    day = next((base / f"{CASE}_1").iterdir())
    crop_folder = day / "1.000000-cropped images-84389"
    crop_folder.mkdir()
    crop = next(day.glob("1.000000-ROI*/1-2.dcm"))
    crop.rename(crop_folder / "1-1.dcm")
    apart = _pixels(tmp_path)

    uids = base / image / study / series
    uids.mkdir(parents=True)
    next((base / CASE / "07-20-2016-DDSM-NA-30288").rglob("*.dcm")).rename(uids / "1-1.dcm")
    uids = base.joinpath(*roi[:3])
    uids.mkdir(parents=True)
    for number, path in enumerate(sorted(day.rglob("*.dcm")), start=1):
        path.rename(uids / f"1-{number}.dcm")
    classic = _pixels(tmp_path)

    (tmp_path / "manifest-ZkhPvrLo5216730872708713142").mkdir()
    base.rename(tmp_path / "manifest-ZkhPvrLo5216730872708713142" / "CBIS-DDSM")
    manifest = _pixels(tmp_path)

    assert before[1].any()
    for found in (apart, classic, manifest):
        for pixels, expected in zip(found, before, strict=True):
            np.testing.assert_array_equal(pixels, expected)


def _pixels(folder: Path) -> list[npt.NDArray[np.generic]]:
    """Image and mask of the one record."""
    (record,) = load_cbis_ddsm(folder).records
    assert record.read_mask is not None
    return [record.read_image(), record.read_mask()]


def test_cbis_reads_the_jpeg_copy(tmp_path: Path) -> None:
    """Folders are series; JPEG blurs the two values of a mask."""
    line = cbis_line(CASE, 1, "MALIGNANT")
    _write(tmp_path / "csv", line)
    grey = np.random.default_rng(0).integers(20, 200, (80, 64), dtype=np.uint8)
    mask = np.zeros((80, 64), dtype=np.uint8)
    mask[16:40, 16:32] = 255
    image_series, roi_series = (
        line.replace('"', "").split(",")[column].split("/")[2] for column in (-3, -1)
    )
    files = {
        f"{image_series}/1-263.jpg": grey,
        f"{roi_series}/1-061.jpg": grey[16:40, 16:32],
        f"{roi_series}/2-062.jpg": mask,
    }
    for name, pixels in files.items():
        path = tmp_path / "jpeg" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=80)
    (record,) = load_cbis_ddsm(tmp_path).records
    assert record.read_image().shape == (80, 64)
    assert record.read_mask is not None
    np.testing.assert_array_equal(record.read_mask(), mask // 255)


def test_cbis_tells_masses_from_calcifications(tmp_path: Path) -> None:
    write_cbis(tmp_path)
    dataset = load_cbis_ddsm(tmp_path)
    assert dataset.structures == ("mass", "calcification")
    for record in dataset.records:
        assert record.read_mask is not None
        value = 2 if record.record_id.startswith("Calc") else 1
        assert set(np.unique(record.read_mask())) == {0, value}
    assert {r.record_id.split("_")[0]: r.split for r in dataset.records} == {
        "Mass-Training": "train",
        "Mass-Test": "test",
        "Calc-Training": "train",
        "Calc-Test": "test",
    }
    # Either table writes it its own way.
    assert {r.columns["density"] for r in dataset.records} == {"3"}


def test_cbis_keeps_a_patient_of_both_sides_in_train(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = "Calc-Test_P_00001_RIGHT_CC"
    third = "Calc-Test_P_00002_RIGHT_CC"
    _write(tmp_path, cbis_line(CASE, 1, "BENIGN"))
    _write(
        tmp_path,
        *(cbis_line(case, 1, "BENIGN") for case in (other, third)),
        name="calc_case_description_test_set.csv",
        header=CALC_HEADER,
    )
    for case in (CASE, other, third):
        write_cbis_images(tmp_path / "CBIS-DDSM", case, [3])
    sides = {r.record_id: r.split for r in load_cbis_ddsm(tmp_path).records}
    assert sides == {CASE: "train", other: "train", third: "test"}
    assert "1 of their image(s) move to train" in caplog.text


def test_cbis_surfaces_what_is_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = CASE.replace("CC", "MLO")
    _write(tmp_path, cbis_line(CASE, 1, "BENIGN"), cbis_line(other, 1, "BENIGN"))
    write_cbis_images(tmp_path / "CBIS-DDSM", CASE, [])
    with caplog.at_level(logging.WARNING):
        first, second = load_cbis_ddsm(tmp_path).records
    assert first.read_image().shape == (20, 24)
    assert first.read_mask is None
    with pytest.raises(UnreadableImageError, match=f"Expected the mammogram {other}"):
        second.read_image()
    assert "1 mammogram(s) that the tables name are not here" in caplog.text
    assert "2 mammogram(s) lack the outline" in caplog.text


def test_cbis_refuses_outlines_that_cannot_be_used(tmp_path: Path) -> None:
    _write(tmp_path, *(cbis_line(CASE, number, "BENIGN") for number in (1, 2)))
    write_cbis_images(tmp_path / "CBIS-DDSM", CASE, [3, 9])
    (record,) = load_cbis_ddsm(tmp_path).records
    assert record.read_mask is not None
    mask = next((tmp_path / "CBIS-DDSM" / f"{CASE}_2").rglob("1-2.dcm"))
    write_dicom(mask, np.eye(30, dtype=np.uint8) * 255)
    with pytest.raises(UnreadableImageError, match=r"\[20, 24\], \[30, 30\]"):
        record.read_mask()
    write_dicom(mask, np.arange(64, dtype=np.uint8).reshape(8, 8))
    with pytest.raises(UnreadableImageError, match="Expected a mask of black and white"):
        record.read_mask()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("BENIGN", "BENIGN?", "line 4, column pathology: .*'BENIGN\\?'"),
        (f"{CASE}/", f"../{CASE}/", "line 4, column image file path"),
        (f"{CASE}/", "P_00001/", "line 4, column image file path"),
    ],
)
def test_cbis_refuses_rows_that_are_not_the_publishers(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    _write(tmp_path, cbis_line(CASE, 1, "BENIGN").replace(old, new, 1))
    write_cbis_images(tmp_path / "CBIS-DDSM", CASE, [3])
    with pytest.raises(DataError, match=message):
        load_cbis_ddsm(tmp_path)


def test_cbis_refuses_a_mammogram_of_two_patients(tmp_path: Path) -> None:
    _write(
        tmp_path,
        cbis_line(CASE, 1, "BENIGN"),
        cbis_line(CASE, 2, "BENIGN", patient="P_00002"),
    )
    write_cbis_images(tmp_path / "CBIS-DDSM", CASE, [3, 9])
    with pytest.raises(DataError, match="another patient's"):
        load_cbis_ddsm(tmp_path)
