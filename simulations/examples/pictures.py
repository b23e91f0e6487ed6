"""One held-out image as a picture: its channels, its views side by side, one slice of a volume.

Shapes: C channels of all views, *S spatial, H, W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from medfed.client.data.site_data import ImageSet
from medfed.common.study import DataSection
from medfed.simulations.explaining.pictures import (
    Picture,
    picture_of,
    three_slices,
)

Mask = npt.NDArray[np.bool_]

# Bright on dark images, and told apart with any of the common colour vision deficiencies.
TRUTH_COLOUR = (86, 180, 233)
PREDICTION_COLOUR = (255, 159, 28)
_USUAL_SIDE = 320
_LARGEST_SIDE = 512
_LINE = 3
_DASH = 9


@dataclass(frozen=True)
class Shown:
    """What of an image is shown.

    Attributes:
        pixels: uint8 [C, *S], without padding.
        slice_index: Which axial slice of a volume; None of an image.
        note: Views and slice in words; empty if there is nothing to say.
    """

    pixels: npt.NDArray[np.uint8]
    slice_index: int | None
    note: str

    def plane(self, array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Return the part of an array [..., *S] that is shown, [..., H, W]."""
        if self.slice_index is None:
            return array
        x, y, _ = array.shape[-3:]
        return three_slices(array, (x // 2, y // 2, self.slice_index))[0]


def shown_image(
    data: ImageSet, position: int, section: DataSection, structures: Mask | None = None
) -> Shown:
    """Return the image at `position` and what of it to show.

    Args:
        data: Where it is.
        position: Its place in `data`.
        section: Views and channels.
        structures: Of a volume, where something is: [L, *S]. The slice with most of it is shown,
            or the middle one.
    """
    pixels = data.images_NCHW(np.array([position]))[0]
    shape = data.shape_of(position)
    if shape is not None:
        pixels = pixels[(slice(None), *map(slice, shape))]
    notes = [_views(data, position, section)] if section.views else []
    index = None
    if section.dimensions == 3:
        depth = pixels.shape[-1]
        index = depth // 2
        if structures is not None and structures.any():
            index = int(structures.sum(axis=tuple(range(structures.ndim - 1))).argmax())
        notes.append(f"axial slice {index + 1} of {depth}")
    return Shown(pixels, index, "; ".join(notes))


def view_pictures(shown: Shown, section: DataSection) -> list[Picture]:
    """Return a picture of each view: three channels as colours, else the first one as grey."""
    plane = np.ascontiguousarray(shown.plane(shown.pixels)).astype(np.uint8)
    longest, channels = max(plane.shape[1:]), section.channels
    # Small images are enlarged before outlines are drawn; large ones made smaller for the page.
    factor = min(max(1.0, _USUAL_SIDE / longest), _LARGEST_SIDE / longest)
    views = [plane[start : start + channels] for start in range(0, len(plane), channels)]
    return [picture_of(view if channels == 3 else view[:1], factor) for view in views]


def draw_outlines(picture: Picture, truth: Sequence[Mask], predicted: Sequence[Mask]) -> Picture:
    """Outline structures [H, W]: the truth in blue, the prediction dashed in orange over it."""
    drawn = picture.copy()
    rows, columns = np.indices(picture.shape[:2])
    dashes = (rows + columns) // _DASH % 2 == 0
    for masks, colour, where in (
        (truth, TRUTH_COLOUR, np.True_),
        (predicted, PREDICTION_COLOUR, dashes),
    ):
        for mask in masks:
            drawn[_outline(mask, picture) & where] = colour
    return drawn


def _outline(mask: Mask, picture: Picture) -> Mask:
    from scipy import ndimage  # takes 0.4 s to import, and only masks need it

    height, width = picture.shape[:2]
    # Pixels stay square: what is drawn is the mask, not what it might have been.
    enlarged = Image.fromarray(np.ascontiguousarray(mask)).resize(
        (width, height), Image.Resampling.NEAREST
    )
    # In an image that was not enlarged a wide line would fill thin structures.
    width_px = _LINE if height > mask.shape[0] else 1
    inside = np.pad(np.asarray(enlarged, dtype=bool), 1)
    line = inside & ~ndimage.binary_erosion(inside, iterations=width_px)
    return np.asarray(line[1:-1, 1:-1])


def _views(data: ImageSet, position: int, section: DataSection) -> str:
    present = data.present
    there = [True] * len(section.views) if present is None else present[position].astype(bool)
    names = [
        name if known else f"{name} (missing)"
        for name, known in zip(section.views, there, strict=True)
    ]
    return f"from the left: {', '.join(names)}"
