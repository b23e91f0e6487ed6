"""RT structure sets: closed outlines in patient coordinates, onto the slices they were drawn on.

Source: DICOM PS3.3 C.8.8.5, C.8.8.6. Several outlines of a structure on a slice combine by the
even-odd rule: an inner one is a hole, whether the set says CLOSED_PLANAR or CLOSEDPLANAR_XOR.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.dicom.elements import number_of, numbers_of, text_of
from medfed.client.data.dicom.opening import parsing
from medfed.client.data.labels.grid import SourceGrid
from medfed.client.data.labels.headers import open_header
from medfed.client.data.labels.mask_parts import Layer
from medfed.client.data.labels.outlines import fill_outlines
from medfed.client.data.labels.references import KEYWORDS, References, references_of

_KEYWORDS = (*KEYWORDS, "StructureSetROISequence", "ROIContourSequence")
_CLOSED = frozenset({"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"})
# How far an outline may lie from its slice, in slices.
_OFF_SLICE = 0.25
_FEWEST_CORNERS = 3
_FARTHEST_MM = 1e6

Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Structures:
    """What a structure set holds.

    Attributes:
        names: Name by ROI number.
        outlines: Closed outlines by ROI number, [N, 3] each, mm, left, posterior, superior.
        open: How many points and open lines a ROI has by its number: they hold no pixels.
        references: What it was drawn on.
    """

    names: Mapping[int, str]
    outlines: Mapping[int, tuple[Points, ...]]
    open: Mapping[int, int]
    references: References


def read_structures(path: Path, limits: ReadLimits) -> Structures:
    """Return the structure set at `path`.

    Raises:
        FileProblem: It is none that can be read.
    """
    opened = open_header(path, _KEYWORDS, limits)
    with parsing():
        dataset = opened.dataset
        rois = dataset.get("StructureSetROISequence") or ()
        if not rois:
            raise FileProblem(
                "Expected a structure set, got an object without ROIs. Export it again.",
                "structure set without ROIs",
            )
        outlines: dict[int, list[Points]] = defaultdict(list)
        others: dict[int, int] = defaultdict(int)
        for roi in dataset.get("ROIContourSequence") or ():
            number = int(number_of(roi, "ReferencedROINumber") or 0)
            for contour in roi.get("ContourSequence") or ():
                points = _points(contour)
                if text_of(contour, "ContourGeometricType") not in _CLOSED or len(points) < (
                    _FEWEST_CORNERS
                ):
                    others[number] += 1
                # One outline written twice would cancel itself out.
                elif not any(np.array_equal(points, one) for one in outlines[number][-4:]):
                    outlines[number].append(points)
        return Structures(
            names={int(number_of(roi, "ROINumber") or 0): text_of(roi, "ROIName") for roi in rois},
            outlines={number: tuple(found) for number, found in outlines.items() if found},
            open=dict(others),
            references=references_of(dataset),
        )


def _points(contour: Dataset) -> Points:
    numbers = numbers_of(contour, "ContourData")
    # Beyond a kilometre is damage, and overflows later. NaN compares as false.
    if len(numbers) % 3 or not (np.abs(numbers) < _FARTHEST_MM).all():
        raise FileProblem(
            "Expected outlines of points with three coordinates, got others. Export the structure "
            "set again."
        )
    return np.asarray(numbers, dtype=np.float64).reshape(-1, 3)


def place_outlines(
    outlines: tuple[Points, ...], grid: SourceGrid
) -> tuple[dict[int, list[Points]], int]:
    """Return outlines as rows and columns by slice, and how many lie beyond the first or last.

    Raises:
        FileProblem: The series has no place in space; an outline lies between slices or across
            them.
    """
    if not grid.is_placed:
        raise FileProblem(
            "Expected slices with a place in space, got some without: outlines cannot be put on "
            "them.",
            "image without place",
        )
    placed: dict[int, list[Points]] = defaultdict(list)
    beyond = 0
    low, high = float(grid.heights_mm.min()), float(grid.heights_mm.max())
    for points in outlines:
        height = points @ grid.normal
        if height.max() < low - grid.gap_mm / 2 or height.min() > high + grid.gap_mm / 2:
            beyond += 1
            continue
        at, _ = grid.slice_at(points[0])
        off = float(np.abs(height - grid.heights_mm[at]).max() / grid.gap_mm)
        if off > _OFF_SLICE:
            raise FileProblem(
                f"Expected outlines on the slices of its series, got one {off:.2g} slices beside: "
                "it lies between slices or across them. Export the structure set on the grid of "
                "its images.",
                "outline between slices",
            )
        placed[at].append(grid.pixels_of(points, at))
    return placed, beyond


def reaches_out(outline: Points, grid: SourceGrid) -> bool:
    """Whether an outline, as rows and columns, leaves the picture by more than a pixel."""
    return bool((outline < -1.5).any() or (outline > np.asarray(grid.shape[1:]) + 0.5).any())


def structure_layers(
    path: Path, structures: tuple[tuple[int, int], ...], grid: SourceGrid, limits: ReadLimits
) -> Iterator[Layer]:
    """Yield structures with where they are, [F, H, W], on `grid`.

    Args:
        path: The structure set.
        structures: ROI number and index of the structure that it is.
        grid: Of the source series.
        limits: What the file is held to.

    Raises:
        FileProblem: It cannot be read, or does not lie on the grid.
    """
    found = read_structures(path, limits)
    for roi, index in structures:
        layer = np.zeros(grid.shape, np.bool_)
        placed, _ = place_outlines(found.outlines.get(roi, ()), grid)
        for at, outlines in placed.items():
            layer[at] = fill_outlines(outlines, (grid.shape[1], grid.shape[2]))
        yield Layer(index, layer)
