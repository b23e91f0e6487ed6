"""Reads the first sheet of an Excel file (.xlsx) as a table: a header, then a row a line.

Publishers hand out a few labels so. Numbers are texts as the file holds them; formulas give the
value that was saved, dates their serial number. Part 1, 18.3 of ECMA-376 describes the sheets.
"""

import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from medfed.common.errors import DataError
from medfed.simulations.datasets.tables import Table

_SHEET = "xl/worksheets/sheet1.xml"
_STRINGS = "xl/sharedStrings.xml"
_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_CELL = re.compile(r"([A-Z]{1,3})(\d+)")

# Far above the largest, about 1 MB: what unpacks to more is not read into memory.
_MAX_BYTES = 50_000_000
_DAMAGE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError)


def read_xlsx(path: Path, *, columns: Sequence[str], how_to_get: str) -> Table:
    """Read the first sheet of the .xlsx at `path`.

    Empty rows are left out, empty cells are "".

    Args:
        path: The file.
        columns: Published columns that the loader reads; there may be more.
        how_to_get: The publisher's page, for the error.

    Raises:
        DataError: No such file format, or a column missing or twice. Says file and what is wrong.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
            strings = _strings(_parse(archive, _STRINGS)) if _STRINGS in members else []
            cells = _cells(_parse(archive, _SHEET), strings)
    except (*_DAMAGE, KeyError, ValueError, IndexError, ElementTree.ParseError) as error:
        reason = str(error) or type(error).__name__
        raise DataError(
            f"{path} cannot be read as an Excel sheet ({reason}). {how_to_get}"
        ) from None
    lines = sorted(cells)
    header_of = cells[lines[0]] if lines else {}
    header = tuple(text.strip() for text in header_of.values() if text.strip())
    missing = [name for name in columns if name not in header]
    if missing or len(set(header)) != len(header):
        raise DataError(
            f"{path} line 1: expected the columns {', '.join(columns)}, each once, got "
            f"{', '.join(header) or 'nothing'}. Restore the published header."
        )
    named = [(letters, text.strip()) for letters, text in header_of.items() if text.strip()]
    return Table(
        path=path,
        content=path.read_bytes(),
        header=header,
        rows={
            line: {name: cells[line].get(letters, "").strip() for letters, name in named}
            for line in lines[1:]
            if any(text.strip() for text in cells[line].values())
        },
    )


def _parse(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
    if archive.getinfo(name).file_size > _MAX_BYTES:
        raise ValueError(f"{name} unpacks to more than {_MAX_BYTES // 1_000_000} MB")
    with archive.open(name) as file:
        text = file.read(_MAX_BYTES).decode("utf-8-sig")
    # Entities could make a small file expand without end; Excel declares none.
    if "<!" in text:
        raise ValueError(f"{name} holds declarations")
    return ElementTree.fromstring(text)  # noqa: S314


def _strings(root: ElementTree.Element) -> list[str]:
    return [_text(item) for item in root.iter(f"{_MAIN}si")]


def _text(item: ElementTree.Element) -> str:
    # Runs of one text, without the phonetic ones beside it.
    runs = [item, *item.findall(f"{_MAIN}r")]
    return "".join(run.findtext(f"{_MAIN}t") or "" for run in runs)


def _cells(root: ElementTree.Element, strings: Sequence[str]) -> dict[int, dict[str, str]]:
    """The texts by column letters, in order, by line."""
    lines: dict[int, dict[str, str]] = {}
    for cell in root.iter(f"{_MAIN}c"):
        match = _CELL.fullmatch(cell.get("r", ""))
        if match is None:
            raise ValueError("a cell without place")
        kind, value = cell.get("t"), cell.findtext(f"{_MAIN}v") or ""
        if kind == "s":
            value = strings[int(value)]
        elif kind == "inlineStr":
            inline = cell.find(f"{_MAIN}is")
            value = _text(inline) if inline is not None else ""
        lines.setdefault(int(match[2]), {})[match[1]] = value
    return lines
