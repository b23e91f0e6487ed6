import itertools
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from medfed.client.data.nifti import (
    check_same_geometry,
    read_geometry,
    read_labels,
    read_volume,
    rescale_intensity,
)
from medfed.common.errors import UnreadableImageError

Array = npt.NDArray[np.generic]

SPACING = (1.0, 2.0, 3.0)


def _save(
    path: Path, values: Array, affine: npt.NDArray[np.float64] | None = None, unit: str = "mm"
) -> Path:
    image = nib.Nifti1Image(values, np.diag([*SPACING, 1.0]) if affine is None else affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return path


def _stored(
    values: Array, axes: tuple[int, ...], signs: tuple[int, ...]
) -> tuple[Array, npt.NDArray[np.float64]]:
    """The same volume stored with other axes: axis j runs along `axes[j]`, against it if -1."""
    stored = values.transpose(*axes)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for j, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[axis, j] = sign * SPACING[axis]
        if sign < 0:
            stored = np.flip(stored, j)
            affine[axis, 3] = (values.shape[axis] - 1) * SPACING[axis]
    return stored, affine


@pytest.mark.parametrize("axes", itertools.permutations(range(3)))
@pytest.mark.parametrize("signs", itertools.product((1, -1), repeat=3))
def test_read_volume_turns_every_orientation_to_ras(
    tmp_path: Path, axes: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    values = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)
    path = _save(tmp_path / "a.nii.gz", *_stored(values, axes, signs))
    np.testing.assert_array_equal(read_volume(path), values)
    geometry = read_geometry(path)
    assert geometry.shape == (2, 3, 4)
    assert geometry.spacing_mm == SPACING
    np.testing.assert_allclose(geometry.affine, np.diag([*SPACING, 1.0]), atol=1e-6)


def test_read_volume_applies_the_scale_of_the_header(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "a.nii")
    raw = np.frombuffer((tmp_path / "a.nii").read_bytes()[352:], dtype="<i2")
    expected = raw.reshape(2, 2, 2, order="F") * 0.5 - 3
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii"), expected)


def test_read_volume_keeps_channels_and_drops_a_single_one(tmp_path: Path) -> None:
    values = np.arange(2 * 3 * 4 * 2, dtype=np.float32).reshape(2, 3, 4, 2)
    np.testing.assert_array_equal(read_volume(_save(tmp_path / "a.nii", values)), values)
    one = read_volume(_save(tmp_path / "b.nii", values[..., :1]))
    np.testing.assert_array_equal(one, values[..., 0])


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1), ("meter", 1000), ("micron", 0.001)])
def test_read_geometry_gives_millimetres(tmp_path: Path, unit: str, factor: float) -> None:
    path = _save(tmp_path / "a.nii", np.zeros((2, 2, 2), np.uint8), unit=unit)
    np.testing.assert_allclose(read_geometry(path).spacing_mm, np.array(SPACING) * factor)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((4, 5), np.uint8), r"3 axes, or 4 with channels, got shape \[4, 5\]"),
        (np.zeros((2, 2, 2, 2, 2), np.uint8), "3 axes"),
        (np.zeros((2, 2, 2), np.complex64), "expected numbers as voxels, got complex64"),
        (np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "numbers as voxels"),
    ],
)
def test_read_volume_refuses_what_is_no_volume(tmp_path: Path, values: Array, message: str) -> None:
    with pytest.raises(UnreadableImageError, match=message):
        read_volume(_save(tmp_path / "a.nii", values))


