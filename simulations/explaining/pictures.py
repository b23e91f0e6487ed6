"""Images, maps and contours as RGB pictures, enlarged to be looked at.

Maps are drawn in viridis, which readers with any of the common colour vision deficiencies can
read: brighter is more. Volumes are shown as three slices through one point, the patient's right
on the viewer's left.

Shapes: C channels, L structures, H, W pixels, X, Y, Z voxels towards right, front, head.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from medfed.simulations.reporting.drawing import CYCLE

Picture = npt.NDArray[np.uint8]
Map = npt.NDArray[np.floating[Any]]
_Number = TypeVar("_Number", bound=np.generic)

_COLOUR_MAP = "viridis"
# How much a map's highest value hides of the image.
_OPACITY = 0.6
_LINE_WIDTH = 5
_GAP = 12


def picture_of(pixels_CHW: npt.NDArray[np.uint8], enlargement: float = 1.0) -> Picture:
    """Return an image as RGB [H', W', 3]: three channels as colours, any other number as grey."""
    if len(pixels_CHW) == 3:
        planes = list(pixels_CHW)
    else:
        planes = [np.rint(pixels_CHW.mean(axis=0)).astype(np.uint8)] * 3
    picture = Image.fromarray(np.stack(planes, axis=-1))
    size = [max(1, round(side * enlargement)) for side in (picture.width, picture.height)]
    return np.asarray(picture.resize((size[0], size[1]), Image.Resampling.BICUBIC))


def overlay(picture: Picture, values_HW: Map) -> Picture:
    """Lay a map of values from 0 to 1 over a picture; where it is 0 the picture shows through."""
    values = np.clip(_resized(values_HW, picture), 0, 1)
    opacity = _OPACITY * values[..., None]
    return _bytes((1 - opacity) * picture + opacity * _coloured(values))


def outline(picture: Picture, margins_LHW: Map) -> Picture:
    """Draw where each structure's margin crosses zero, in the colours of `structure_colour`."""
    drawn = picture.copy()
    for index, margins in enumerate(margins_LHW):
        inside = _resized(margins, picture) >= 0
        line = _grown(inside, _LINE_WIDTH // 2) & ~_shrunk(inside, _LINE_WIDTH // 2)
        # A dark rim: a line must show on bright and on dark tissue.
        drawn[_grown(line, 1)] = 0
        drawn[line] = _rgb(structure_colour(index))
    return drawn


def structure_colour(index: int) -> str:
    """Return the colour of a structure's contour, #rrggbb."""
    # Blue is dark on dark images: start with the next.
    return CYCLE[(index + 1) % len(CYCLE)]


def scale_colours(num_stops: int = 9) -> list[str]:
    """Return the colours of a map's scale from 0 to 1, #rrggbb."""
    stops = _bytes(_coloured(np.linspace(0, 1, num_stops)))
    return ["#" + bytes(stop).hex() for stop in stops]


def three_slices(volume: npt.NDArray[_Number], point: Sequence[int]) -> list[npt.NDArray[_Number]]:
    """Return the axial, coronal and sagittal slice of [..., X, Y, Z] through `point`.

    Rows run from front to back, or from head to feet; columns from the patient's right to left,
    or from front to back.
    """
    x, y, z = point
    axial = volume[..., ::-1, ::-1, z]
    coronal = volume[..., ::-1, y, ::-1]
    sagittal = volume[..., x, ::-1, ::-1]
    return [np.swapaxes(part, -1, -2) for part in (axial, coronal, sagittal)]


def side_by_side(pictures: Sequence[Picture]) -> Picture:
    """Return pictures in a row, the smaller ones centred on black."""
    height = max(picture.shape[0] for picture in pictures)
    parts = []
    for number, picture in enumerate(pictures):
        above = (height - picture.shape[0]) // 2
        below = height - picture.shape[0] - above
        left = _GAP if number else 0
        parts.append(np.pad(picture, ((above, below), (left, 0), (0, 0))))
    return np.concatenate(parts, axis=1)


def _resized(values_HW: Map, picture: Picture) -> npt.NDArray[np.float32]:
    height, width = picture.shape[:2]
    image = Image.fromarray(np.ascontiguousarray(values_HW, dtype=np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)


@cache
def _colours() -> npt.NDArray[np.float64]:
    """The colour map as a table of 256 colours, 0..255."""
    # matplotlib takes half a second to import.
    from matplotlib import colormaps

    return np.asarray(colormaps[_COLOUR_MAP](np.arange(256))[:, :3] * 255.0)


def _coloured(values: Map) -> npt.NDArray[np.float64]:
    return _colours()[np.rint(np.clip(values, 0, 1) * 255).astype(np.intp)]


def _bytes(values: Map) -> Picture:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def _grown(mask: npt.NDArray[np.bool_], by: int) -> npt.NDArray[np.bool_]:
    """Grow by `by` pixels along rows and columns, within the picture."""
    for axis in (0, 1):
        padded = np.pad(mask, [(by, by) if axis == own else (0, 0) for own in (0, 1)])
        length = mask.shape[axis]
        parts = [padded.take(range(s, s + length), axis) for s in range(2 * by + 1)]
        mask = np.logical_or.reduce(parts)
    return mask


def _shrunk(mask: npt.NDArray[np.bool_], by: int) -> npt.NDArray[np.bool_]:
    return ~_grown(~mask, by)
