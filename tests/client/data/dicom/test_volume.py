"""Volumes: the order of slices, their place in space, and what is refused."""

import os
import sys
from itertools import permutations
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from slices import item, placed, write_slice, write_stack

from medfed.client.data.archive.inventory import Series
from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.scan import scan_folder
from medfed.client.data.dicom.volume import read_series
from medfed.common.errors import UnreadableImageError

LIMITS = ReadLimits()


def only_series(folder: Path) -> Series:
    found = scan_folder(folder, LIMITS)
    assert len(found.series) == 1, found.series
    return found.series[0]


@pytest.mark.parametrize("order", permutations([0.0, 2.0, 4.0]))
def test_slices_are_in_order_of_their_position(tmp_path: Path, order: tuple[float, ...]) -> None:
    write_stack(tmp_path, order)
    series = only_series(tmp_path)
    assert series.is_stack
    assert series.shape == (3, 4, 6)
    assert series.spacing_mm == (2.0, 0.5, 0.75)
    array, spacing = read_series(series, (200, 401), LIMITS)
    # x, y, z: columns run to the left and rows to the back (LPS), so both are flipped.
    assert array.shape == (6, 4, 3)
    assert spacing == (0.75, 0.5, 2.0)
    assert [int(value) for value in array[0, 0]] == [0, 128, 255]
    assert array[5, 3, 2] < 10
    assert (array[:5, :, 2] == 255).all()


@pytest.mark.parametrize(
    ("orientation", "axis"),
    [([1, 0, 0, 0, 1, 0], 2), ([1, 0, 0, 0, 0, -1], 1), ([0, 1, 0, 0, 0, -1], 0)],
)
def test_axial_coronal_and_sagittal_slices_give_the_same_volume(
    tmp_path: Path, orientation: list[float], axis: int
) -> None:
    # A voxel grid in LPS: value = x + 10 y + 100 z of its index.
    x, y, z = np.meshgrid(np.arange(3), np.arange(4), np.arange(5), indexing="ij")
    grid = (x + 10 * y + 100 * z).astype(np.int16)
    for place in range(grid.shape[axis]):
        plane = np.take(grid, place, axis=axis)
        # Rows of the picture run along its second direction, columns along the first.
        picture = plane.T if axis == 2 else plane.T[::-1]
        start = [0.0, 0.0, 0.0 if axis == 2 else 4.0]
        start[axis] += place
        said = placed(start, orientation) | {"PixelSpacing": [1, 1]}
        write_slice(tmp_path / f"{9 - place}.dcm", picture, **said)
    array, spacing = read_series(only_series(tmp_path), (250, 501), LIMITS)
    assert spacing == (1.0, 1.0, 1.0)
    expected = np.rint(grid[::-1, ::-1, :] / 500 * 255)
    assert np.abs(array - expected).max() <= 1


def test_volume_equals_the_same_one_as_nifti(tmp_path: Path) -> None:
    write_stack(tmp_path / "dicom", [0, 3, 6, 9])
    array, spacing = read_series(only_series(tmp_path / "dicom"), (450, 901), LIMITS)
    values = np.zeros((6, 4, 4), np.int16)
    for place in range(4):
        values[:, :, place] = 300 * place
        values[0, 0, place] = 7
    (tmp_path / "nifti").mkdir()
    affine = np.diag([-0.75, -0.5, 3.0, 1.0])
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "nifti/a.nii.gz")
    other, other_spacing = read_series(only_series(tmp_path / "nifti"), (450, 901), LIMITS)
    np.testing.assert_array_equal(array, other)
    assert spacing == pytest.approx(other_spacing)


def test_missing_slice_is_noted_and_refused(tmp_path: Path) -> None:
    write_stack(tmp_path, [0, 2.5, 5, 10, 12.5])
    series = only_series(tmp_path)
    assert not series.is_stack
    assert series.notes == ("Expected slices 2.5 mm apart, got 5 mm between slices 3 and 4.",)
    with pytest.raises(UnreadableImageError, match="5 mm between slices 3 and 4"):
        read_series(series, (0, 400), LIMITS)


