"""Reads what other processes are writing: a file that is missing or damaged stops nothing."""

import json
import math
from pathlib import Path
from typing import Any

Table = dict[str, Any]
Signature = tuple[tuple[int, int, int], ...]


class Files:
    """Reads files, and remembers which could not be.

    Attributes:
        unreadable: One line for each damaged file, with the reason.
    """

    def __init__(self) -> None:
        self.unreadable: list[str] = []

    def text(self, path: Path) -> str:
        """Return a file's text; nothing if it is not there."""
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            self.note(path, error)
            return ""

    def table(self, path: Path) -> Table:
        """Return a JSON table; an empty one if the file is missing or damaged."""
        text = self.text(path)
        if not text:
            return {}
        try:
            table = json.loads(text)
            if not isinstance(table, dict):
                raise TypeError("expected a table")
        except (ValueError, TypeError, RecursionError) as error:
            self.note(path, error)
            return {}
        return table

    def lines(self, path: Path) -> list[Table]:
        """Return the tables of a file of JSON lines.

        The last line may be half written: without its line end it is left out. Others that cannot
        be read are counted as damage, and left out too.
        """
        tables, damaged = [], 0
        for line in self.text(path).split("\n")[:-1]:
            try:
                table = json.loads(line)
            except (ValueError, RecursionError):
                table = None
            if isinstance(table, dict):
                tables.append(table)
            else:
                damaged += 1
        if damaged:
            self.note(path, f"{damaged} line{'s' if damaged > 1 else ''} left out")
        return tables

    def note(self, path: Path, why: object) -> None:
        """Remember that a file cannot be read."""
        self.unreadable.append(f"{path}: {why}")


def signature(paths: list[Path]) -> Signature:
    """Return what changes whenever one of the files does."""
    found = []
    for path in paths:
        try:
            stat = path.stat()
            found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        except OSError:
            found.append((0, 0, 0))
    return tuple(found)


def number(value: object) -> int:
    """Return a whole number that a file should hold there; 0 for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def real(value: object) -> float | None:
    """Return a finite number that a file should hold there; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def words(value: object) -> str:
    """Return text that a file should hold there; "" for anything else.

    On one line, and of letters that can be shown: what a site sent must not steer a terminal.
    """
    if not isinstance(value, str):
        return ""
    return "".join(c if c.isprintable() else "?" for c in " ".join(value.split()))


def table_of(value: object) -> Table:
    """Return a table that a file should hold there; an empty one for anything else."""
    return {words(key): inside for key, inside in value.items()} if isinstance(value, dict) else {}
