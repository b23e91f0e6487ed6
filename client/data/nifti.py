"""Reads NIfTI-1 and NIfTI-2 volumes, turned so that their axes run right, anterior, superior.

Volumes are only flipped and their axes exchanged, never resampled: an oblique one stays oblique.

Shapes: D, H, W are x, y, z (right, anterior, superior) after turning; C channels.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel import orientations
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, SpatialImage

from medfed.common.errors import UnreadableImageError

# What nibabel raises on a file that is damaged or none of its own, depending on where it is.
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    OverflowError,
    MemoryError,
    zlib.error,
    HeaderDataError,
    ImageFileError,
)
_MM = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}

# How far corners of a label may lie from those of its image, in voxels.
_MAX_SHIFT = 0.1
_MAX_LABEL = 2**31
_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Where the voxels of a volume are.

    Attributes:
        shape: D, H, W, after turning.
        affine: Voxel indices to mm, 4x4.
        spacing_mm: Distance of voxels along D, H, W.
    """

    shape: tuple[int, ...]
    affine: npt.NDArray[np.float64]
    spacing_mm: tuple[float, ...]


def read_geometry(path: Path) -> Geometry:
    """Return the geometry of the volume at `path`; only its header is read.

    Raises:
        UnreadableImageError: No NIfTI volume of 3 or 4 axes, or one without position.
    """
    image, turn = _open(path)
    affine = image.affine @ orientations.inv_ornt_aff(turn, image.shape[:3])
    affine = np.diag([*[_mm(image)] * 3, 1.0]) @ affine
    return Geometry(
        shape=tuple(int(image.shape[axis]) for axis in np.argsort(turn[:, 0])),
        affine=affine,
        spacing_mm=tuple(float(size) for size in voxel_sizes(affine)),
    )


def read_volume(path: Path) -> npt.NDArray[np.float32]:
    """Return the values of the volume at `path`, [D, H, W] or [D, H, W, C], in the file's scale.

    Raises:
        UnreadableImageError: As `read_geometry`, or damaged data.
    """
    # Values beyond float32 become infinite.
    with np.errstate(over="ignore"):
        return _turned(path).astype(np.float32)


def read_labels(path: Path) -> npt.NDArray[np.int64]:
    """Return the label volume at `path`, [D, H, W]; a type of floats is fine for whole numbers.

    Raises:
        UnreadableImageError: As `read_volume`, several channels, or values that are not whole.
    """
    values = _turned(path)
    if values.ndim != 3:
        raise UnreadableImageError(
            f"{path}: expected one label a voxel, got a volume of shape {list(values.shape)}."
        )
    with np.errstate(invalid="ignore"):
        whole = np.isfinite(values) & (values == np.rint(values)) & (np.abs(values) < _MAX_LABEL)
    if not whole.all():
        raise UnreadableImageError(
            f"{path}: expected whole numbers as labels, got others. Was the label resampled with "
            "interpolation? Export it again by nearest neighbour."
        )
    return values.astype(np.int64)


def rescale_intensity(values: npt.NDArray[np.float32], source: str) -> npt.NDArray[np.float32]:
    """Map `values`, [D, H, W] or [D, H, W, C], to 0..255, each channel by itself.

    The 0.5th percentile of a channel's finite voxels becomes 0, the 99.5th 255; what lies beyond is
    cut off. MR intensities have no unit, and scales of one data set differ ten thousandfold. If the
    two percentiles are equal (nearly everything is background), minimum and maximum take their
    place; a constant channel becomes 0, and so do voxels that are NaN or infinite.

    Raises:
        UnreadableImageError: A channel without a finite voxel.
    """
    if values.ndim == 3:
        return _rescale_channel(values, source)
    channels = np.moveaxis(values, -1, 0)
    return np.stack([_rescale_channel(channel, source) for channel in channels], axis=-1)