def test_read_geometry_refuses_a_volume_without_position(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.nii", np.zeros((2, 2, 2), np.uint8))
    image = nib.load(path)
    image.set_sform(np.zeros((4, 4)), code=1)
    image.set_qform(None, code=0)
    nib.save(image, path)
    with pytest.raises(UnreadableImageError, match="does not say where the voxels are"):
        read_geometry(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_names_the_file_whatever_bytes_are_damaged(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="nibabel.global")
    rng = np.random.default_rng(0)
    path = _save(tmp_path / name, rng.normal(size=(5, 6, 7)).astype(np.float32))
    whole = path.read_bytes()
    refused = []
    for trial in range(400):
        content = bytearray(whole)
        for position in rng.integers(0, min(len(whole), 352), 3):
            content[position] = rng.integers(256)
        path.write_bytes(content[: rng.integers(len(whole))] if trial % 4 == 0 else content)
        for read in (
            read_geometry,
            lambda path: rescale_intensity(read_volume(path), path.name),
            read_labels,
        ):
            try:
                read(path)
            except UnreadableImageError as error:
                refused.append(str(error))
    assert all(name in message for message in refused)
    assert len(refused) > 200


def test_read_labels_takes_floats_that_are_whole(tmp_path: Path) -> None:
    values = np.array([[[0, 1], [2, 0]]], dtype=np.float32)
    labels = read_labels(_save(tmp_path / "a.nii", values))
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, values)
    np.testing.assert_array_equal(read_labels(_save(tmp_path / "b.nii", values[..., None])), values)


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, 1e30])
def test_read_labels_refuses_what_is_no_label(tmp_path: Path, value: float) -> None:
    values = np.zeros((2, 2, 2), dtype=np.float32)
    values[0, 1, 1] = value
    with pytest.raises(UnreadableImageError, match="whole numbers as labels"):
        read_labels(_save(tmp_path / "a.nii", values))


def test_read_labels_refuses_channels(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match="one label a voxel"):
        read_labels(_save(tmp_path / "a.nii", np.zeros((2, 2, 2, 3), np.uint8)))


def test_rescale_intensity_maps_percentiles_to_the_ends() -> None:
    # Of 0..1000 the 0.5th percentile is 5 and the 99.5th 995.
    values = np.arange(1001, dtype=np.float32).reshape(7, 11, 13)
    expected = np.clip((np.arange(1001) - 5) / 990, 0, 1).reshape(7, 11, 13) * 255
    rescaled = rescale_intensity(values, "case")
    assert rescaled.dtype == np.float32
    np.testing.assert_allclose(rescaled, expected, atol=1e-4)


@pytest.mark.parametrize(("factor", "offset"), [(1e-3, 0), (4e3, 0), (2, -1024), (1, 1e6)])
def test_rescale_intensity_does_not_depend_on_unit_and_offset(factor: float, offset: float) -> None:
    values = np.random.default_rng(0).integers(0, 256, (6, 7, 8)).astype(np.float32)
    other = (values * factor + offset).astype(np.float32)
    np.testing.assert_allclose(
        rescale_intensity(other, "case"), rescale_intensity(values, "case"), atol=0.1
    )


def test_rescale_intensity_takes_each_channel_by_itself() -> None:
    values = np.random.default_rng(0).normal(size=(5, 6, 7, 2)).astype(np.float32)
    values[..., 1] *= 1000
    rescaled = rescale_intensity(values, "case")
    for channel in range(2):
        np.testing.assert_array_equal(
            rescaled[..., channel], rescale_intensity(values[..., channel], "case")
        )


def test_rescale_intensity_leaves_voxels_without_value_out() -> None:
    values = np.arange(1001, dtype=np.float32).reshape(7, 11, 13)
    holes = np.pad(values, ((0, 1), (0, 0), (0, 0)), constant_values=np.nan)
    holes[-1, 0, 0], holes[-1, 0, 1] = np.inf, -np.inf
    rescaled = rescale_intensity(holes, "case")
    np.testing.assert_array_equal(rescaled[:-1], rescale_intensity(values, "case"))
    assert not rescaled[-1].any()
    with pytest.raises(UnreadableImageError, match=r"case: expected finite voxels"):
        rescale_intensity(np.full((2, 2, 2), np.nan, dtype=np.float32), "case")


