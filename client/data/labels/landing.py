"""Where the frames of a DICOM segmentation lie on the slices that they were made on.

Shapes: F files or frames of the series, H rows, W columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.dicom.geometry import Plane
from medfed.client.data.labels.grid import (
    TOLERANCE,
    SourceGrid,
    check_frame_of_reference,
    same_uid,
)
from medfed.client.data.labels.mask_parts import Layer
from medfed.client.data.labels.segment_frames import Frame, read_frames
from medfed.client.data.labels.segmentations import SegFacts, SegFrame, read_segmentation


@dataclass(frozen=True)
class Landing:
    """Where a frame lies on a slice.

    Attributes:
        at: The slice.
        origin: Row and column there of the frame's first pixel.
        turn: 2 x 2, how row and column there grow with the frame's own: one of -1, 0, 1 each.
    """

    at: int
    origin: tuple[int, int] = (0, 0)
    turn: tuple[tuple[int, int], tuple[int, int]] = ((1, 0), (0, 1))


def land(facts: SegFacts, grid: SourceGrid, key: bytes) -> tuple[Landing, ...]:
    """Return where each frame lies.

    Raises:
        FileProblem: One lies on no slice, or is of another grid.
    """
    return tuple(_land(frame, facts.shape, grid, key) for frame in facts.frames)


def _land(frame: SegFrame, shape: tuple[int, int], grid: SourceGrid, key: bytes) -> Landing:
    if all(frame.plane) and grid.is_placed:
        return _land_in_space(frame.plane, shape, grid)
    uid, number = frame.source
    single = len(grid.uids) == 1
    for at, own in enumerate(grid.uids):
        if uid and same_uid(uid, own, key):
            if shape != grid.shape[1:]:
                raise FileProblem(
                    f"Expected a segmentation of {grid.shape[1]} x {grid.shape[2]} pixels as its "
                    f"image, got {shape[0]} x {shape[1]}.",
                    "another grid",
                )
            at = number - 1 if single else at
            if at < grid.shape[0]:
                return Landing(at)
    raise FileProblem(
        "Expected frames that say where they lie, or on which image, got others. Export the "
        "segmentation again with its source images.",
        "segmentation without place",
    )


def _land_in_space(plane: Plane, shape: tuple[int, int], grid: SourceGrid) -> Landing:
    first = np.asarray(plane.position)
    along_row, along_column = np.asarray(plane.orientation[:3]), np.asarray(plane.orientation[3:])
    rows, columns = shape[0] - 1, shape[1] - 1
    down, right = along_column * plane.spacing[0], along_row * plane.spacing[1]
    corners = np.stack([first, first + down * rows, first + right * columns])
    at, apart = grid.slice_at(first)
    off = max(apart, *(abs((corner - first) @ grid.normal) / grid.gap_mm for corner in corners))
    found = grid.pixels_of(corners, at)
    origin = np.rint(found[0])
    turn = np.stack([(found[1] - found[0]) / max(1, rows), (found[2] - found[0]) / max(1, columns)])
    turn = np.rint(turn).T
    meant = origin + np.stack([(0, 0), turn[:, 0] * rows, turn[:, 1] * columns])
    if off > TOLERANCE or np.abs(meant - found).max() > TOLERANCE * 2 or not _is_turn(turn):
        raise FileProblem(
            "Expected frames on the slices and pixels of its series, got one "
            f"{apart:.2g} slices and {np.abs(meant - found).max():.2g} pixels beside them: it was "
            "made on another series or resampled. Export it on the grid of its images.",
            "another grid",
        )
    (a, b), (c, d) = turn.astype(int).tolist()
    return Landing(at, (int(origin[0]), int(origin[1])), ((a, b), (c, d)))


def _is_turn(turn: npt.NDArray[np.float64]) -> bool:
    return bool((np.abs(turn).sum(axis=0) == 1).all() and (np.abs(turn).sum(axis=1) == 1).all())


def segment_layers(
    path: Path,
    structures: tuple[tuple[int, int], ...],
    grid: SourceGrid,
    key: bytes,
    limits: ReadLimits,
) -> Iterator[Layer]:
    """Yield where structures are on `grid`, [F, H, W]: one layer for each frame that shows one.

    No more than one frame is in memory.

    Args:
        path: The segmentation.
        structures: Segment number and index of the structure that it is.
        grid: Of the source series.
        key: The site's pseudonym key, for UIDs of copies.
        limits: What its frames are held to.

    Raises:
        UnreadableImageError: It cannot be decoded, or does not lie on the grid.
    """
    facts = read_segmentation(path, limits)
    check_frame_of_reference(facts.references.frame_of_reference, grid, key)
    landings = land(facts, grid, key)
    frames = read_frames(path, limits)
    for frame, landing, pixels in zip(facts.frames, landings, frames, strict=True):
        for segment, index in structures:
            inside = _inside(facts, frame, segment, pixels)
            if inside is not None:
                yield _placed(index, inside, landing, grid)


def _inside(
    facts: SegFacts, frame: SegFrame, segment: int, pixels: Frame
) -> npt.NDArray[np.bool_] | None:
    """Where a frame shows a segment; None if it is not about it."""
    if facts.kind == "LABELMAP":
        return np.asarray(pixels == segment)
    if frame.segment != segment:
        return None
    if facts.kind == "FRACTIONAL":
        return np.asarray(pixels >= facts.full / 2)  # type: ignore[operator]
    return np.asarray(pixels != 0)


def _placed(index: int, inside: npt.NDArray[np.bool_], landing: Landing, grid: SourceGrid) -> Layer:
    """A frame's structure in the axes of its slice, without what is beyond it: that is empty."""
    turned = inside.T if landing.turn[0][0] == 0 else inside
    cuts, place = [], []
    for axis, size in enumerate(grid.shape[1:]):
        # Of each row of the turn, one number is not 0.
        sign, length = sum(landing.turn[axis]), turned.shape[axis]
        first = landing.origin[axis] - (length - 1) * (sign < 0)
        start, stop = min(max(first, 0), size), max(min(first + length, size), 0)
        cuts.append(slice(start - first, max(start, stop) - first))
        place.append(slice(start, max(start, stop)))
        if sign < 0:
            turned = np.flip(turned, axis)
    within = turned[tuple(cuts)]
    if np.count_nonzero(within) != np.count_nonzero(inside):
        raise FileProblem(
            "Expected a segmentation within its image, got one that reaches beyond it.",
            "another grid",
        )
    return Layer(index, within, (landing.at, *place))
