"""Report texts: files, columns of tables, DICOM structured reports.

Texts are left as they are: names and dates in them stay. They are for this site's own training and
leave it in no form but what the site's policy lets out of words (`client.words`).
"""

from collections.abc import Collection, Iterator
from pathlib import Path

from pydicom.dataset import Dataset

from medfed.client.data.archive.inventory import Inventory, Unusable, printable
from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.dicom.elements import text_of
from medfed.client.data.dicom.opening import parsing
from medfed.client.data.labels.collecting import Collected
from medfed.client.data.labels.file_patterns import named_files
from medfed.client.data.labels.headers import open_header
from medfed.client.data.labels.index import ArchiveIndex
from medfed.client.data.labels.references import KEYWORDS, referenced_series, references_of
from medfed.client.data.labels.said import WHOLE, About, Place
from medfed.client.data.labels.section import ReportSection
from medfed.client.data.labels.table_labels import read_table_reports
from medfed.client.data.labels.text_files import name_of, read_report

_STRUCTURED = "DICOM structured report"
_MAX_DEPTH = 32
_MAX_ITEMS = 20_000


def read_reports(
    section: ReportSection,
    index: ArchiveIndex,
    inventory: Inventory,
    collected: Collected,
    folder: Path,
    limits: ReadLimits,
    not_images: Collection[int],
) -> None:
    """Add the texts of a section; series in `not_images` get none.

    Raises:
        DataError: A folder is missing, or a table cannot be read.
    """
    if section.table is not None:
        read_table_reports(section.table, index, collected, folder, limits)
    elif section.structured_reports:
        _read_structured(index, inventory, collected, folder, limits)
    else:
        _read_files(section, index, collected, folder, limits, not_images)


def _read_files(
    section: ReportSection,
    index: ArchiveIndex,
    collected: Collected,
    folder: Path,
    limits: ReadLimits,
    not_images: Collection[int],
) -> None:
    report = collected.source(section.pattern, "reports")
    for one in named_files(section.folder, section.pattern, index, folder, limits):
        report.rows += 1
        if isinstance(one, Unusable):
            collected.problems.append(one)
            continue
        places = [place for place in one.found.places if place[0] not in not_images]
        if not places:
            collected.refuse(report, 0, one.found.reason)
            continue
        try:
            text = read_report(one.path, section.encoding, limits).strip()
        except FileProblem as problem:
            collected.problems.append(problem.as_unusable(one.path))
            continue
        if not text:
            report.empty += 1
            continue
        report.matched += 1
        collected.add(name_of(one.path, folder), 0, places, About(report=text))


def _read_structured(
    index: ArchiveIndex, inventory: Inventory, collected: Collected, folder: Path,
    limits: ReadLimits,
) -> None:  # fmt: skip
    report = collected.source("structured reports in the archive", "reports")
    for one in inventory.unusable:
        if one.what != _STRUCTURED:
            continue
        report.rows += 1
        path = Path(one.path)
        try:
            opened = open_header(path, (*KEYWORDS, "ContentSequence"), limits)
            with parsing():
                text = "\n".join(_lines(opened.dataset))
                references = references_of(opened.dataset)
        except FileProblem as problem:
            collected.problems.append(problem.as_unusable(path))
            continue
        places: list[Place] = [(at, WHOLE) for at in referenced_series(references, index)]
        if not places:
            places = [(at, WHOLE) for at in index.of_uid("study", references.study)]
        if not places:
            collected.refuse(
                report, 0, f"{printable(path.name)}: its images are not in the archive"
            )
        elif not text:
            report.empty += 1
        else:
            report.matched += 1
            collected.add(name_of(path, folder), 0, places, About(report=text))


def _lines(dataset: Dataset) -> Iterator[str]:
    """The content tree as lines: texts, codes and numbers; persons, dates and UIDs are left out."""
    waiting: list[tuple[Dataset, int]] = [
        (item, 1) for item in reversed(dataset.get("ContentSequence") or ())
    ]
    for _ in range(_MAX_ITEMS):
        if not waiting:
            return
        item, depth = waiting.pop()
        line = _line(item)
        if line:
            yield line
        if depth < _MAX_DEPTH:
            below = item.get("ContentSequence") or ()
            waiting += [(one, depth + 1) for one in reversed(below)]


def _line(item: Dataset) -> str:
    kind = text_of(item, "ValueType")
    name = _meaning(item, "ConceptNameCodeSequence")
    value = ""
    if kind == "CONTAINER":
        return name
    if kind == "TEXT":
        value = text_of(item, "TextValue")
    elif kind == "CODE":
        value = _meaning(item, "ConceptCodeSequence")
    elif kind == "NUM":
        for measured in item.get("MeasuredValueSequence") or ():
            unit = _meaning(measured, "MeasurementUnitsCodeSequence")
            value = f"{text_of(measured, 'NumericValue')} {unit}".strip()
    return f"{name}: {value}" if name and value else value


def _meaning(item: Dataset, keyword: str) -> str:
    return next((text_of(code, "CodeMeaning") for code in item.get(keyword) or ()), "")