def test_rescale_intensity_of_a_flat_volume() -> None:
    flat = np.full((10, 10, 10), 7, dtype=np.float32)
    assert not rescale_intensity(flat, "case").any()
    # One voxel in a thousand: both percentiles are background.
    flat[0, 0, 0] = 9
    rescaled = rescale_intensity(flat, "case")
    assert (rescaled[0, 0, 0], rescaled.sum()) == (255, 255)


def test_check_same_geometry_compares_where_voxels_are(tmp_path: Path) -> None:
    values = np.zeros((4, 5, 6), np.uint8)
    image = read_geometry(_save(tmp_path / "image.nii", values))
    # Stored the other way round, at the same place.
    turned = read_geometry(_save(tmp_path / "a.nii", *_stored(values, (2, 0, 1), (-1, 1, -1))))
    check_same_geometry(image, turned, "case")
    for shift, fits in ((1e-3, True), (0.05, True), (0.5, False), (3.0, False)):
        affine = np.diag([*SPACING, 1.0])
        affine[0, 3] = shift
        label = read_geometry(_save(tmp_path / "label.nii", values, affine))
        if fits:
            check_same_geometry(image, label, "case")
        else:
            with pytest.raises(UnreadableImageError, match=r"case: .*beside the image"):
                check_same_geometry(image, label, "case")
    other = read_geometry(_save(tmp_path / "b.nii", values[:3]))
    with pytest.raises(UnreadableImageError, match=r"\[3, 5, 6\].*\[4, 5, 6\]"):
        check_same_geometry(image, other, "case")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("anatomical.nii", (33, 41, 25)),  # big endian int16
        ("reoriented_anat_moved.nii", (21, 26, 22)),  # big endian float32
        ("standard.nii.gz", (4, 5, 7)),
        ("example4d.nii.gz", (128, 96, 24, 2)),
        ("example_nifti2.nii.gz", (32, 20, 12, 2)),
    ],
)
def test_real_nifti_files_are_read(real_nifti: Path, name: str, shape: tuple[int, ...]) -> None:
    values = read_volume(real_nifti / "nibabel" / name)
    assert values.shape == shape
    assert np.isfinite(values).all()


def test_real_nifti_is_flipped_where_its_axis_runs_left(real_nifti: Path) -> None:
    path = real_nifti / "nibabel" / "anatomical.nii"  # LAS
    raw = np.frombuffer(path.read_bytes()[352:], dtype=">i2").reshape(33, 41, 25, order="F")
    np.testing.assert_array_equal(read_volume(path), raw[::-1])


def test_real_nifti_tumour_lies_in_the_bright_part_of_its_image(real_nifti: Path) -> None:
    folder = real_nifti / "cbica_brats_like"  # LPS
    image, mask = sorted(folder.glob("*.nii.gz"))
    check_same_geometry(read_geometry(image), read_geometry(mask), "case")
    values, labels = rescale_intensity(read_volume(image), "case"), read_labels(mask)
    assert set(np.unique(labels)) == {0, 1}
    brain = values[(values > 0) & (labels == 0)]
    assert values[labels == 1].mean() > np.percentile(brain, 90)


def test_real_nifti_volume_with_nan_is_rescaled(real_nifti: Path) -> None:
    values = read_volume(real_nifti / "nibabel" / "resampled_anat_moved.nii")
    assert np.isnan(values).any()
    rescaled = rescale_intensity(values, "case")
    assert np.isfinite(rescaled).all()
    assert not rescaled[np.isnan(values)].any()


@pytest.mark.parametrize(
    "name", ["test.mgz", "row_major.dconn.nii", "nifti1.hdr", "nifti2.hdr", "COPYING"]
)
def test_real_files_of_other_kinds_are_refused(real_nifti: Path, name: str) -> None:
    with pytest.raises(UnreadableImageError, match=name):
        read_volume(real_nifti / "nibabel" / name)
