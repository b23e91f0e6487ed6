"""Pictures of one examination: all its views, or three slices of its volume, with maps over them.

Shapes: C channels, L structures, *S spatial: H, W or X, Y, Z.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medfed.simulations.explaining.load import Examination
from medfed.simulations.explaining.pictures import (
    Map,
    Picture,
    outline,
    overlay,
    picture_of,
    side_by_side,
    three_slices,
)

# Longer side of a picture, pixels, unless the image itself is longer.
LARGE, SMALL = 448, 176
# Three slices stand side by side.
_LARGE_SLICE, _SMALL_SLICE = 300, 90

Draw = Callable[[Picture, npt.NDArray[np.floating[Any]]], Picture]


def plain_picture(examination: Examination, point: Sequence[int] | None = None) -> Picture:
    """Show the examination as the model sees it; a volume through its middle or `point`."""
    shape = examination.pixels.shape[1:]
    blank = np.zeros(shape, dtype=np.float32)
    place = [side // 2 for side in shape] if point is None else point
    return _drawn(examination, blank, place, lambda picture, _: picture)


def map_picture(
    examination: Examination, values: Map, view: int | None = None, *, small: bool = False
) -> Picture:
    """Lay a map *S of 0 to 1 over every view, or over one; a volume through its highest value."""
    return _drawn(examination, values, highest_point(values), overlay, view, small=small)


def map_picture_at(examination: Examination, values: Map, point: Sequence[int]) -> Picture:
    """Lay a map *S over the examination; a volume through `point`."""
    return _drawn(examination, values, point, overlay)


def contour_picture(examination: Examination, margins_L: Map, point: Sequence[int]) -> Picture:
    """Draw contours where margins [L, *S] cross zero; a volume through `point`."""
    return _drawn(examination, margins_L, point, outline)


def highest_point(values: Map) -> tuple[int, ...]:
    """Return where the largest value is."""
    return tuple(int(index) for index in np.unravel_index(values.argmax(), values.shape))


def centre_of(mask: npt.NDArray[np.bool_]) -> tuple[int, ...] | None:
    """Return the place in `mask` that is nearest to its centre; None where it is empty."""
    places = np.argwhere(mask)
    if not len(places):
        return None
    distances = ((places - places.mean(axis=0)) ** 2).sum(axis=1)
    return tuple(int(index) for index in places[distances.argmin()])


def as_seen(examination: Examination) -> str:
    """Say in what form the model sees the image."""
    shape = " x ".join(str(side) for side in examination.pixels.shape[1:])
    if examination.pixels.ndim == 4:
        return (
            f"As the model sees it: {shape} voxels, drawn as cubes. Axial, coronal and sagittal "
            "slice; the patient's right is on the left."
        )
    missing = [
        view
        for view, present in zip(examination.views, examination.present, strict=True)
        if not present
    ]
    absent = f" Missing: {', '.join(missing)}." if missing else ""
    return f"As the model sees it: {shape} pixels.{absent}"


def _drawn(
    examination: Examination,
    values: Map,
    point: Sequence[int],
    draw: Draw,
    view: int | None = None,
    *,
    small: bool = False,
) -> Picture:
    shown = np.flatnonzero(examination.present).tolist() if view is None else [view]
    is_volume = examination.pixels.ndim == 4
    large, less = (_LARGE_SLICE, _SMALL_SLICE) if is_volume else (LARGE, SMALL)
    longest = max(examination.pixels.shape[1:])
    factor = less / longest if small else max(1.0, large / longest)
    parts = []
    for index in shown:
        pixels = examination.view_pixels(index)
        slices = three_slices(pixels, point) if is_volume else [pixels]
        layers = three_slices(values, point) if is_volume else [values]
        parts += [
            draw(picture_of(part, factor), layer)
            for part, layer in zip(slices, layers, strict=True)
        ]
    return side_by_side(parts)
