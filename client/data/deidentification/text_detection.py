"""Finds lines of text that a device wrote into a picture.

Written text is what no anatomy is: several marks side by side, of one height, on one line, in one
ink, with edges as sharp as the pixels allow. No model, no language: what it says does not matter.
Bright ink and dark, strong and weak, at full size and reduced. A lone letter, as the L and R of a
radiograph, is no line. What else was weighed and the measured rates: docs/adr/0017.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medfed.client.data.deidentification.text_marks import (
    HEIGHTS,
    STROKE,
    Box,
    Mark,
    Plane,
    around,
    chains_of,
    marks_of,
    merged,
)

Picture = npt.NDArray[np.uint8]

# Grey levels of 255: clear ink first, then what is barely readable.
_CONTRASTS = (70, 40)
# Devices write on an even ground, where less proof is needed than on anatomy.
_EVEN_GROUND = 13
_PLAIN_GROUND = 6
_LINE_LENGTH = 3
# Small letters against capitals in common typefaces, and marks of a line that mixes them.
_SMALL_LETTER = 0.75
_MIXED_LENGTH = 4
_SMALLEST_SIDE = 96
_MOST_SCALES = 3
# Heights of its line that a box is wider and higher: commas, tails and faint last letters.
_PADDING = (0.35, 0.8)


def find_text(picture: Picture) -> tuple[Box, ...]:
    """Return boxes around lines of text in a grey picture, from top to bottom.

    Where one line is found, the rest of the picture is judged less strictly: a device that wrote
    once wrote more.

    Args:
        picture: Grey levels [H, W], 0 to 255, as a viewer would show them.
    """
    chains = [(chain, plane) for plane in _planes(picture) for chain in chains_of(marks_of(plane))]
    if not any(_looks_written(chain, plane) for chain, plane in chains):
        return ()
    boxes = [
        _padded(chain, plane.scale, picture.shape)
        for chain, plane in chains
        if _looks_written(chain, plane) or _may_be_written(chain, plane)
    ]
    return tuple(sorted(merged(boxes)))


def _planes(picture: Picture) -> Iterator[Plane]:
    for scale in (2**i for i in range(_MOST_SCALES)):
        if min(picture.shape) < (HEIGHTS[0] if scale == 1 else _SMALLEST_SIDE * scale):
            return
        reduced = _reduced(picture, scale)
        for ink in (reduced, 255 - reduced):
            stroke = ink - ndimage.grey_opening(ink, size=(STROKE, STROKE))
            for contrast in _CONTRASTS:
                yield Plane(ink, stroke, contrast, scale)


def _reduced(picture: Picture, scale: int) -> npt.NDArray[np.int16]:
    if scale == 1:
        return picture.astype(np.int16)
    height, width = (side // scale * scale for side in picture.shape)
    blocks = picture[:height, :width].reshape(height // scale, scale, width // scale, scale)
    return np.asarray(blocks.mean(axis=(1, 3)), dtype=np.int16)


def _looks_written(chain: Sequence[Mark], plane: Plane) -> bool:
    """Whether a chain has enough marks of one height standing on one line.

    On an even ground half of them are enough, since small letters have two heights. On anatomy a
    short chain has to be of one height altogether: bones and hairs are not.
    """
    if len(chain) < _LINE_LENGTH:
        return False
    weak = plane.contrast < _CONTRASTS[0]
    even = _ground_spread(chain, plane) <= (_PLAIN_GROUND if weak else _EVEN_GROUND)
    if weak and not (even and len(chain) > _LINE_LENGTH):
        return False
    needed = 0.5 if even or len(chain) >= 2 * _LINE_LENGTH else 0.75
    best = _num_alike(chain, 0.2 if even else 0.1)
    if best >= (2 if even else _LINE_LENGTH) and best >= needed * len(chain):
        return True
    return _num_of_two_heights(chain) >= max(_MIXED_LENGTH, 0.75 * len(chain))


def _may_be_written(chain: Sequence[Mark], plane: Plane) -> bool:
    """Whether a chain could be text, in a picture that has some."""
    if len(chain) < 2 or _num_alike(chain, 0.2) < max(2, 0.5 * len(chain)):
        return False
    weak = plane.contrast < _CONTRASTS[0]
    return _ground_spread(chain, plane) <= (_PLAIN_GROUND if weak else 2 * _EVEN_GROUND)


def _num_of_two_heights(chain: Sequence[Mark]) -> int:
    """Most marks that stand on one line and are capitals or small letters of one size."""
    best = 0
    for capital in chain:
        slack = max(1.0, 0.07 * capital.height)
        heights = {capital.height, _SMALL_LETTER * capital.height}
        fitting = [
            mark
            for mark in chain
            if abs(mark.box.bottom - capital.box.bottom) <= slack
            and any(abs(mark.height - height) <= slack for height in heights)
        ]
        small = sum(1 for mark in fitting if mark.height < 0.9 * capital.height)
        if 0 < small < len(fitting):
            best = max(best, len(fitting))
    return best


def _num_alike(chain: Sequence[Mark], slack: float) -> int:
    """Most marks of the chain that have one height and stand on one line, within a share of it."""
    heights = np.array([mark.height for mark in chain])
    bottoms = np.array([mark.box.bottom for mark in chain])
    best = 0
    for height, bottom in zip(heights, bottoms, strict=True):
        most = max(1.0, slack * height)
        alike = (np.abs(heights - height) <= most) & (np.abs(bottoms - bottom) <= most)
        best = max(best, int(alike.sum()))
    return best


def _padded(chain: Sequence[Mark], scale: int, shape: tuple[int, ...]) -> Box:
    """Return the box of a chain in the whole picture's pixels, with a margin."""
    box = around([mark.box for mark in chain])
    height = (box.bottom - box.top) * scale
    down, aside = (int(share * height) + 2 for share in _PADDING)
    return Box(
        max(box.top * scale - down, 0),
        max(box.left * scale - aside, 0),
        min(box.bottom * scale + down, shape[0]),
        min(box.right * scale + aside, shape[1]),
    )


def _ground_spread(chain: Sequence[Mark], plane: Plane) -> float:
    """Standard deviation of what lies between the marks, in grey levels."""
    box = around([mark.box for mark in chain])
    place = (slice(box.top, box.bottom), slice(box.left, box.right))
    ground = ~ndimage.binary_dilation(plane.stroke[place] >= plane.contrast)
    return float(plane.ink[place][ground].std()) if ground.any() else np.inf
