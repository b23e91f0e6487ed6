"""A DICOM image as a radiologist sees it.

Shapes: F frames, H rows, W columns.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.dicom.colour import is_coloured, to_rgb
from medfed.client.data.dicom.decoding import Pixels, read_pixels
from medfed.client.data.dicom.elements import text_of
from medfed.client.data.dicom.grey import GreyFacts, grey_facts
from medfed.client.data.dicom.opening import parsing
from medfed.client.data.dicom.presets import Percentiles, Window
from medfed.client.data.dicom.shading import choose_shading, percentiles_of, shade

Picture = npt.NDArray[np.uint8]


def read_image(path: Path, window: Window, limits: ReadLimits) -> Picture:
    """Return one file as it is seen: uint8 [H, W], [H, W, 3], [F, H, W] or [F, H, W, 3].

    Raises:
        UnreadableImageError: It cannot be decoded, or has no Hounsfield units for a preset.
    """
    pixels = read_pixels(path, limits)
    try:
        return to_display(pixels, window)
    except FileProblem as problem:
        raise problem.of(path) from None


def to_display(pixels: Pixels, window: Window = "auto") -> Picture:
    """Return decoded pixels as they are seen; a single frame has no axis of frames.

    Args:
        pixels: One file's.
        window: "auto", "percentiles", a preset in Hounsfield units, or (centre, width) in the
            modality's unit. Colour pictures have none.

    Raises:
        FileProblem: A preset for an image without Hounsfield units.
    """
    picture = to_rgb(pixels) if is_coloured(pixels) else shade_frames([pixels], window)
    return picture[0] if picture.shape[0] == 1 else picture


def shade_frames(images: Sequence[Pixels], window: Window) -> Picture:
    """Return grey images, uint8 [F, H, W], all frames of all files with one shading.

    Args:
        images: Decoded files of the same size, in order.
        window: As in `to_display`; "auto" takes the middle frame's.

    Raises:
        FileProblem: As `to_display`.
    """
    facts = [_facts_of_frames(one) for one in images]
    frames = [
        (one.values[start:end], how)
        for one, ways in zip(images, facts, strict=True)
        for start, end, how in ways
    ]
    middle = frames[len(frames) // 2][1]
    with parsing():
        modality = text_of(images[len(images) // 2].header, "Modality")

    def extent(wanted: Percentiles) -> tuple[float, float]:
        if len(frames) == 1:
            return percentiles_of(*frames[0], wanted)
        if len({how for _, how in frames}) == 1:
            return percentiles_of(np.concatenate([values for values, _ in frames]), middle, wanted)
        values = [how.modality_values(stored)[~how.is_padding(stored)] for stored, how in frames]
        whole = GreyFacts(0, is_signed=True, is_inverted=False)
        return percentiles_of(np.concatenate(values), whole, wanted)

    shading = choose_shading(middle, modality, window, extent)
    shaded = [shade(values, how, shading) for values, how in frames]
    return shaded[0] if len(shaded) == 1 else np.concatenate(shaded)


def _facts_of_frames(pixels: Pixels) -> list[tuple[int, int, GreyFacts]]:
    """Ranges of frames that become grey in the same way."""
    number = pixels.values.shape[0]
    with parsing():
        if not pixels.header.get("PerFrameFunctionalGroupsSequence"):
            return [(0, number, grey_facts(pixels.header, 0, is_float=pixels.is_float))]
        ranges: list[tuple[int, int, GreyFacts]] = []
        for frame in range(number):
            facts = grey_facts(pixels.header, frame, is_float=pixels.is_float)
            if ranges and ranges[-1][2] == facts:
                ranges[-1] = (ranges[-1][0], frame + 1, facts)
            else:
                ranges.append((frame, frame + 1, facts))
        return ranges
