"""A sweep's means and differences unrounded, one line a number."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from medfed.simulations.reporting.results import ARMS
from medfed.simulations.reporting.sweep_data import CellRuns, SweepData, Values
from medfed.simulations.reporting.sweep_statistics import (
    Difference,
    corrected,
    paired_difference,
    summarise,
)
from medfed.simulations.reporting.sweep_tables import effects, shown_figures


def cells_csv(sweep: SweepData) -> str:
    """Return mean, sample standard deviation and number of runs of each cell's figures."""
    keys = list(sweep.cells[0].cell.settings)
    rows = (
        [cell.cell.name, *(cell.cell.settings[key] for key in keys), name, one.mean, one.deviation,
         one.count]
        for cell in sweep.cells
        for name, values in _values(sweep, cell)
        for one in [summarise(values)]
    )  # fmt: skip
    return _csv(["cell", *keys, "figure", "mean", "standard_deviation", "runs"], rows)


def pairs_csv(sweep: SweepData) -> str:
    """Return each difference in the leading figure, paired by seed, with 95 % interval and p.

    `family` says which differences `p_holm` is corrected together with: of a cell's arms none are;
    all cells less the first one; all single changes.
    """
    columns = ["family", "figure", "of", "minus", "difference", "low", "high", "p", "p_holm",
               "pairs"]  # fmt: skip
    return _csv(columns, _pairs(sweep))


def _values(sweep: SweepData, cell: CellRuns) -> Iterator[tuple[str, Values]]:
    shown = shown_figures(sweep)
    for one in shown:
        yield from ((f"{one.key}_{arm}", cell.by_arm(one.key, arm)) for arm in ARMS)
        yield f"{one.key}_worst_site", cell.worst_site(one)
    yield from ((one.key, cell.values(one.of)) for one in sweep.extras)
    more: dict[str, Callable[[], Values]] = {
        "epsilon": cell.epsilon,
        "bytes": cell.num_bytes,
        "update_bytes": cell.update_bytes,
    }
    yield from ((name, of()) for name, of in more.items())


def _pairs(sweep: SweepData) -> Iterator[Sequence[Any]]:
    shown = shown_figures(sweep)
    if not shown:
        return
    key, first = shown[0].key, sweep.cells[0]
    for cell in sweep.cells:
        ours = cell.by_arm(key, "federated")
        for arm in ARMS[1:]:
            difference = paired_difference(ours, cell.by_arm(key, arm))
            name = cell.cell.name
            yield _pair("arms", key, name, f"{name} {arm}", difference, None)
    theirs = first.by_arm(key, "federated")
    families = {
        "first cell": [
            (cell, first, paired_difference(cell.by_arm(key, "federated"), theirs))
            for cell in sweep.cells[1:]
        ],
        "single change": [(one.cell, one.base, one.difference) for one in effects(sweep)],
    }
    for family, found in families.items():
        holm = corrected([one.p for *_, one in found])
        for (of, minus, one), p in zip(found, holm, strict=True):
            yield _pair(family, key, of.cell.name, minus.cell.name, one, p)


def _pair(
    family: str, key: str, of: str, minus: str, one: Difference, holm: float | None
) -> Sequence[Any]:
    return [family, key, of, minus, one.mean, one.low, one.high, one.p, holm, one.count]


def _csv(columns: Sequence[str], rows: Iterator[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
