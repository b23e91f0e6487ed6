"""Tables as text, row by row: memory does not grow with their length.

On Python's csv module: nothing else here needs pandas, which guesses types (and so takes leading
zeros off ids) unless it is told otherwise column by column.
"""

import csv
import difflib
import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.labels.text_files import open_text

if TYPE_CHECKING:
    from _csv import Reader

DELIMITERS = (",", ";", "\t", "|")
_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
# Excel's own way of naming the delimiter, before the header.
_SEPARATOR_LINE = re.compile(r"sep=(.)\s*")
# How Excel is made to keep a cell's zeros: ="00123".
_KEPT_TEXT = re.compile(r'="([^"]*)"')
_MAX_FIELD = 4_000_000
_MAX_COLUMNS = 16_384
_MAX_NAMED = 12


@dataclass(frozen=True)
class Row:
    """A row that can be used.

    Attributes:
        line: Where it ends in the file, from 1.
        cells: By the names that were asked for.
    """

    line: int
    cells: dict[str, str]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot, and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class OpenedTable:
    """A table whose header is as it should be.

    Attributes:
        header: Its column names.
        note: How it is read: encoding and delimiter, as one sentence.
        is_guess: Whether its encoding is a guess.
        rows: In the file's order. May raise FileProblem.
    """

    header: tuple[str, ...]
    note: str
    is_guess: bool
    rows: Iterator[Row | BadRow]


@contextmanager
def open_table(
    path: Path, columns: Sequence[str], delimiter: str, encoding: str, limits: ReadLimits
) -> Iterator[OpenedTable]:
    """Open a table to read `columns` of it.

    Args:
        path: The file.
        columns: Names as in the header, where blanks around them do not count, and neither does
            case if no other column differs in case alone.
        delimiter: One of `DELIMITERS`, or "auto".
        encoding: As `open_text`.
        limits: As `open_text`.

    Raises:
        FileProblem: As `open_text`; a column missing or there twice; damaged quoting.
    """
    opened = open_text(path, encoding, limits)
    with opened.stream as stream:
        csv.field_size_limit(_MAX_FIELD)
        named, start = "", stream.tell()
        first = stream.readline(_MAX_FIELD)
        excel = _SEPARATOR_LINE.fullmatch(first.lstrip("\ufeff"))
        if excel:
            named, first = excel[1], stream.readline(_MAX_FIELD)
        else:
            stream.seek(start)
        if not first.strip():
            raise FileProblem("Expected a header in the first line, got none.", "empty table")
        chosen = (
            named if named and delimiter == "auto" else _delimiter_of(first, columns, delimiter)
        )
        reader = csv.reader(stream, delimiter=chosen, strict=True)
        if excel:
            reader = csv.reader(itertools.chain([first], stream), delimiter=chosen, strict=True)
        with _parsing(reader):
            header = tuple(cell.strip().lstrip("\ufeff") for cell in next(reader))
        places = _places(header, columns)
        words = [opened.note, f"{_NAMES.get(chosen, chosen)} separated, {opened.encoding}"]
        rows = _rows(reader, len(header), places, 1 if excel else 0)
        note = "; ".join(word for word in words if word)
        yield OpenedTable(header, note, bool(opened.note), rows)


def _rows(
    reader: "Reader", width: int, places: dict[str, int], skipped: int
) -> Iterator[Row | BadRow]:
    with _parsing(reader):
        for cells in reader:
            if not any(cells):
                continue
            line = reader.line_num + skipped
            # Empty cells behind the last column are none; other differences shift what is meant.
            if len(cells) < width or any(cells[width:]):
                yield BadRow(
                    line,
                    f"it has {len(cells)} cells and the header {width}: a separator in a text "
                    "without quotes, or one missing",
                )
                continue
            yield Row(line, {name: _text(cells[at]) for name, at in places.items()})


def _text(cell: str) -> str:
    bare = cell.strip()
    kept = _KEPT_TEXT.fullmatch(bare)
    return kept[1].strip() if kept else bare


@contextmanager
def _parsing(reader: "Reader") -> Iterator[None]:
    try:
        yield
    except csv.Error as error:
        raise FileProblem(
            f"Expected sound CSV, got damage near line {reader.line_num} ({error}): perhaps a "
            "quote that is never closed. Mend it, or export the table again.",
            "damaged table",
        ) from None
    except StopIteration:
        raise FileProblem("Expected a header, got none.", "empty table") from None


def _delimiter_of(first: str, columns: Sequence[str], delimiter: str) -> str:
    """The delimiter with which the header has the columns; else the one that makes most."""
    if delimiter != "auto":
        return delimiter
    headers = {one: _split(first, one) for one in DELIMITERS}
    wanted = {name.strip().casefold() for name in columns}

    def score(one: str) -> tuple[int, int]:
        found = {cell.strip().lstrip("\ufeff").casefold() for cell in headers[one]}
        return len(wanted & found), len(headers[one])

    # The first of equals: a comma.
    return max(DELIMITERS, key=score)


def _split(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _places(header: Sequence[str], columns: Sequence[str]) -> dict[str, int]:
    if len(header) > _MAX_COLUMNS:
        raise FileProblem(f"Expected at most {_MAX_COLUMNS:,} columns, got {len(header):,}.")
    places: dict[str, int] = {}
    for name in columns:
        wanted = name.strip()
        found = [at for at, cell in enumerate(header) if cell == wanted] or [
            at for at, cell in enumerate(header) if cell.casefold() == wanted.casefold()
        ]
        if len(found) == 1:
            places[name] = found[0]
            continue
        if found:
            raise FileProblem(
                f"Expected one column {wanted!r}, got {len(found)}. Rename all but one.",
                "column there twice",
            )
        near = difflib.get_close_matches(wanted, header, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        there = ", ".join(repr(cell) for cell in header[:_MAX_NAMED] if cell)
        more = f" and {len(header) - _MAX_NAMED} more" if len(header) > _MAX_NAMED else ""
        raise FileProblem(
            f"Expected a column {wanted!r}, got {there}{more}. {hint}If that is one column only, "
            "name the delimiter.",
            "column missing",
        )
    return places
