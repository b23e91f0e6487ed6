"""Reads published tables (CSV, or tab separated): header, rows and keys are checked, by line."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medfed.common.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as checked.

    Attributes:
        path: The file.
        content: Its bytes, for a digest.
        header: Column names in the file's order.
        rows: Values by column name, by line number (1-based; a row over several lines has its
            last one).
    """

    path: Path
    content: bytes
    header: tuple[str, ...]
    rows: Mapping[int, Mapping[str, str]]


def read_table(
    path: Path,
    *,
    columns: Sequence[str],
    keys: Sequence[str] = (),
    optional: Sequence[str] = (),
    how_to_get: str,
) -> Table:
    """Read the table at `path`: UTF-8, with or without byte order mark; tabs or commas.

    Args:
        path: The file.
        columns: Published columns that the loader reads; there may be more.
        keys: Those of `columns` that no row may leave empty.
        optional: Those of `columns` that may all be missing.
        how_to_get: The publisher's page, for the error.

    Raises:
        DataError: Not such a table, a column missing or twice, a row that is longer or shorter
            than the header, an empty key. Says file, line and column.
    """
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text, got {error}. {how_to_get}") from None
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: dict[int, Mapping[str, str]] = {}
    try:
        header = tuple(reader.fieldnames or ())
        _check_header(path, header, columns, optional)
        for row in reader:
            _check_row(path, reader.line_num, row, len(header), keys)
            rows[reader.line_num] = row
    except csv.Error as error:
        raise DataError(
            f"{path}, after line {reader.line_num}: not valid CSV ({error}). Mend it, or fetch "
            "the file again."
        ) from None
    return Table(path=path, content=content, header=header, rows=rows)


def line_of_key(table: Table, column: str) -> dict[str, int]:
    """Return the line number by value of `column`.

    Raises:
        DataError: A value in two rows.
    """
    lines: dict[str, int] = {}
    for line, row in table.rows.items():
        first = lines.setdefault(row[column], line)
        if first != line:
            raise DataError(
                f"{table.path} line {line}, column {column}: {row[column]} is also in line "
                f"{first}. Delete one of the two lines."
            )
    return lines


def _check_header(
    path: Path, names: Sequence[str], columns: Sequence[str], optional: Sequence[str]
) -> None:
    missing = [name for name in columns if name not in names]
    if set(missing) <= set(optional) and len(set(names)) == len(names):
        return
    raise DataError(
        f"{path} line 1: expected the columns {', '.join(columns)}, each once, "
        + f"got {', '.join(names) or 'nothing'}"
        + (f" (missing: {', '.join(missing)})" if missing else "")
        + ". Restore the published header."
    )


def _check_row(
    path: Path,
    line: int,
    row: Mapping[str | None, object],
    num_columns: int,
    keys: Sequence[str],
) -> None:
    if None in row or None in row.values():
        raise DataError(
            f"{path} line {line}: expected {num_columns} values, got "
            + ("more" if None in row else "fewer")
            + ". Mend that line."
        )
    for name in keys:
        if not row[name]:
            raise DataError(
                f"{path} line {line}: column {name} is empty. Fill it in, or delete the line."
            )
