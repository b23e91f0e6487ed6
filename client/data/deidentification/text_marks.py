"""Marks that could be letters, and chains of them that could be lines of text.

A mark is a connected component of strokes thinner than `STROKE` that stand out from what is around
them (a white top-hat), of a letter's size and with edges as sharp as the pixels allow. A chain is
marks side by side, of about one height and one ink.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

# Pixels, at the scale that is looked at.
STROKE = 9
HEIGHTS = (6, 64)
_WIDEST = 3.0  # times its height: letters that touch
# Grey levels of 255.
_INK_SPREAD = 30
# Shares.
_SHARP = 0.60
_FILL = (0.12, 0.92)
# More marks than any page of text has: a texture.
_MOST_MARKS = 4000


class Box(NamedTuple):
    """Rows `top` to `bottom` and columns `left` to `right`, the ends not included."""

    top: int
    left: int
    bottom: int
    right: int


@dataclass(frozen=True)
class Plane:
    """One picture at one scale, looked at for bright ink of one contrast.

    Attributes:
        ink: Grey levels [H, W]; inverted where dark ink is looked for.
        stroke: How far each pixel stands out as part of a thin stroke.
        contrast: How far ink has to stand out.
        scale: Pixels of the whole picture along a side of one of these.
    """

    ink: npt.NDArray[np.int16]
    stroke: npt.NDArray[np.int16]
    contrast: int
    scale: int


@dataclass(frozen=True)
class Mark:
    """One connected component that could be a letter."""

    box: Box
    ink: float

    @property
    def height(self) -> int:
        """Rows."""
        return self.box.bottom - self.box.top


def marks_of(plane: Plane) -> list[Mark]:
    """Components of bright strokes that have the size, the edge and the ink of a letter."""
    labels, num_labels = ndimage.label(plane.stroke >= plane.contrast, structure=np.ones((3, 3)))
    if num_labels == 0:
        return []
    marks = []
    for number, place in enumerate(ndimage.find_objects(labels), start=1):
        box = Box(place[0].start, place[1].start, place[0].stop, place[1].stop)
        if not _has_letter_size(box):
            continue
        inside = labels[place] == number
        if not _FILL[0] <= inside.mean() <= _FILL[1]:
            continue
        mark = _mark(box, inside, plane)
        if mark is not None:
            marks.append(mark)
    return marks if len(marks) <= _MOST_MARKS else []


def _has_letter_size(box: Box) -> bool:
    height, width = box.bottom - box.top, box.right - box.left
    return HEIGHTS[0] <= height <= HEIGHTS[1] and 1 <= width <= _WIDEST * height


def _mark(box: Box, inside: npt.NDArray[np.bool_], plane: Plane) -> Mark | None:
    """Return the component as a mark if its edges are sharp, else None."""
    # One pixel more on each side: an edge is a step to what lies outside.
    rows = slice(max(box.top - 1, 0), box.bottom + 1)
    columns = slice(max(box.left - 1, 0), box.right + 1)
    around = plane.ink[rows, columns]
    step = ndimage.maximum_filter(around, 3) - ndimage.minimum_filter(around, 3)
    own = step[
        box.top - rows.start : box.bottom - rows.start,
        box.left - columns.start : box.right - columns.start,
    ]
    place = (slice(box.top, box.bottom), slice(box.left, box.right))
    edge = inside & ~ndimage.binary_erosion(inside)
    contrast = float(np.percentile(plane.stroke[place][inside], 80))
    if float(np.median(own[edge])) < _SHARP * contrast:
        return None
    return Mark(box, float(np.percentile(plane.ink[place][inside], 80)))


def chains_of(marks: Sequence[Mark]) -> list[list[Mark]]:
    """Chain marks that stand side by side."""
    marks = sorted(marks, key=lambda mark: mark.box.left)
    parent = list(range(len(marks)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, left in enumerate(marks):
        reach = left.box.right + 1.5 * left.height
        for j in range(i + 1, len(marks)):
            if marks[j].box.left > reach:
                break
            if _are_neighbours(left, marks[j]):
                parent[root(j)] = root(i)
    chains: dict[int, list[Mark]] = {}
    for i, mark in enumerate(marks):
        chains.setdefault(root(i), []).append(mark)
    return list(chains.values())


def _are_neighbours(left: Mark, right: Mark) -> bool:
    overlap = min(left.box.bottom, right.box.bottom) - max(left.box.top, right.box.top)
    smaller, larger = sorted((left.height, right.height))
    gap = right.box.left - left.box.right
    return (
        larger <= 2 * smaller
        and overlap >= 0.6 * smaller
        and -0.3 * larger <= gap <= 1.2 * larger
        and abs(left.ink - right.ink) <= _INK_SPREAD
    )


def around(boxes: Sequence[Box]) -> Box:
    """Return the smallest box that holds all of these."""
    tops, lefts, bottoms, rights = zip(*boxes, strict=True)
    return Box(min(tops), min(lefts), max(bottoms), max(rights))


def merged(boxes: Sequence[Box]) -> list[Box]:
    """Unite boxes that overlap, where the box around both is hardly larger than the two."""
    left = list(dict.fromkeys(boxes))
    done: list[Box] = []
    while left:
        box = left.pop()
        partner = next((other for other in left if _belong_together(box, other)), None)
        if partner is None:
            done.append(box)
        else:
            # The union may belong to what was done before: look at all again.
            left = [other for other in left if other != partner] + done
            left.append(around([box, partner]))
            done = []
    return done


def _belong_together(one: Box, two: Box) -> bool:
    overlap = max(min(one.bottom, two.bottom) - max(one.top, two.top), 0) * max(
        min(one.right, two.right) - max(one.left, two.left), 0
    )
    both = _area(one) + _area(two) - overlap
    return overlap > 0 and _area(around([one, two])) <= 1.3 * both


def _area(box: Box) -> int:
    return (box.bottom - box.top) * (box.right - box.left)
