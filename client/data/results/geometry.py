"""Brings a mask back onto the images that it is about, by nearest neighbour.

A model sees images turned, cut to a size or resampled; its mask has that geometry. Shapes: slices
S, rows R, columns C of the source; D, H, W (right, anterior, superior) of a store's volume.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from nibabel import orientations

from medfed.client.data.dicom.geometry import Floats
from medfed.client.data.results.sources import Sources
from medfed.common.errors import DataError

Labels = npt.NDArray[np.uint8]


def onto_source(mask: Labels, sources: Sources) -> Labels:
    """Return a mask [H, W] or [S, H, W], slices in the order of their geometry, in source size.

    Only sizes may differ, not the field of view: a mask of half the rows covers all of them.

    Raises:
        DataError: Another number of dimensions or of slices.
    """
    if mask.ndim != len(sources.shape) or mask.shape[:-2] != sources.shape[:-2]:
        raise DataError(
            f"Expected a mask of shape {list(sources.shape)} (rows and columns may differ), got "
            f"{list(mask.shape)}. Is it of these images, or turned as in a store (axes = ras)?"
        )
    rows, columns = (
        _nearest(mask.shape[axis], sources.shape[axis]) for axis in (mask.ndim - 2, mask.ndim - 1)
    )
    return np.ascontiguousarray(mask[..., rows[:, None], columns[None, :]])


def from_store(mask: Labels, sources: Sources) -> Labels:
    """Return a volume's mask [D, H, W], turned and resized as stores hold it, as [S, R, C].

    Raises:
        DataError: No volume, or sources without a place in space.
    """
    if mask.ndim != 3 or len(sources.shape) != 3:
        raise DataError(
            f"Expected a mask [D, H, W] of a volume, got {list(mask.shape)} for images of shape "
            f"{list(sources.shape)}."
        )
    affine = sources.affine()
    turn = orientations.io_orientation(affine)
    turned = affine @ orientations.inv_ornt_aff(turn, sources.shape)
    shape = [sources.shape[int(axis)] for axis in np.argsort(turn[:, 0])]
    return in_space(mask, turned @ _resized(shape, mask.shape), sources)


def in_space(mask: Labels, mask_affine: Floats, sources: Sources) -> Labels:
    """Return a mask that says where its voxels are (NIfTI) as [S, R, C]; outside it is empty.

    Args:
        mask: [D, H, W].
        mask_affine: Its indices to mm, right, anterior, superior.
        sources: With a place in space.

    Raises:
        DataError: The sources say not where they are, or the mask lies elsewhere.
    """
    affine = sources.affine()
    to_mask = np.linalg.inv(mask_affine) @ affine
    slices, rows, columns = (1, *sources.shape)[-3:]
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    result = np.zeros((slices, rows, columns), dtype=np.uint8)
    limits = np.array(mask.shape)[:, None, None]
    touched = False
    # One slice at a time: coordinates take 24 times the memory of the mask.
    for number in range(slices):
        at = (
            to_mask[:3, 0, None, None] * number
            + to_mask[:3, 1, None, None] * row
            + to_mask[:3, 2, None, None] * column
            + to_mask[:3, 3, None, None]
        )
        # Half of the last place is lost to float: 0.4999 and 0.5001 must not part.
        nearest = np.floor(at + 0.5 + 1e-6).astype(np.int64)
        inside = ((nearest >= 0) & (nearest < limits)).all(axis=0)
        touched |= bool(inside.any())
        result[number][inside] = mask[tuple(nearest[:, inside])]
    if not touched:
        raise DataError(
            "Expected a mask that lies where its source images are, got one elsewhere. Is it of "
            "this series?"
        )
    return result.reshape(sources.shape)


def _nearest(given: int, wanted: int) -> npt.NDArray[np.int64]:
    """For each of `wanted` places, which of `given` is there: centres to centres."""
    places = (np.arange(wanted) + 0.5) * (given / wanted)
    return np.minimum(places.astype(np.int64), given - 1)


def _resized(shape: Sequence[int], size: Sequence[int]) -> Floats:
    """Indices of a volume resized to `size` to those of `shape`, edges to edges."""
    matrix = np.eye(4)
    for axis, (whole, small) in enumerate(zip(shape, size, strict=True)):
        matrix[axis, axis] = whole / small
        matrix[axis, 3] = (whole / small - 1) / 2
    return matrix
