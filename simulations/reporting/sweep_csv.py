"""A sweep's means and differences unrounded, one line a number."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from medfed.simulations.reporting.results import ARMS
from medfed.simulations.reporting.sweep_data import CellRuns, SweepData, Values
from medfed.simulations.reporting.sweep_statistics import Difference, paired_difference, summarise
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
    """Return each difference in the leading figure, paired by seed, with 95 % interval and p."""
    columns = ["figure", "of", "minus", "difference", "low", "high", "p", "pairs"]
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
            yield _pair(key, cell.cell.name, f"{cell.cell.name} {arm}", difference)
    found = {
        (cell.cell.name, first.cell.name): paired_difference(
            cell.by_arm(key, "federated"), first.by_arm(key, "federated")
        )
        for cell in sweep.cells[1:]
    }
    found |= {(one.cell.cell.name, one.base.cell.name): one.difference for one in effects(sweep)}
    yield from (_pair(key, of, minus, one) for (of, minus), one in found.items())


def _pair(key: str, of: str, minus: str, one: Difference) -> Sequence[Any]:
    return [key, of, minus, one.mean, one.low, one.high, one.p, one.count]


def _csv(columns: Sequence[str], rows: Iterator[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
