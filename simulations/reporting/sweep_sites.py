"""Each site's leading figure over seeds: for a page, and unrounded."""

import csv
import io
from typing import NamedTuple

from medfed.simulations.reporting import results
from medfed.simulations.reporting.sweep_data import CellRuns, SweepData, Values
from medfed.simulations.reporting.sweep_tables import (
    cell_columns,
    over_seeds,
    shown_figures,
)
from medfed.simulations.reporting.tables import Table, in_order, without_absent

_MODELS = ("federated", "pooled", "own data")


class _SiteRuns(NamedTuple):
    """A site in the runs of a cell: each model's figure on its held-out images, a value a run."""

    cell: CellRuns
    site: str
    by_model: tuple[Values, ...]

    @property
    def gains(self) -> Values:
        """What federation gives over the site's own data, seed by seed."""
        ours, _, own = self.by_model
        return tuple(
            None if a is None or b is None else a - b for a, b in zip(ours, own, strict=True)
        )


def sites_table(sweep: SweepData) -> Table:
    """Return a row a cell and site: mean and standard deviation over seeds under each model."""
    shown = shown_figures(sweep)
    if not shown:
        return Table((), ())
    columns, beginning = cell_columns(sweep)
    rows = tuple(
        (
            *beginning(one.cell),
            one.site,
            *(over_seeds(values, one.cell) for values in one.by_model),
            over_seeds(one.gains, one.cell),
        )
        for one in _sites(sweep, shown[0].key)
    )
    models = (f"{shown[0].title} {model}" for model in _MODELS)
    titles = (*columns, "Site", *models, "Gain over own data")
    return without_absent(Table(titles, rows, text=frozenset(range(len(columns) + 1))))


def sites_csv(sweep: SweepData) -> str:
    """Return one line a finished run, site and figure, unrounded."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["cell", "seed", "site", "figure", "federated", "pooled", "own_data"])
    for shown in shown_figures(sweep):
        for one in _sites(sweep, shown.key):
            for seed, run, values in zip(
                sweep.seeds, one.cell.runs, zip(*one.by_model, strict=True), strict=True
            ):
                if run is not None and one.site in run.site_names:
                    writer.writerow([one.cell.cell.name, seed, one.site, shown.key, *values])
    return text.getvalue()


def _sites(sweep: SweepData, key: str) -> list[_SiteRuns]:
    found = []
    for cell in sweep.cells:
        scores = [{} if run is None else results.site_scores(run, key) for run in cell.runs]
        names = sorted({name for one in scores for name in one}, key=in_order)
        absent = (None,) * len(_MODELS)
        for name in names:
            by_run = [one.get(name, absent) for one in scores]
            found.append(_SiteRuns(cell, name, tuple(zip(*by_run, strict=True))))
    return found