def check_same_geometry(image: Geometry, label: Geometry, source: str) -> None:
    """Refuse a label that does not lie on its image.

    Raises:
        UnreadableImageError: Another shape, or corners further apart than a tenth of a voxel.
    """
    if image.shape != label.shape:
        raise UnreadableImageError(
            f"{source}: the label of shape {list(label.shape)} and the image of shape "
            f"{list(image.shape)} are of different geometry. Export the two again from one study."
        )
    corners = np.array(np.meshgrid(*[(0, side - 1) for side in image.shape])).reshape(3, -1).T
    apart = apply_affine(image.affine, corners) - apply_affine(label.affine, corners)
    shift = float(np.linalg.norm(apart, axis=1).max())
    if shift > _MAX_SHIFT * min(image.spacing_mm):
        raise UnreadableImageError(
            f"{source}: the label lies up to {shift:.3g} mm beside the image, whose voxels are "
            f"{_format_mm(image.spacing_mm)}. Export the two again from one study."
        )


def _open(path: Path) -> tuple[SpatialImage, npt.NDArray[np.float64]]:
    """The volume, its data unread, and the orientation of its axes (`io_orientation`)."""
    try:
        image = nib.load(path)
    except _DAMAGE as error:
        raise _damaged(path, error) from None
    if not isinstance(image, nib.Nifti1Pair):
        raise UnreadableImageError(
            f"{path}: expected a NIfTI volume, got {type(image).__name__}. Convert it to .nii.gz."
        )
    if len(image.shape) not in (3, 4) or 0 in image.shape:
        raise UnreadableImageError(
            f"{path}: expected a volume of 3 axes, or 4 with channels, got shape "
            f"{list(image.shape)}."
        )
    if image.get_data_dtype().kind not in "iuf":
        raise UnreadableImageError(
            f"{path}: expected numbers as voxels, got {image.get_data_dtype()}."
        )
    return image, _orientation(path, image.affine)


def _orientation(path: Path, affine: npt.NDArray[np.float64] | None) -> npt.NDArray[np.float64]:
    if affine is not None and np.isfinite(affine).all():
        turn: npt.NDArray[np.float64] = orientations.io_orientation(affine)
        # An axis that leads nowhere has none.
        if not np.isnan(turn).any() and np.linalg.det(affine[:3, :3]) != 0:
            return turn
    raise UnreadableImageError(
        f"{path}: its header does not say where the voxels are (affine). Export it again."
    )


def _turned(path: Path) -> npt.NDArray[np.generic]:
    image, turn = _open(path)
    try:
        values: npt.NDArray[np.generic] = np.asanyarray(image.dataobj)
    except _DAMAGE as error:
        raise _damaged(path, error) from None
    values = orientations.apply_orientation(values, turn)
    return values[..., 0] if values.ndim == 4 and values.shape[-1] == 1 else values


def _mm(image: SpatialImage) -> float:
    try:
        return _MM[image.header.get_xyzt_units()[0]]
    except KeyError:
        # A code that the format does not have.
        return 1.0


def _damaged(path: Path, error: BaseException) -> UnreadableImageError:
    reason = str(error) or type(error).__name__
    return UnreadableImageError(
        f"{path} cannot be read as NIfTI ({reason}). Fetch it again, or leave it out."
    )


def _rescale_channel(values: npt.NDArray[np.float32], source: str) -> npt.NDArray[np.float32]:
    finite = np.isfinite(values)
    known = values[finite]
    if not known.size:
        raise UnreadableImageError(
            f"{source}: expected finite voxels, got NaN or infinite ones only."
        )
    low, high = (float(value) for value in np.percentile(known, _PERCENTILES))
    if low == high:
        low, high = float(known.min()), float(known.max())
    if low == high or not math.isfinite(high - low):
        return np.zeros_like(values, dtype=np.float32)
    # In float64: large offsets would eat up the digits of float32.
    scaled = (np.where(finite, values, low).astype(np.float64) - low) * (255 / (high - low))
    return np.clip(scaled, 0, 255).astype(np.float32)


def _format_mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{size:.3g}" for size in spacing) + " mm"
