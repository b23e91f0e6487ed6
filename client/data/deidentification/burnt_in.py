"""Burnt-in text in decoded pixels: found, then painted over or refused."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medfed.client.data.deidentification.header_facts import TextFacts
from medfed.client.data.deidentification.rules import Rules
from medfed.client.data.deidentification.text_detection import Picture, find_text
from medfed.client.data.deidentification.text_marks import Box, merged
from medfed.common.errors import UnreadableImageError

Pixels = npt.NDArray[np.generic]

# Text stays where it is from frame to frame; more frames cost time and find no more.
_MOST_FRAMES = 12
_RING = 3
# The brightest and darkest half per cent may be text or metal.
_DISPLAYED = (0.5, 99.5)
_ROUNDS = 3


@dataclass(frozen=True)
class CleanedPixels:
    """Pixels without text.

    Attributes:
        pixels: As given; a new array if anything was painted over.
        boxes: What was painted over, in every frame.
    """

    pixels: Pixels
    boxes: tuple[Box, ...]


def _as_stored(pixels: Pixels) -> Pixels:
    return pixels


def clean_pixels(
    pixels: Pixels,
    facts: TextFacts,
    rules: Rules,
    show: Callable[[Pixels], Pixels] = _as_stored,
) -> CleanedPixels:
    """Return `pixels` without burnt-in text, or refuse them.

    Args:
        pixels: Stored or displayed values [F, H, W] or [F, H, W, C], C being colours.
        facts: What the header says; see `text_facts`.
        rules: Whether text is painted over, refused or not looked for.
        show: Turns stored values into what a viewer shows, where they are indices of a palette.

    Raises:
        UnreadableImageError: There is text and the rules refuse it, or the header speaks of text
            that cannot be found, or painting did not remove it.
    """
    if not facts.looked_for or rules.burnt_in == "keep":
        return CleanedPixels(pixels, ())
    boxes = text_boxes(show(pixels))
    if rules.burnt_in == "refuse":
        if boxes or facts.declared:
            raise UnreadableImageError(
                f"Burnt-in text: {'the header says so' if facts.declared else 'seen'}, "
                f'{len(boxes)} line(s) found. Choose burnt_in = "mask" (--burnt-in mask) and look '
                "at the copy, or leave the image out."
            )
        return CleanedPixels(pixels, ())
    if facts.declared and not boxes and not facts.regions:
        raise UnreadableImageError(
            "The header says that text is burnt in, but none was found. Look at the image; if it "
            "is clean, set Burned In Annotation to NO, else leave it out."
        )
    return _masked(pixels, [*boxes, *_outside(facts.regions, pixels.shape)], show)


def text_boxes(pixels: Pixels) -> tuple[Box, ...]:
    """Return where text is in [F, H, W] or [F, H, W, C], over a sample of the frames."""
    found = {
        box
        for index in sampled_frames(len(pixels))
        for view in _views(pixels[index])
        for box in find_text(view)
    }
    return tuple(sorted(merged(sorted(found))))


def sampled_frames(num_frames: int) -> list[int]:
    """Return the frames that are looked at: the first, the last and evenly between."""
    if num_frames < 1:
        return []
    spread = np.linspace(0, num_frames - 1, min(num_frames, _MOST_FRAMES))
    return sorted({round(float(index)) for index in spread})


def _views(frame: Pixels) -> list[Picture]:
    """Return the grey pictures of one frame: as shown, and each extreme of its colours.

    Coloured text may be as bright as its ground; it then differs in one colour.
    """
    if frame.ndim == 2:
        return [_displayed(frame)]
    return [_displayed(frame[..., :3].max(axis=-1)), _displayed(frame[..., :3].min(axis=-1))]


def _displayed(frame: Pixels) -> Picture:
    values = np.asarray(frame, dtype=np.float32)
    values = np.where(np.isfinite(values), values, 0)
    if frame.dtype == np.uint8:
        low, high = 0.0, 255.0
    else:
        low, high = (float(value) for value in np.percentile(values, _DISPLAYED))
    if high <= low:
        low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.zeros(frame.shape, np.uint8)
    return np.asarray(np.clip((values - low) / (high - low) * 255, 0, 255), dtype=np.uint8)


def _outside(regions: Sequence[Box], shape: tuple[int, ...]) -> list[Box]:
    """Return the bands around the box of all regions; none where there are no regions."""
    if not regions:
        return []
    height, width = shape[1:3]
    top = min(region.top for region in regions)
    left = min(region.left for region in regions)
    bottom = min(max(region.bottom for region in regions), height)
    right = min(max(region.right for region in regions), width)
    bands = [
        Box(0, 0, top, width),
        Box(bottom, 0, height, width),
        Box(top, 0, bottom, left),
        Box(top, right, bottom, width),
    ]
    return [band for band in bands if band.bottom > band.top and band.right > band.left]


def _masked(
    pixels: Pixels, boxes: Sequence[Box], show: Callable[[Pixels], Pixels]
) -> CleanedPixels:
    """Paint, look again, paint what is still found; give up after a few rounds."""
    painted = list(boxes)
    result = mask(pixels, painted)
    for _ in range(_ROUNDS):
        left = [box for box in text_boxes(show(result)) if not _is_painted(box, painted)]
        if not left:
            return CleanedPixels(result, tuple(sorted(set(painted))))
        painted += left
        result = mask(result, left)
    raise UnreadableImageError(
        "Burnt-in text was still found after painting over it. Look at the image and leave it out."
    )


def _is_painted(box: Box, painted: Sequence[Box]) -> bool:
    return any(
        other.top <= box.top
        and other.left <= box.left
        and other.bottom >= box.bottom
        and other.right >= box.right
        for other in painted
    )


def mask(pixels: Pixels, boxes: Sequence[Box]) -> Pixels:
    """Return a copy with each box painted in one value: the middle one of what surrounds it.

    Args:
        pixels: [F, H, W] or [F, H, W, C].
        boxes: The same in every frame.
    """
    if not boxes:
        return pixels
    result = pixels.copy()
    for box in boxes:
        for frame, source in zip(result, pixels, strict=True):
            frame[box.top : box.bottom, box.left : box.right] = _ground(source, box)
    return result


def _ground(frame: Pixels, box: Box) -> npt.NDArray[np.generic]:
    """Middle value of a ring around the box, by colour; it is one that occurs there."""
    top, left = max(box.top - _RING, 0), max(box.left - _RING, 0)
    around = frame[top : box.bottom + _RING, left : box.right + _RING]
    ring = np.ones(around.shape[:2], bool)
    ring[box.top - top : box.bottom - top, box.left - left : box.right - left] = False
    values = around[ring] if ring.any() else frame.reshape(-1, *frame.shape[2:])
    ordered = np.sort(values, axis=0)
    return np.asarray(ordered[len(ordered) // 2])
