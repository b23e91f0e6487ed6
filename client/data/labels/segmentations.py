"""DICOM segmentations: which segment is where on the slices that they were made on.

BINARY, FRACTIONAL (a pixel counts from one half on) and LABELMAP, sparse or not, in any order of
frames, cropped, flipped or transposed against their source.

On pydicom alone: highdicom, which the tests compare with, insists on attributes that other software
leaves out, and reads pixels without limits.

Source: DICOM PS3.3 A.51, C.8.20.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.dicom.decoding import read_pixels
from medfed.client.data.dicom.elements import number_of, text_of
from medfed.client.data.dicom.frames import FrameHeader
from medfed.client.data.dicom.geometry import Plane
from medfed.client.data.dicom.opening import parsing
from medfed.client.data.labels.grid import TOLERANCE, SourceGrid, plane_of, same_uid
from medfed.client.data.labels.headers import open_header
from medfed.client.data.labels.references import KEYWORDS, References, references_of

_KEYWORDS = (
    *KEYWORDS,
    *("SegmentationType", "SegmentSequence", "MaximumFractionalValue", "Rows", "Columns"),
    *("NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SourceImageSequence"),
)
_TYPES = ("BINARY", "FRACTIONAL", "LABELMAP")


@dataclass(frozen=True)
class SegFrame:
    """One frame.

    Attributes:
        segment: Its number; 0 of a label map, whose pixels say it.
        plane: Where it is; parts may be empty.
        source: SOP instance UID of the image that it was made on, and the frame in it, from 1.
    """

    segment: int
    plane: Plane
    source: tuple[str, int]


@dataclass(frozen=True)
class SegFacts:
    """What the header of a segmentation says.

    Attributes:
        kind: BINARY, FRACTIONAL or LABELMAP.
        segments: Number and names of each segment.
        frames: In order.
        full: Value of a fractional pixel that is wholly inside.
        shape: H, W.
        references: What it was made on.
    """

    kind: str
    segments: tuple[tuple[int, tuple[str, ...]], ...]
    frames: tuple[SegFrame, ...]
    full: float
    shape: tuple[int, int]
    references: References


def read_segmentation(path: Path, limits: ReadLimits) -> SegFacts:
    """Return what the header at `path` says.

    Raises:
        FileProblem: It is no segmentation that can be read.
    """
    opened = open_header(path, _KEYWORDS, limits)
    with parsing():
        dataset = opened.dataset
        kind = text_of(dataset, "SegmentationType")
        if kind not in _TYPES or not opened.pixel_tag:
            raise FileProblem(
                f"Expected a segmentation of type {', '.join(_TYPES)} with pixels, got "
                f"{kind or 'another object'}. Export it as one of these.",
                "segmentation of another type",
            )
        count = max(1, int(number_of(dataset, "NumberOfFrames") or 1))
        if count > limits.max_frames:
            raise FileProblem(limits.against_pixels(0, count, 0, 0), "beyond the limits", "refused")
        segments = [_segment(one) for one in dataset.get("SegmentSequence") or ()]
        return SegFacts(
            kind=kind,
            # Of a label map, 0 is the background, which may be described too.
            segments=tuple(one for one in segments if one[0]),
            frames=tuple(_frame(dataset, at, kind) for at in range(count)),
            full=float(number_of(dataset, "MaximumFractionalValue") or 255),
            shape=(int(number_of(dataset, "Rows") or 0), int(number_of(dataset, "Columns") or 0)),
            references=references_of(dataset),
        )


def _segment(item: Dataset) -> tuple[int, tuple[str, ...]]:
    names = [text_of(item, "SegmentLabel"), text_of(item, "SegmentDescription")]
    for code in item.get("SegmentedPropertyTypeCodeSequence") or ():
        names.append(text_of(code, "CodeMeaning"))
    number = int(number_of(item, "SegmentNumber") or 0)
    return number, tuple(dict.fromkeys(name for name in names if name))


def _frame(dataset: Dataset, at: int, kind: str) -> SegFrame:
    header = FrameHeader(dataset, at)
    plane = plane_of(header)
    segment = 0
    source: tuple[str, int] = ("", 1)
    for group in _groups(dataset, at):
        if kind != "LABELMAP" and not segment:
            for item in group.get("SegmentIdentificationSequence") or ():
                segment = int(number_of(item, "ReferencedSegmentNumber") or 0)
        if not source[0]:
            source = _source(group)
    return SegFrame(segment, plane, source)


def _source(group: Dataset) -> tuple[str, int]:
    for derived in group.get("DerivationImageSequence") or ():
        images = list(derived.get("SourceImageSequence") or ())
        # Of several, no one is the slice that the frame lies on.
        if len(images) == 1:
            frame = number_of(images[0], "ReferencedFrameNumber")
            return text_of(images[0], "ReferencedSOPInstanceUID"), int(frame or 1)
    return "", 1


def _groups(dataset: Dataset, at: int) -> Iterator[Dataset]:
    each = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    if at < len(each):
        yield each[at]
    yield from dataset.get("SharedFunctionalGroupsSequence") or ()


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
) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
    """Yield structures with where they are, [F, H, W], on `grid`.

    Args:
        path: The segmentation.
        structures: Segment number and index of the structure that it is.
        grid: Of the source series.
        key: The site's pseudonym key, for UIDs of copies.
        limits: What its pixels are held to.

    Raises:
        UnreadableImageError: It cannot be decoded, or does not lie on the grid.
    """
    facts = read_segmentation(path, limits)
    landings = land(facts, grid, key)
    values = read_pixels(path, limits).values
    if len(values) != len(landings) or values.ndim != 3:
        raise FileProblem(
            f"Expected {len(landings)} frames of one value a pixel, got {list(values.shape)}."
        )
    for segment, index in structures:
        layer = np.zeros(grid.shape, np.bool_)
        for frame, landing, pixels in zip(facts.frames, landings, values, strict=True):
            if facts.kind == "LABELMAP":
                _paste(layer, landing, pixels == segment)
            elif frame.segment == segment:
                inside = pixels >= facts.full / 2 if facts.kind == "FRACTIONAL" else pixels > 0
                _paste(layer, landing, inside)
        yield index, layer


def _paste(layer: npt.NDArray[np.bool_], landing: Landing, inside: npt.NDArray[np.bool_]) -> None:
    own = np.argwhere(inside)
    if not own.size:
        return
    there = own @ np.asarray(landing.turn).T + np.asarray(landing.origin)
    if (there < 0).any() or (there >= layer.shape[1:]).any():
        raise FileProblem(
            "Expected a segmentation within its image, got one that reaches beyond it.",
            "another grid",
        )
    layer[landing.at, there[:, 0], there[:, 1]] = True
