"""Runs against the first of them, patient by patient, as a table and as CSV."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medfed.simulations.reporting.sweep_statistics import p_text
from medfed.simulations.reporting.tables import Table
from medfed.simulations.reporting.uncertainty import interval_text

if TYPE_CHECKING:
    from medfed.common.tasks import Figure
    from medfed.simulations.uncertainty.between import Paired

_RESAMPLES = 2000


def paired_tests(folders: Sequence[Path]) -> "tuple[Paired, ...]":
    """Return every further run against the first.

    Raises:
        RunError: Their held-out patients cannot be paired, or read.
    """
    # torch takes seconds to import, and only these figures need it.
    from medfed.simulations.uncertainty.between import against_first

    return against_first(folders, resamples=_RESAMPLES)


def paired_table(
    names: Sequence[str], tests: "Sequence[Paired]", figures: "Sequence[Figure]"
) -> Table:
    """Return a row a run: differences with intervals, and p of the leading figure."""
    if not tests:
        return Table((), ())
    leading = figures[0]
    rows = [
        (
            f"{name} \u2212 {names[0]}",
            *(interval_text(test.differences, one.key) for one in figures),
            p_text(test.p.get(leading.key)),
        )
        for name, test in zip(names[1:], tests, strict=True)
    ]
    columns = ("Runs", *(one.title for one in figures), f"p, {leading.title}")
    return Table(columns, tuple(rows))


def paired_csv(names: Sequence[str], tests: "Sequence[Paired]") -> str:
    """Return the same unrounded, one line a run and figure."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "minus", "figure", "difference", "low", "high", "p", "patients"])
    for name, test in zip(names[1:], tests, strict=True):
        for key, one in test.differences.items():
            row = [name, names[0], key, one.value, one.low, one.high, test.p[key]]
            writer.writerow([*row, test.num_patients])
    return text.getvalue()
