"""A figure over the bytes of updates: what a smaller one costs, and what it saves."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from medfed.simulations.reporting import results
from medfed.simulations.reporting.drawing import CYCLE, HALO, new_figure, short
from medfed.simulations.reporting.run_data import RunData
from medfed.simulations.reporting.sweep_data import SweepData
from medfed.simulations.reporting.sweep_statistics import summarise
from medfed.simulations.reporting.sweep_tables import shown_figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = list[tuple[float, float]]
# Lines that differ by less lie on one another: the curve by round says it all.
_WORTH_DRAWING = 1.05
_MARKERS = "oDs^vPX*"


def by_bytes(run: RunData, key: str) -> Points:
    """Return (bytes of all updates so far, the federated model's figure) at each evaluation."""
    sent, points = 0, []
    for record in run.federated.rounds if run.federated else ():
        sent += sum(site.update_bytes for site in record.sites.values())
        value = (record.metrics or {}).get(key)
        if value is not None:
            points.append((float(sent), value))
    return points


def plot_cells(sweep: SweepData) -> "Figure | None":
    """Draw the federated figure over bytes, a line a cell: means over its seeds."""
    shown = shown_figures(sweep)
    if not shown:
        return None
    lines = {}
    for cell in sweep.cells:
        found = [by_bytes(run, shown[0].key) for run in cell.runs if run is not None]
        # Runs that ended early, with their budget say, have fewer points.
        lines[cell.cell.title] = [_mean(points) for points in zip(*found, strict=False)]
    return _plot(lines, shown[0].title)


def plot_runs(names: Sequence[str], runs: Sequence[RunData]) -> "Figure | None":
    """Draw the same, a line a run; None if the runs show different figures."""
    leading = {one.key: one for one in map(results.leading, runs)}
    if len(leading) > 1:
        return None
    [shown] = leading.values()
    lines = {name: by_bytes(run, shown.key) for name, run in zip(names, runs, strict=True)}
    return _plot(lines, shown.title)


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    means = [summarise(values).mean or 0.0 for values in zip(*points, strict=True)]
    return means[0], means[1]


def _plot(lines: Mapping[str, Points], title: str) -> "Figure | None":
    drawn = {label: points for label, points in lines.items() if points}
    ends = [points[-1][0] for points in drawn.values()]
    if not ends or not 0 < _WORTH_DRAWING * min(ends) <= max(ends):
        return None
    from matplotlib.ticker import EngFormatter

    figure, axes = new_figure(7.5, 4.2)
    for number, (label, points) in enumerate(drawn.items()):
        axes.plot(
            [sent for sent, _ in points],
            [value for _, value in points],
            marker=_MARKERS[number % len(_MARKERS)],
            color=CYCLE[number % len(CYCLE)],
            label=short(label, 40),
            **HALO,
        )
    if max(ends) / min(points[0][0] for points in drawn.values()) >= 20:
        axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.set_xlabel("Updates of all sites")
    axes.set_ylabel(title)
    figure.legend(loc="outside lower center", ncols=2)
    return figure