def test_slices_in_one_place_are_noted_and_refused(tmp_path: Path) -> None:
    write_stack(tmp_path, [0, 2, 2, 4])
    series = only_series(tmp_path)
    assert "1 of 4 slices lie where another does." in series.notes
    with pytest.raises(UnreadableImageError, match="lie where another"):
        read_series(series, (0, 400), LIMITS)


def test_slightly_uneven_slices_are_noted_and_read(tmp_path: Path) -> None:
    write_stack(tmp_path, [0, 2, 4.1, 6.1])
    series = only_series(tmp_path)
    assert series.is_stack
    assert "2.1 mm between slices 2 and 3" in series.notes[0]
    assert read_series(series, (0, 400), LIMITS)[0].shape == (6, 4, 4)


def test_tilted_gantry_is_noted(tmp_path: Path) -> None:
    for number in range(4):
        values = np.zeros((4, 6), np.int16)
        write_slice(tmp_path / f"{number}.dcm", values, **placed((0, number, 5 * number)))
    assert "tilted gantry" in only_series(tmp_path).notes[0]


def test_frames_with_positions_are_a_volume(tmp_path: Path) -> None:
    heights = [4, 0, 2]
    values = np.stack([np.full((4, 6), 100 * height, np.int16) for height in heights])
    groups = [
        item(PlanePositionSequence=[item(ImagePositionPatient=[10, 20, height])])
        for height in heights
    ]
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.75])],
    )
    write_slice(
        tmp_path / "a.dcm",
        values,
        NumberOfFrames=3,
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=groups,
    )
    series = only_series(tmp_path)
    assert (series.is_stack, series.num_images) == (True, 3)
    assert series.spacing_mm == (2.0, 0.5, 0.75)
    array, spacing = read_series(series, (200, 401), LIMITS)
    assert spacing == (0.75, 0.5, 2.0)
    assert array[0, 0].tolist() == [0, 128, 255]


def test_frames_without_positions_stay_in_their_order(tmp_path: Path) -> None:
    values = np.arange(5, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 6), np.uint8)
    write_slice(tmp_path / "a.dcm", values, NumberOfFrames=5, Modality="US")
    array, spacing = read_series(only_series(tmp_path), "auto", LIMITS)
    np.testing.assert_array_equal(array, values)
    assert spacing is None


def test_all_slices_of_a_volume_share_a_window(tmp_path: Path) -> None:
    for number, (centre, width) in enumerate([(0, 100), (200, 401), (0, 10)]):
        values = np.full((4, 6), 100, np.int16)
        said = placed((0, 0, number)) | {"WindowCenter": centre, "WindowWidth": width}
        write_slice(tmp_path / f"{number}.dcm", values, **said)
    array, _ = read_series(only_series(tmp_path), "auto", LIMITS)
    # The middle slice's: 100 lies a quarter up from 0 to 400.
    assert np.unique(array).tolist() == [64]


def test_real_volume_lies_where_nibabel_would_put_it() -> None:
    root = Path(os.environ.get("MEDFED_TEST_DATA", Path(__file__).parents[4] / "../shared/data"))
    folder = root / "dicom/mr_series/Study1/13_HCropVolume"
    if not folder.is_dir():
        pytest.skip(f"no real data at {root}; set MEDFED_TEST_DATA")
    series = only_series(folder)
    assert series.is_stack
    assert len(series.files) == 32
    array, spacing = read_series(series, "auto", LIMITS)
    assert sorted(array.shape) == [32, 35, 51]
    assert spacing == (1.0, 1.0, 1.0)
    # A hippocampus is smooth along every axis; slices out of order are not.
    for axis in range(3):
        order = np.random.default_rng(0).permutation(array.shape[axis])
        shuffled = roughness(np.take(array, order, axis=axis), axis)
        assert roughness(array, axis) < 0.7 * shuffled


def roughness(array: npt.NDArray[np.uint8], axis: int) -> float:
    return float(np.abs(np.diff(array.astype(int), axis=axis)).mean())
