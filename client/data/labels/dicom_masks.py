"""DICOM SEG and RTSTRUCT: they name the series that they were made on, and must lie on its grid."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medfed.client.data.archive.inventory import Inventory, Unusable, printable
from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.archive.walk import walk_files
from medfed.client.data.deidentification.identity import normalised
from medfed.client.data.dicom.elements import text_of
from medfed.client.data.dicom.opening import parsing
from medfed.client.data.labels.claims import Claim, Claims, MaskKind
from medfed.client.data.labels.collecting import Collected, SourceReport
from medfed.client.data.labels.grid import SourceGrid, check_frame_of_reference, read_grid
from medfed.client.data.labels.headers import open_header
from medfed.client.data.labels.index import ArchiveIndex
from medfed.client.data.labels.landing import land
from medfed.client.data.labels.references import referenced_series
from medfed.client.data.labels.said import WHOLE
from medfed.client.data.labels.section import MaskSection, Value
from medfed.client.data.labels.segmentations import SegFacts, read_segmentation
from medfed.client.data.labels.structure_sets import (
    Structures,
    place_outlines,
    reaches_out,
    read_structures,
)
from medfed.client.data.labels.text_files import name_of
from medfed.common.errors import UnreadableImageError

_WHAT: Mapping[str, MaskKind] = {"DICOM segmentation": "seg", "DICOM RTSTRUCT": "rtstruct"}
_MODALITIES: Mapping[str, MaskKind] = {"SEG": "seg", "RTSTRUCT": "rtstruct"}


@dataclass(frozen=True)
class _Search:
    """What one section looks for, and where."""

    section: MaskSection
    number: int
    index: ArchiveIndex
    collected: Collected
    report: SourceReport
    claims: Claims
    folder: Path
    limits: ReadLimits
    structures: tuple[str, ...]
    key: bytes


def find_dicom_masks(
    section: MaskSection,
    index: ArchiveIndex,
    inventory: Inventory,
    collected: Collected,
    claims: Claims,
    folder: Path,
    limits: ReadLimits,
    structures: tuple[str, ...],
    key: bytes,
) -> None:
    """Add the DICOM masks of a folder, or those that the scan of the archive came across.

    Args:
        section: Folder, kind and names of segments or ROIs.
        index: The images.
        inventory: What the scan found.
        collected: Gets what is wrong with files.
        claims: Gets the masks.
        folder: What paths are relative to.
        limits: What files are held to.
        structures: Of the data set.
        key: The site's pseudonym key.

    Raises:
        DataError: No such folder.
    """
    report = collected.source(section.folder or "DICOM masks in the archive", "masks")
    search = _Search(
        section, claims.new_section(), index, collected, report, claims, folder, limits,
        structures, key,
    )  # fmt: skip
    for path, kind in _candidates(search, inventory):
        report.rows += 1
        try:
            _claim(path, kind, search)
        except FileProblem as problem:
            collected.problems.append(problem.as_unusable(path))
        except UnreadableImageError as error:
            collected.problems.append(
                Unusable(printable(path), str(error), "unreadable", "mask that does not fit")
            )


def _candidates(search: _Search, inventory: Inventory) -> Iterator[tuple[Path, MaskKind]]:
    wanted = search.section.kind
    if not search.section.folder:
        for one in inventory.unusable:
            kind = _WHAT.get(one.what)
            if kind and wanted in ("auto", kind):
                yield Path(one.path), kind
        return
    for found in walk_files(search.folder / search.section.folder, search.limits):
        if isinstance(found, Unusable):
            search.collected.problems.append(found)
            continue
        try:
            opened = open_header(found, ("Modality", "SOPClassUID"), search.limits)
            with parsing():
                kind = _MODALITIES.get(text_of(opened.dataset, "Modality"))
        except FileProblem as problem:
            search.collected.problems.append(problem.as_unusable(found))
            continue
        if kind and wanted in ("auto", kind):
            yield found, kind


def _claim(path: Path, kind: MaskKind, search: _Search) -> None:
    found = (read_segmentation if kind == "seg" else read_structures)(path, search.limits)
    numbers = _numbers(found)
    picks = _picks(numbers, search)
    if not picks:
        there = ", ".join(repr(printable(name)) for names in numbers.values() for name in names[:1])
        search.collected.refuse(
            search.report, 0, f"{name_of(path, search.folder)}: none of its structures is wanted; "
            f"it holds {there or 'none'}",
        )  # fmt: skip
        return
    series = referenced_series(found.references, search.index)
    if not series:
        search.collected.refuse(
            search.report, 0, f"{name_of(path, search.folder)}: its images are not in the archive"
        )
        return
    fitting, reasons = _fitting(found, picks, series, search)
    if not fitting:
        raise reasons[0]
    if len(fitting) > 1 and not found.references.series:
        raise FileProblem(
            f"Expected a mask of one series, got one that names none and fits {len(fitting)}. "
            "Export it with its references.",
            "mask of several images",
        )
    search.report.matched += 1
    for number in fitting:
        source = name_of(path, search.folder)
        claim = Claim(search.number, source, path, kind, picks, uid=found.references.uid)
        search.claims.add((number, WHOLE), claim)


def _fitting(
    found: SegFacts | Structures,
    picks: Sequence[tuple[str, Value]],
    series: Sequence[int],
    search: _Search,
) -> tuple[list[int], list[UnreadableImageError]]:
    """The series whose grid the mask lies on, and why others are not."""
    fitting: list[int] = []
    reasons: list[UnreadableImageError] = []
    for number in series:
        try:
            grid = read_grid(search.index.series[number], search.limits)
            check_frame_of_reference(found.references.frame_of_reference, grid, search.key)
            if isinstance(found, SegFacts):
                land(found, grid, search.key)
            else:
                _note_outlines(found, picks, grid, search)
            fitting.append(number)
        except UnreadableImageError as error:
            reasons.append(error)
    return fitting, reasons


def _note_outlines(
    found: Structures, picks: Sequence[tuple[str, Value]], grid: SourceGrid, search: _Search
) -> None:
    for name, number in picks:
        placed, beyond = place_outlines(found.outlines.get(int(number), ()), grid)
        cut = sum(reaches_out(one, grid) for outlines in placed.values() for one in outlines)
        if cut:
            search.report.notes.append(
                f"{cut} outlines of {printable(name)!r} reach out of the picture and are cut off"
            )
        if beyond:
            search.report.notes.append(
                f"{beyond} outlines of {printable(name)!r} lie beyond the series' slices and are "
                "left out"
            )
        if found.open.get(int(number)):
            search.report.notes.append(
                f"{found.open[int(number)]} points or open lines of {printable(name)!r} hold no "
                "pixels and are left out"
            )


def _numbers(found: SegFacts | Structures) -> dict[int, tuple[str, ...]]:
    if isinstance(found, SegFacts):
        return dict(found.segments)
    # ROIs that were named and never drawn are usual.
    return {number: (name,) for number, name in found.names.items() if number in found.outlines}


def _picks(
    numbers: Mapping[int, tuple[str, ...]], search: _Search
) -> tuple[tuple[str, Value], ...]:
    """Structure and number of each segment or ROI that is wanted."""
    wanted: dict[str, Value] = dict(search.section.structures) or {
        name: name for name in search.structures
    }
    if not wanted:
        return tuple((names[0], number) for number, names in numbers.items() if names)
    picks: list[tuple[str, Value]] = []
    for structure, value in wanted.items():
        for number, names in numbers.items():
            called = {normalised(name) for name in names}
            if value == number or (isinstance(value, str) and normalised(value) in called):
                picks.append((structure, number))
    return tuple(picks)
