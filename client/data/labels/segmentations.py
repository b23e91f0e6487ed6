"""DICOM segmentations: which segment is where on the slices that they were made on.

BINARY, FRACTIONAL (a pixel counts from one half on) and LABELMAP, sparse or not, in any order of
frames, cropped, flipped or transposed against their source.

On pydicom alone: highdicom, which the tests compare with, insists on attributes that other software
leaves out, and reads pixels without limits. Where frames lie on a series: `landing`; their pixels:
`segment_frames`.

Source: DICOM PS3.3 A.51, C.8.20.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset

from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.dicom.elements import number_of, text_of
from medfed.client.data.dicom.frames import FrameHeader
from medfed.client.data.dicom.geometry import Plane
from medfed.client.data.dicom.opening import parsing
from medfed.client.data.labels.grid import plane_of
from medfed.client.data.labels.headers import open_header
from medfed.client.data.labels.references import KEYWORDS, References, references_of
from medfed.client.data.labels.segment_frames import FRAME_KEYWORDS, check_frames

_KEYWORDS = (
    *KEYWORDS,
    *FRAME_KEYWORDS,
    *("SegmentationType", "SegmentSequence", "MaximumFractionalValue"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
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
        size = check_frames(opened, limits)
        _check_descriptions(dataset, size.frames)
        segments = [_segment(one) for one in dataset.get("SegmentSequence") or ()]
        return SegFacts(
            kind=kind,
            # Of a label map, 0 is the background, which may be described too.
            segments=tuple(one for one in segments if one[0]),
            frames=tuple(_frame(dataset, at, kind) for at in range(size.frames)),
            full=float(number_of(dataset, "MaximumFractionalValue") or 255),
            shape=(size.rows, size.columns),
            references=references_of(dataset),
        )


def _check_descriptions(dataset: Dataset, frames: int) -> None:
    described = len(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    # None of any: then all of them are alike, or there is one alone.
    if described and described != frames:
        raise FileProblem(
            f"Expected a description of each of {frames:,} frames, got {described:,}: nobody can "
            "tell which is which. Export it again.",
            "header and pixels disagree",
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
