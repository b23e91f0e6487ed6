"""Figures of a sweep: every cell's arms, a figure over a number that varies, and over epsilon."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medfed.simulations.reporting.dot_plots import ARM_SERIES
from medfed.simulations.reporting.drawing import CYCLE, HALO, INK, new_figure, short
from medfed.simulations.reporting.results import ARMS
from medfed.simulations.reporting.sweep_data import CellRuns, SweepData
from medfed.simulations.reporting.sweep_statistics import Summary, summarise
from medfed.simulations.reporting.sweep_tables import short_keys, shown_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = "oDs^vPX*"


def plot_cells(sweep: SweepData) -> "Figure | None":
    """Draw mean and standard deviation of each arm's leading figure, a row a cell."""
    shown = shown_figures(sweep)
    if not shown:
        return None
    figure, axes = new_figure(10, 1.6 + 0.55 * len(sweep.cells))
    for index, (arm, series) in enumerate(zip(ARMS, ARM_SERIES, strict=True)):
        for row, cell in enumerate(sweep.cells):
            summary = summarise(cell.by_arm(shown[0].key, arm))
            if summary.mean is None:
                continue
            axes.errorbar(
                summary.mean,
                row + 0.22 * (index - 1),
                xerr=summary.deviation,
                fmt=series.marker,
                color=series.colour,
                markersize=series.size,
                label=series.label,
                capsize=3,
                **HALO,
            )
    axes.set_yticks(range(len(sweep.cells)), [_row_label(cell) for cell in sweep.cells])
    axes.set_ylim(len(sweep.cells) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"{shown[0].title}, mean and standard deviation over seeds")
    _legend_once(axes, figure)
    return figure


def plot_against_key(sweep: SweepData) -> "Figure | None":
    """Draw the federated figure over the first key that varies in numbers, a line for the rest."""
    shown = shown_figures(sweep)
    key = next(
        (
            key
            for key, value in sweep.cells[0].cell.settings.items()
            if len(_numbers(sweep, key)) > 1 and not isinstance(value, bool)
        ),
        None,
    )
    if not shown or key is None:
        return None
    lines: dict[str, list[CellRuns]] = {}
    for cell in sweep.cells:
        rest = {k: v for k, v in cell.cell.settings.items() if k != key}
        names = short_keys(list(rest))
        label = ", ".join(f"{names[k]} {v}" for k, v in rest.items())
        lines.setdefault(label or "federated", []).append(cell)
    figure, axes = new_figure(7.5, 4.2)
    values = sorted(_numbers(sweep, key))
    is_log = values[0] > 0 and values[-1] / values[0] >= 20
    if is_log:
        axes.set_xscale("log")
    for number, (label, cells) in enumerate(lines.items()):
        # Beside one another, or bars would cover each other.
        aside = 0.012 * (number - (len(lines) - 1) / 2)
        points = [
            (
                _moved(float(cell.cell.settings[key]), values, aside, is_log=is_log),
                summarise(cell.by_arm(shown[0].key, "federated")),
            )
            for cell in cells
        ]
        _line(axes, points, label, number)
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.minorticks_off()
    axes.set_xlabel(key)
    axes.set_ylabel(shown[0].title)
    axes.legend()
    return figure


def plot_against_epsilon(sweep: SweepData) -> "Figure | None":
    """Draw the federated figure over the epsilon that was spent: what privacy cost."""
    shown = shown_figures(sweep)
    points = [
        (cell, summarise(cell.epsilon()).mean, summarise(cell.by_arm(shown[0].key, "federated")))
        for cell in sweep.cells
        if shown
    ]
    known = [(cell, epsilon, value) for cell, epsilon, value in points if epsilon is not None]
    if len({round(epsilon, 6) for _, epsilon, _ in known}) < 2:
        return None
    figure, axes = new_figure(7.5, 4.2)
    values = sorted(epsilon for _, epsilon, _ in known)
    for number, (cell, epsilon, value) in enumerate(known):
        x = _moved(epsilon, values, 0.012 * (number - (len(known) - 1) / 2), is_log=False)
        _line(axes, [(x, value)], _row_label(cell), number)
    free = [value.mean for _, epsilon, value in points if epsilon is None and value.mean]
    for level in free:
        axes.axhline(level, color=INK["muted"], linestyle="--", linewidth=1)
    axes.set_xlabel("\u03b5 spent")
    axes.set_ylabel(shown[0].title + (" (dashed: without DP)" if free else ""))
    axes.legend()
    return figure


def _moved(x: float, values: Sequence[float], share: float, *, is_log: bool) -> float:
    """Return `x` moved by a share of the axis from the least to the largest of `values`."""
    if is_log:
        return float(x * (values[-1] / values[0]) ** share)
    return x + share * (values[-1] - values[0])


def _line(axes: "Axes", points: Sequence[tuple[float, Summary]], label: str, number: int) -> None:
    drawn = [(x, one.mean, one.deviation or 0.0) for x, one in points if one.mean is not None]
    if not drawn:
        return
    drawn.sort()
    axes.errorbar(
        [x for x, _, _ in drawn],
        [mean for _, mean, _ in drawn],
        yerr=[deviation for _, _, deviation in drawn],
        marker=_MARKERS[number % len(_MARKERS)],
        color=CYCLE[number % len(CYCLE)],
        label=short(label, 40),
        capsize=3,
        **HALO,
    )


def _numbers(sweep: SweepData, key: str) -> set[float]:
    values = {cell.cell.settings[key] for cell in sweep.cells}
    if not all(isinstance(value, int | float) for value in values):
        return set()
    return {float(value) for value in values}


def _row_label(cell: CellRuns) -> str:
    return short(cell.cell.label, 34)


def _legend_once(axes: "Axes", figure: "Figure") -> None:
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
