"""Labels in tables: a row says of one image, series, study or patient what its cells hold."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.deidentification.identity import normalised
from medfed.client.data.labels.collecting import Collected, SourceReport
from medfed.client.data.labels.guessed import note_guessed
from medfed.client.data.labels.index import ArchiveIndex, Found, patient_aliases
from medfed.client.data.labels.said import About
from medfed.client.data.labels.section import Key, ReportTable, TableSection
from medfed.client.data.labels.spoilt_keys import suggestion_for
from medfed.client.data.labels.tables import BadRow, OpenedTable, open_table
from medfed.client.data.labels.text_files import name_of
from medfed.client.data.records import Split
from medfed.common.errors import DataError

_PRESENT = frozenset({"1", "1.0", "true", "yes", "y", "t", "x"})
_ABSENT = frozenset({"0", "0.0", "false", "no", "n", "f"})
_UNCERTAIN = frozenset({"-1", "-1.0", "u", "uncertain"})
_SPLITS: Mapping[str, Split] = {
    **dict.fromkeys(("train", "training", "val", "valid", "validation", "dev"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NUM_TRIED = 500
_NUM_PROBED = 20
# Other kinds of keys that can be tried without reading files again.
_CHEAP: tuple[Key, ...] = ("patient", "study", "series", "file")


class _BadCell(Exception):  # noqa: N818 - says which row cannot be used
    pass


def read_table_labels(
    section: TableSection,
    rename: Mapping[str, str],
    index: ArchiveIndex,
    collected: Collected,
    folder: Path,
    limits: ReadLimits,
    key: bytes,
) -> None:
    """Add what a table says.

    Args:
        section: How it is read.
        rename: Class by raw label.
        index: Images by key.
        collected: Gets the statements.
        folder: What its path is relative to.
        limits: What its size is held to.
        key: The site's pseudonym key.

    Raises:
        DataError: The table cannot be read, or a column is missing.
    """
    names = (section.label_column, *section.class_columns, *section.columns,
             section.split_column, section.patient_column)  # fmt: skip
    once: dict[About, About] = {}
    with _opened(section, [name for name in names if name], collected, folder, limits) as (
        report,
        table,
    ):
        for line, cells, found in matched_rows(section, table, index, collected, report):
            try:
                about = _about(section, rename, cells)
            except _BadCell as problem:
                collected.refuse(report, line, str(problem))
                continue
            if about == About():
                report.empty += 1
                continue
            if about.patient and _contradicts(index, found, about.patient, key):
                collected.refuse(report, line, "the image's file names another patient")
                continue
            report.matched += 1
            if table.is_guess and section.label_column:
                note_guessed(report.guessed_classes, about.present or (), rename)
            collected.add(report.name, line, found.places, once.setdefault(about, about))
            _note_patient(index, found, about.patient)


def _note_patient(index: ArchiveIndex, found: Found, patient: str) -> None:
    """Let tables that are keyed by patient find images whose files name none."""
    for number, _ in found.places if patient else ():
        if not index.series[number].patient:
            index.add_patient(number, patient)


def read_table_reports(
    section: ReportTable, index: ArchiveIndex, collected: Collected, folder: Path,
    limits: ReadLimits,
) -> None:  # fmt: skip
    """Add the texts of a table; arguments and errors as `read_table_labels`."""
    with _opened(section, section.text_columns, collected, folder, limits) as (report, table):
        for line, cells, found in matched_rows(section, table, index, collected, report):
            texts = [cells[name] for name in section.text_columns if cells[name]]
            if not texts:
                report.empty += 1
                continue
            report.matched += 1
            collected.add(report.name, line, found.places, About(report="\n\n".join(texts)))


def matched_rows(
    section: TableSection | ReportTable,
    table: OpenedTable,
    index: ArchiveIndex,
    collected: Collected,
    report: SourceReport,
) -> Iterator[tuple[int, Mapping[str, str], Found]]:
    """Yield line, cells and images of the rows whose key means any; note the others."""
    lost: list[str] = []
    for row in table.rows:
        report.rows += 1
        if isinstance(row, BadRow):
            collected.refuse(report, row.line, row.reason)
            continue
        cell = row.cells[section.key_column]
        if section.key_width and cell.isdecimal():
            cell = cell.zfill(section.key_width)
        found = index.find(section.key, cell, section.issuer)
        if found.places:
            yield row.line, row.cells, found
            continue
        collected.refuse(report, row.line, found.reason)
        if cell and len(lost) < _NUM_TRIED:
            lost.append(cell)
    report.suggestions += _suggestions(section, index, lost, any_matched=report.matched > 0)


@contextmanager
def _opened(
    section: TableSection | ReportTable,
    columns: "list[str] | tuple[str, ...]",
    collected: Collected,
    folder: Path,
    limits: ReadLimits,
) -> Iterator[tuple[SourceReport, OpenedTable]]:
    path = folder / section.file
    report = collected.source(name_of(path, folder), "table")
    wanted = list(dict.fromkeys((section.key_column, *columns)))
    try:
        with open_table(path, wanted, section.delimiter, section.encoding, limits) as table:
            report.notes.append(table.note)
            yield report, table
    except FileProblem as problem:
        # A table that was named and cannot be read: without it most labels are missing.
        raise DataError(str(problem.of(path))) from None


def _about(section: TableSection, rename: Mapping[str, str], cells: Mapping[str, str]) -> About:
    present: frozenset[str] | None = None
    absent: frozenset[str] | None = frozenset()
    leave_out = False
    if section.label_column and cells[section.label_column]:
        cell = cells[section.label_column]
        raw = cell.split(section.separator) if section.separator else [cell]
        present, absent = renamed((one.strip() for one in raw), rename), None
    elif section.class_columns:
        present, absent, leave_out = _marked(section, rename, cells)
    kept = tuple((name, cells[name]) for name in section.columns if cells[name])
    return About(
        present=present,
        absent=absent,
        leave_out=leave_out,
        split=_split(cells[section.split_column]) if section.split_column else None,
        columns=kept,
        patient=normalised(cells[section.patient_column]) if section.patient_column else "",
    )


def renamed(raw: "Iterator[str]", rename: Mapping[str, str]) -> frozenset[str]:
    """Return the classes that raw labels are."""
    return frozenset(name for one in raw if one and (name := rename.get(one, one)))


def _marked(
    section: TableSection, rename: Mapping[str, str], cells: Mapping[str, str]
) -> tuple[frozenset[str] | None, frozenset[str], bool]:
    """Classes that are there, that are not, and whether the image is not to be used."""
    present: set[str] = set()
    absent: set[str] = set()
    leave_out = says = False
    for column in section.class_columns:
        name = rename.get(column, column)
        mark = cells[column].casefold().replace(",", ".")
        if not mark or not name:
            continue
        says = True
        if mark in _UNCERTAIN:
            leave_out |= section.uncertain == "leave_out"
            (present if section.uncertain == "present" else absent).add(name)
        elif mark in _PRESENT:
            present.add(name)
        elif mark in _ABSENT:
            absent.add(name)
        else:
            raise _BadCell(
                f"column {column!r}: expected 1, 0, -1 or nothing, got {cells[column][:40]!r}"
            )
    # Two columns that are renamed to one class: it is there if either says so.
    return (frozenset(present), frozenset(absent - present), leave_out) if says else (
        None, frozenset(), False)  # fmt: skip


def _split(cell: str) -> Split | None:
    if not cell:
        return None
    split = _SPLITS.get(cell.casefold())
    if split is None:
        raise _BadCell(f"expected a split of {', '.join(_SPLITS)}, got {cell[:40]!r}")
    return split


def _contradicts(index: ArchiveIndex, found: Found, patient: str, key: bytes) -> bool:
    names = set(patient_aliases(key, patient))
    return any(
        own and names.isdisjoint(patient_aliases(key, own))
        for own in (index.series[number].patient for number, _ in found.places)
    )


def _suggestions(
    section: TableSection | ReportTable, index: ArchiveIndex, lost: list[str], *, any_matched: bool
) -> list[str]:
    said = suggestion_for(
        lost, lambda cell: bool(index.find(section.key, cell, section.issuer).places)
    )
    if any_matched or not lost:
        return said
    for kind in _CHEAP:
        if kind != section.key and any(
            index.find(kind, cell).places for cell in lost[:_NUM_PROBED]
        ):
            said.append(f'no row matches by key = "{section.key}"; "{kind}" does')
    return said
