"""Slices in space: their order, gaps and orientation, from positions and never from names.

Source: DICOM PS3.3 C.7.6.2.1.1 (image position and orientation). Lengths are in mm. DICOM's axes
run left, posterior, superior; ours run right, anterior, superior (RAS), as NIfTI's do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# A slice is where another is if they are nearer than this.
_SAME_MM = 1e-3
# Positions are written with few digits: gaps that differ less are one.
_TOLERANCE = 0.02
_UNEVEN = 0.1
_MAX_NAMED = 3


class Plane(NamedTuple):
    """Where a slice is.

    Attributes:
        position: Centre of its first pixel, x, y, z.
        orientation: Direction of its rows, then of its columns (6 numbers).
        spacing: Distance between rows, then between columns.
    """

    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]


@dataclass(frozen=True)
class Stack:
    """Slices in order.

    Attributes:
        order: Indices of the slices, along their normal.
        step_mm: Distance of neighbours; 0 if all are in one place.
        is_even: Whether they fill space without gaps or repetitions.
        problem: What keeps them from it, as a sentence; empty if nothing does.
    """

    order: tuple[int, ...]
    step_mm: float
    is_even: bool
    problem: str = ""


def normal_of(orientation: Sequence[float]) -> Floats | None:
    """Return the unit normal of a slice, None if the directions span no plane."""
    if len(orientation) != 6 or not np.isfinite(orientation).all():
        return None
    rows, columns = np.asarray(orientation[:3]), np.asarray(orientation[3:])
    normal = np.cross(rows, columns)
    length = float(np.linalg.norm(normal))
    return None if length < 0.5 else normal / length


def stack_slices(positions: Sequence[Sequence[float]], normal: Floats) -> Stack:
    """Order slices of one orientation along their normal and judge their distances."""
    along = np.asarray(positions, dtype=np.float64) @ normal
    order = np.argsort(along, kind="stable")
    gaps = np.diff(along[order])
    names = tuple(int(index) for index in order)
    if not gaps.size:
        return Stack(names, 0.0, True)
    if (gaps < _SAME_MM).any():
        same = int((gaps < _SAME_MM).sum())
        apart = gaps[gaps >= _SAME_MM]
        problem = f"{same} of {len(names)} slices lie where another does."
        return Stack(names, float(np.median(apart)) if apart.size else 0.0, False, problem)
    # The distance that most neighbours have; what is missing makes others a multiple of it.
    step = float(np.median(gaps))
    off = np.flatnonzero(np.abs(gaps - step) > max(_TOLERANCE * step, 10 * _SAME_MM))
    if not off.size:
        return Stack(names, float((along[order[-1]] - along[order[0]]) / len(gaps)), True)
    named = ", ".join(
        f"{gaps[at]:.3g} mm between slices {at + 1} and {at + 2}" for at in off[:_MAX_NAMED]
    )
    more = f" and {off.size - _MAX_NAMED} more" if off.size > _MAX_NAMED else ""
    problem = f"Expected slices {step:.3g} mm apart, got {named}{more}."
    is_even = bool((np.abs(gaps[off] - step) <= _UNEVEN * step).all())
    return Stack(names, step, is_even, problem)


def is_tilted(positions: Sequence[Sequence[float]], stack: Stack, normal: Floats) -> bool:
    """Whether neighbours are shifted against each other, as behind a tilted gantry."""
    first, last = (np.asarray(positions[index]) for index in (stack.order[0], stack.order[-1]))
    way = last - first
    sideways = way - (way @ normal) * normal
    return bool(np.linalg.norm(sideways) > 0.02 * max(1.0, float(np.linalg.norm(way))))


def volume_affine(planes: Sequence[Plane], step_mm: float) -> Floats:
    """Return the 4x4 affine from (slice, row, column) to mm, right, anterior, superior.

    Args:
        planes: In order.
        step_mm: Distance of neighbours; of a single slice, its thickness.
    """
    first, last = planes[0], planes[-1]
    rows, columns = np.asarray(first.orientation[:3]), np.asarray(first.orientation[3:])
    if len(planes) > 1:
        way = np.asarray(last.position) - np.asarray(first.position)
        step = way / (len(planes) - 1)
    else:
        step = np.cross(rows, columns) * step_mm
    affine = np.eye(4)
    affine[:3, 0] = step
    # Along a column of the picture the row changes, and the other way round.
    affine[:3, 1] = columns * first.spacing[0]
    affine[:3, 2] = rows * first.spacing[1]
    affine[:3, 3] = first.position
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
