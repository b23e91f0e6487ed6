"""Every site's own model on every site's held-out images, and the federated one below.

The figures are those of each local arm's last evaluation: all sites evaluate every arm.
"""

import csv
import io
from typing import TYPE_CHECKING

from medfed.simulations.reporting import results
from medfed.simulations.reporting.arms import FEDERATED, POOLED
from medfed.simulations.reporting.drawing import INK, new_figure, short
from medfed.simulations.reporting.run_data import RunData
from medfed.simulations.reporting.tables import Table, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# With more sites numbers cannot be read in a figure, and then nothing can.
_MOST_NUMBERS, _MOST_DRAWN = 14, 40

Rows = dict[str, list[float | None]]


def matrix_rows(run: RunData) -> Rows:
    """Return each model's leading figure at each of `run.site_names`; empty without local arms."""
    key = results.leading(run).key
    local = {f"{site} alone": run.local_arms.get(site) for site in run.site_names}
    if not any(arm is not None and arm.evaluated for arm in local.values()):
        return {}
    arms = {**local, "pooled": run.arms.get(POOLED), "federated": run.arms.get(FEDERATED)}
    return {
        name: [arm.site_metrics(site).get(key) for site in run.site_names]
        for name, arm in arms.items()
        if arm is not None and arm.evaluated
    }


def matrix_table(run: RunData) -> Table:
    """Return the same as text; a site's model on its own images is one row and one column."""
    rows = tuple(
        (name, *(figure(value) for value in values)) for name, values in matrix_rows(run).items()
    )
    return Table(("Trained on", *run.site_names), rows, strong=frozenset({len(rows) - 1}))


def matrix_csv(run: RunData) -> str:
    """Return the same unrounded, one line a model; what is not known is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([f"{results.leading(run).key} of", *run.site_names])
    for name, values in matrix_rows(run).items():
        writer.writerow([name, *("" if value is None else value for value in values)])
    return text.getvalue()


def plot_matrix(run: RunData) -> "Figure | None":
    """Draw it as a heat map: dark is better."""
    rows, sites, shown = matrix_rows(run), run.site_names, results.leading(run)
    known = [value for values in rows.values() for value in values if value is not None]
    if not known or len(sites) > _MOST_DRAWN:
        return None
    worst, best = sorted((min(known), max(known)), reverse=not shown.higher_is_better)
    size = 0.4 if len(sites) > _MOST_NUMBERS else 0.66
    drawn, panel = new_figure(2.2 + size * len(sites), 1.5 + 0.7 * size * len(rows))
    for row, values in enumerate(rows.values()):
        for column, value in enumerate(values):
            share = 0.0 if value is None else (value - worst) / ((best - worst) or 1.0)
            _cell(panel, (column, row), value, share, with_number=len(sites) <= _MOST_NUMBERS)
    panel.set(xlim=(0, len(sites)), ylim=(len(rows), 0))
    middles = [0.5 + number for number in range(max(len(sites), len(rows)))]
    names = [short(site, 12) for site in sites]
    panel.set_xticks(middles[: len(sites)], names, rotation=45, ha="right")
    panel.set_yticks(middles[: len(rows)], [short(name, 18) for name in rows])
    panel.set_title(f"{shown.title}: light {worst:.2f}, dark {best:.2f}", fontsize="medium")
    panel.set_xlabel("Held-out images of")
    panel.set_ylabel("Trained on")
    panel.tick_params(length=0)
    panel.grid(visible=False)
    panel.spines[:].set_visible(False)
    return drawn


def _cell(
    panel: "Axes", corner: tuple[int, int], value: float | None, share: float, *, with_number: bool
) -> None:
    """One cell of unit size: in the page's own blue, so that it follows light and dark."""
    from matplotlib.patches import Rectangle

    shade = 0.0 if value is None else 0.06 + 0.54 * share
    panel.add_patch(Rectangle(corner, 1, 1, facecolor=INK["blue"], alpha=shade))
    if with_number:
        middle = (corner[0] + 0.5, corner[1] + 0.5)
        panel.text(*middle, figure(value, 2), ha="center", va="center")
