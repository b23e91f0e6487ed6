"""`Table`, and how numbers are written in it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

ABSENT = "\u2013"


@dataclass(frozen=True)
class Table:
    """A table as text, ready for a page, a terminal or a CSV file.

    Attributes:
        columns: Headings.
        rows: Cells, one for each heading.
        strong: Rows that stand out, by index.
        text: Columns that hold text, by index; the others hold figures. The first always does.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    strong: frozenset[int] = frozenset()
    text: frozenset[int] = frozenset({0})

    def __bool__(self) -> bool:
        """Whether there is a row."""
        return bool(self.rows)


def without_absent(table: Table) -> Table:
    """Leave out columns in which no row has anything: of models that a run did not train."""
    kept = [
        i
        for i in range(len(table.columns))
        if i in table.text or any(row[i] != ABSENT for row in table.rows)
    ]
    return replace(
        table,
        columns=tuple(table.columns[i] for i in kept),
        rows=tuple(tuple(row[i] for i in kept) for row in table.rows),
        text=frozenset(kept.index(i) for i in table.text),
    )


def to_markdown(table: Table) -> str:
    """Return a table for a README or an issue."""
    align = ["---" if i in table.text else "---:" for i in range(len(table.columns))]
    lines = [table.columns, align, *table.rows]
    escaped = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def figure(value: float | None, digits: int = 3) -> str:
    """A figure with `digits` decimals, or a dash."""
    return ABSENT if value is None else f"{value:.{digits}f}"


def whole(value: float | None) -> str:
    """A count with thin spaces between thousands, or a dash."""
    return ABSENT if value is None else f"{int(value):,}".replace(",", "\u202f")


def num_bytes(value: int) -> str:
    """Bytes in decimal units, three figures: 1.25 MB, 59.9 MB, 501 kB."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if value >= size:
            scaled = value / size
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f} {unit}"
    return f"{value} B"


def seconds(value: float | None) -> str:
    """A duration: 0.42 s, 12.3 s, 3 min 05 s, 2 h 05 min."""
    if value is None:
        return ABSENT
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def small(value: float) -> str:
    """A delta or the like, as short as it gets: 1e-5, 2.5e-4, 0.01."""
    if value >= 0.01:
        return f"{value:g}"
    mantissa, _, exponent = f"{value:e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def counted(number: int, noun: str) -> str:
    """`1 site`, `2 sites`."""
    return f"{whole(number)} {noun}{'' if number == 1 else 's'}"


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the known values, or None without any."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def in_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key by which site-2 comes before site-10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return tuple((0, int(p), p) if p.isascii() and p.isdigit() else (1, 0, p) for p in parts)
