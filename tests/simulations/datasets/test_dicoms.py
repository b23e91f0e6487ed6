import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medfed.common.errors import UnreadableImageError
from medfed.simulations.datasets.dicoms import read_grey

sys.path.insert(0, str(Path(__file__).parent))

from layouts_radiology import write_dicom


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_read_grey_keeps_the_scale_of_the_file(tmp_path: Path, kind: type) -> None:
    values = np.arange(24, dtype=kind).reshape(4, 6)
    write_dicom(tmp_path / "a.dcm", values)
    image = read_grey(tmp_path / "a.dcm")
    np.testing.assert_array_equal(image.values, values)
    assert image.bits == np.iinfo(kind).bits


def test_read_grey_turns_monochrome1_over(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", np.array([[0, 100], [200, 255]], np.uint8), "MONOCHROME1")
    np.testing.assert_array_equal(read_grey(tmp_path / "a.dcm").values, [[255, 155], [55, 0]])


def test_read_grey_applies_slope_and_intercept(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    write_dicom(path, np.array([[0, 100], [200, 250]], np.uint8))
    dataset = pydicom.dcmread(path)
    dataset.RescaleSlope, dataset.RescaleIntercept = "2.5", "-10"
    dataset.save_as(path)
    np.testing.assert_array_equal(read_grey(path).values, [[-10, 240], [490, 615]])


def test_read_grey_refuses_what_is_no_grey_image(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(b"no image")
    with pytest.raises(UnreadableImageError, match=r"a\.dcm"):
        read_grey(path)
    values = np.zeros((2, 4), np.uint8)
    write_dicom(path, values)
    dataset = pydicom.dcmread(path)
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = 2, 2, 2
    dataset.save_as(path)
    with pytest.raises(UnreadableImageError, match="expected one grey image"):
        read_grey(path)
