"""A sweep's convergence: each cell's federated model round by round, with its spread over seeds."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from medfed.simulations.reporting.drawing import CYCLE, HALO, INK, new_figure, short, whole_numbers
from medfed.simulations.reporting.sweep_data import CellRuns, SweepData
from medfed.simulations.reporting.sweep_statistics import summarise
from medfed.simulations.reporting.sweep_tables import shown_figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = "oDs^vPX*"
# More lines than colours with markers cannot be told apart.
_MOST_LINES = 16
_MOST_BANDS = 4


class Curve(NamedTuple):
    """A cell's figure by round; spreads are 0 with one seed."""

    rounds: tuple[int, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]


def curve_of(cell: CellRuns, key: str) -> Curve:
    """Return mean and standard deviation over seeds at the rounds that every run evaluated."""
    runs = [
        {
            record.round_number: value
            for record in run.federated.rounds
            if (value := (record.metrics or {}).get(key)) is not None
        }
        for run in cell.runs
        if run is not None and run.federated is not None
    ]
    shared = sorted(set.intersection(*map(set, runs))) if runs else []
    found = [summarise([run[number] for run in runs]) for number in shared]
    return Curve(
        tuple(shared),
        tuple(one.mean or 0.0 for one in found),
        tuple(one.deviation or 0.0 for one in found),
    )


def plot_rounds(sweep: SweepData) -> "Figure | None":
    """Draw the federated figure over rounds, a line a cell; None without two evaluations."""
    shown = shown_figures(sweep)
    if not shown or len(sweep.cells) > _MOST_LINES:
        return None
    curves = {cell.cell.title: curve_of(cell, shown[0].key) for cell in sweep.cells}
    if all(len(one.rounds) < 2 for one in curves.values()):
        return None
    figure, axes = new_figure(7.5, 4.6)
    for number, (label, one) in enumerate(curves.items()):
        colour = CYCLE[number % len(CYCLE)]
        line = {"color": colour, "linestyle": "-" if number < len(CYCLE) else ":"}
        marker = _MARKERS[number % len(_MARKERS)]
        axes.plot(one.rounds, one.means, marker=marker, label=short(label, 40), **line, **HALO)
        if len(curves) <= _MOST_BANDS:
            axes.fill_between(one.rounds, *_band(one), color=colour, alpha=0.13, linewidth=0)
    target = sweep.study.sweep.target if sweep.study.sweep else None
    if target is not None:
        axes.axhline(target, color=INK["muted"], linestyle="--", linewidth=1)
    whole_numbers(axes.xaxis)
    axes.set_xlabel("round")
    axes.set_ylabel(shown[0].title + ("" if target is None else " (dashed: target)"))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _band(one: Curve) -> tuple[Sequence[float], Sequence[float]]:
    pairs = list(zip(one.means, one.deviations, strict=True))
    return [mean - spread for mean, spread in pairs], [mean + spread for mean, spread in pairs]
