"""Cuts cubes around places out of LUNA16's scans, with balls for its annotated nodules.

Shapes: D, H, W are x, y, z (right, anterior, superior).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfed.common.errors import UnreadableImageError
from medfed.simulations.datasets.metaimage import MetaImage, read_block, read_header

Place = tuple[float, float, float]

_CUBE_MM = 48.0
# Lung window as the challenge's own evaluation shows scans, in HU.
_AIR_HU, _TOP_HU = -1000.0, 400.0


@dataclass(frozen=True)
class Nodule:
    """An annotated nodule: a place to the left, posterior, superior, and a diameter."""

    place_mm: Place
    diameter_mm: float


def read_cube(header: Path, place_mm: Place) -> npt.NDArray[np.float32]:
    """Return the cube of 48 mm around a place of the scan at `header`, float32 [D, H, W], 0..255.

    What lies outside the scan is air.

    Raises:
        UnreadableImageError: The scan cannot be read, or the place lies outside it.
    """
    image = read_header(header)
    start, stop = _bounds(image, place_mm)
    values = read_block(image, start, stop, _AIR_HU)
    scaled: npt.NDArray[np.float32] = (values - _AIR_HU) * np.float32(255 / (_TOP_HU - _AIR_HU))
    return np.clip(scaled, 0, 255)


def read_balls(header: Path, place_mm: Place, nodules: Sequence[Nodule]) -> npt.NDArray[np.uint8]:
    """Return uint8 [D, H, W] of the cube of `read_cube`, 1 within one of `nodules`.

    Raises:
        UnreadableImageError: As `read_cube`.
    """
    image = read_header(header)
    start, stop = _bounds(image, place_mm)
    # Distances in mm from the cube's centre, along right, anterior, superior.
    centre = [image.origin_mm[i] + _centre(image, place_mm)[i] * _step(image, i) for i in range(3)]
    axes = [
        (np.arange(stop[i] - start[i]) - (stop[i] - start[i] - 1) / 2) * image.spacing_mm[i]
        for i in range(3)
    ]
    mask = np.zeros([len(axis) for axis in axes], dtype=np.uint8)
    for nodule in nodules:
        apart = [place - middle for place, middle in zip(nodule.place_mm, centre, strict=True)]
        # Places count to the left and posterior.
        offsets = (-apart[0], -apart[1], apart[2])
        squares = [(axis - offset) ** 2 for axis, offset in zip(axes, offsets, strict=True)]
        distance = squares[0][:, None, None] + squares[1][None, :, None] + squares[2]
        mask |= (distance <= (nodule.diameter_mm / 2) ** 2).astype(np.uint8)
    return mask


def _step(image: MetaImage, axis: int) -> float:
    return image.signs[axis] * image.spacing_mm[axis]


def _centre(image: MetaImage, place_mm: Place) -> tuple[int, int, int]:
    centre = image.voxel_at(place_mm)
    if not all(0 <= index < side for index, side in zip(centre, image.shape, strict=True)):
        raise UnreadableImageError(
            f"{image.path}: the place {', '.join(f'{mm:.1f}' for mm in place_mm)} mm lies outside "
            "the scan. Is the header, or the row, of another scan?"
        )
    return centre


def _bounds(image: MetaImage, place_mm: Place) -> tuple[list[int], list[int]]:
    """First voxel and the one after the last, the place's in the middle, along the file's axes."""
    centre = _centre(image, place_mm)
    reach = [max(1, round(_CUBE_MM / 2 / size)) for size in image.spacing_mm]
    return (
        [index - by for index, by in zip(centre, reach, strict=True)],
        [index + by + 1 for index, by in zip(centre, reach, strict=True)],
    )
