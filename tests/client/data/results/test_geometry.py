"""Masks of another geometry than their images come back onto them."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from slices import placed, write_slice

from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.scan import scan_folder
from medfed.client.data.dicom.volume import read_series
from medfed.client.data.fitting import fit_mask
from medfed.client.data.nifti import read_geometry
from medfed.client.data.results.files import read_mask
from medfed.client.data.results.geometry import from_store, in_space, onto_source
from medfed.client.data.results.sources import Sources, read_sources
from medfed.common.errors import DataError
from medfed.common.study import DataSection

Labels = npt.NDArray[np.uint8]
# Rows, then columns: axial, sagittal, coronal, mirrored, oblique.
ORIENTATIONS = {
    "axial": [1, 0, 0, 0, 1, 0],
    "sagittal": [0, 1, 0, 0, 0, -1],
    "coronal": [1, 0, 0, 0, 0, -1],
    "mirrored": [-1, 0, 0, 0, 1, 0],
    "oblique": [0.8, 0.6, 0, -0.6, 0.8, 0],
}


def labels(shape: tuple[int, ...]) -> Labels:
    """A different value in every corner and along every side."""
    return np.random.default_rng(3).integers(0, 4, shape).astype(np.uint8)


def series(folder: Path, values: Labels, orientation: list[float]) -> Sources:
    """Slices of `values`, in a pile along their normal, whose pixels are the labels."""
    normal = np.cross(orientation[:3], orientation[3:])
    for number, plane in enumerate(values):
        said = placed((normal * 3 * number).tolist(), orientation)
        write_slice(folder / f"{7 * number % 5}-{number}.dcm", plane * np.int16(80), **said)
    return read_sources(folder)


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_mask_in_the_stores_geometry_comes_back_to_its_slices(tmp_path: Path, name: str) -> None:
    truth = labels((5, 6, 8))
    sources = series(tmp_path, truth, ORIENTATIONS[name])
    [found] = scan_folder(tmp_path, ReadLimits()).series
    # What a store is made of: right, anterior, superior; a perfect model gives its labels back.
    seen, _ = read_series(found, (120, 240), ReadLimits())
    levels = np.unique(seen)
    predicted = np.searchsorted(levels, seen).astype(np.uint8)
    assert len(levels) == 4
    np.testing.assert_array_equal(from_store(predicted, sources), truth)


@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("factor", [2, 3])
def test_a_mask_of_a_finer_grid_comes_back_exactly(tmp_path: Path, name: str, factor: int) -> None:
    truth = labels((5, 6, 8))
    sources = series(tmp_path, truth, ORIENTATIONS[name])
    [found] = scan_folder(tmp_path, ReadLimits()).series
    seen, _ = read_series(found, (120, 240), ReadLimits())
    predicted = np.searchsorted(np.unique(seen), seen).astype(np.uint8)
    finer = fit_mask(
        predicted,
        DataSection(dimensions=3, image_size=16),
        "test",
        predicted.shape,
        [side * factor for side in predicted.shape],
    )
    assert finer.shape != predicted.shape
    np.testing.assert_array_equal(from_store(finer, sources), truth)


def test_a_mask_of_a_coarser_grid_is_the_nearest_of_it(tmp_path: Path) -> None:
    blocks = labels((2, 3, 4))
    truth = blocks.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
    sources = series(tmp_path, truth, ORIENTATIONS["axial"])
    assert onto_source(truth[:, ::2, ::2], sources).tolist() == truth.tolist()
    # As stores hold it: columns to the right (DICOM's run left), rows to the front, slices up.
    turned = np.flip(blocks.transpose(2, 1, 0), axis=(0, 1))
    assert from_store(turned, sources).tolist() == truth.tolist()


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_nifti_mask_lies_where_its_affine_says(tmp_path: Path, name: str) -> None:
    nib = pytest.importorskip("nibabel")
    truth = labels((5, 6, 8))
    sources = series(tmp_path / "dicom", truth, ORIENTATIONS[name])
    image = nib.Nifti1Image(truth, sources.affine())
    path = tmp_path / "mask.nii.gz"
    nib.save(image, path)
    np.testing.assert_array_equal(read_mask(path, sources, "slices"), truth)
    # Part of it only: what lies outside is background.
    shifted = sources.affine()
    shifted[:3, 3] += shifted[:3, 0] * 2
    nib.save(nib.Nifti1Image(truth[2:], shifted), path)
    expected = truth.copy()
    expected[:2] = 0
    np.testing.assert_array_equal(read_mask(path, sources, "slices"), expected)


def test_a_nifti_mask_of_another_place_is_refused(tmp_path: Path) -> None:
    sources = series(tmp_path, labels((5, 6, 8)), ORIENTATIONS["axial"])
    far = sources.affine()
    far[:3, 3] += 1e4
    with pytest.raises(DataError, match="elsewhere"):
        in_space(labels((5, 6, 8)), far, sources)


def test_a_mask_of_other_slices_is_refused(tmp_path: Path) -> None:
    sources = series(tmp_path, labels((5, 6, 8)), ORIENTATIONS["axial"])
    for shape in ((4, 6, 8), (6, 8)):
        with pytest.raises(DataError, match="Expected a mask of shape"):
            onto_source(labels(shape), sources)


def test_a_resized_picture_comes_back_to_its_radiograph(tmp_path: Path) -> None:
    sources = read_sources(write_slice(tmp_path / "cr.dcm", np.zeros((30, 20), np.int16)))
    small = labels((10, 10))
    back = onto_source(small, sources)
    np.testing.assert_array_equal(back, small.repeat(3, axis=0).repeat(2, axis=1))


def test_the_geometry_of_a_saved_nifti_is_its_sources(tmp_path: Path) -> None:
    nib = pytest.importorskip("nibabel")
    sources = series(tmp_path / "dicom", labels((5, 6, 8)), ORIENTATIONS["axial"])
    nib.save(nib.Nifti1Image(labels((5, 6, 8)), sources.affine()), tmp_path / "mask.nii")
    assert read_geometry(tmp_path / "mask.nii").spacing_mm == pytest.approx((0.75, 0.5, 3))
