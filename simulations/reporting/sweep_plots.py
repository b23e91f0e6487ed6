"""Figures of a sweep: every cell's arms, a figure over a number that varies, and over epsilon."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medfed.simulations.reporting.dot_plots import ARM_SERIES
from medfed.simulations.reporting.drawing import CYCLE, HALO, INK, new_figure, short
from medfed.simulations.reporting.results import ARMS
from medfed.simulations.reporting.sweep_data import CellRuns, SweepData
from medfed.simulations.reporting.sweep_statistics import Summary, summarise
from medfed.simulations.reporting.sweep_tables import shown_figures
from medfed.simulations.sweep import short_keys

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
    keys = [key for key in sweep.cells[0].cell.settings if len(_numbers(sweep, key)) > 1]
    over = {key: _lines_over(sweep, key) for key in keys}
    # A key that goes with another, as in cases, has no line with two of its values.
    key = next((k for k in keys if any(len(cells) > 1 for cells in over[k].values())), None)
    if not shown or key is None:
        return None
    lines = over[key]
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


def _lines_over(sweep: SweepData, key: str) -> dict[str, list[CellRuns]]:
    """Return the cells that are alike but for `key`, by what they have in common."""
    lines: dict[str, list[CellRuns]] = {}
    for cell in sweep.cells:
        rest = {k: v for k, v in cell.cell.settings.items() if k != key}
        names = short_keys(list(rest))
        label = ", ".join(f"{names[k]} {v}" for k, v in rest.items() if v is not None)
        lines.setdefault(label or "federated", []).append(cell)
    return lines


def plot_against_epsilon(sweep: SweepData) -> "Figure | None":
    """Draw the federated figure over the epsilon that was spent: what privacy cost.

    Cells that differ in settings of privacy alone are a line; bars are standard deviations over
    seeds, of the figure and of epsilon. Cells without DP are dashed lines.
    """
    shown = shown_figures(sweep)
    lines: dict[str, list[tuple[Summary, Summary]]] = {}
    free: list[Summary] = []
    for cell in sweep.cells if shown else ():
        spent = summarise(cell.epsilon())
        value = summarise(cell.by_arm(shown[0].key, "federated"))
        if spent.mean is not None:
            lines.setdefault(_besides_privacy(cell), []).append((spent, value))
        elif value.mean is not None:
            free.append(value)
    known = sorted(spent.mean or 0.0 for points in lines.values() for spent, _ in points)
    if len({round(epsilon, 6) for epsilon in known}) < 2:
        return None
    figure, axes = new_figure(7.5, 4.2)
    if known[0] > 0 and known[-1] / known[0] >= 20:
        axes.set_xscale("log")
    for number, (label, points) in enumerate(lines.items()):
        _curve(axes, points, label, number)
    for value in free:
        axes.axhline(value.mean, color=INK["muted"], linestyle="--", linewidth=1)
    axes.set_xlabel("\u03b5 spent")
    axes.set_ylabel(shown[0].title + (" (dashed: without DP)" if free else ""))
    if len(lines) > 1:
        axes.legend()
    return figure


def _besides_privacy(cell: CellRuns) -> str:
    """A cell's settings but for those that decide epsilon."""
    rest = {k: v for k, v in cell.cell.settings.items() if not _decides_epsilon(k)}
    names = short_keys(list(rest))
    return ", ".join(f"{names[key]} {value}" for key, value in rest.items())


def _decides_epsilon(key: str) -> bool:
    return key.startswith("privacy.") or key == "simulation.max_epsilon"


def _curve(
    axes: "Axes", points: Sequence[tuple[Summary, Summary]], label: str, number: int
) -> None:
    """One line over epsilon, with the spread of both."""
    drawn = sorted(
        (spent.mean, value.mean, spent.deviation or 0.0, value.deviation or 0.0)
        for spent, value in points
        if spent.mean is not None and value.mean is not None
    )
    xs, ys, x_errors, y_errors = zip(*drawn, strict=True) if drawn else ((), (), (), ())
    axes.errorbar(
        xs,
        ys,
        xerr=x_errors,
        yerr=y_errors,
        marker=_MARKERS[number % len(_MARKERS)],
        color=CYCLE[number % len(CYCLE)],
        label=short(label, 40),
        capsize=3,
        **HALO,
    )


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
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return set()
    return {float(value) for value in values}


def _row_label(cell: CellRuns) -> str:
    return short(cell.cell.title, 40)


def _legend_once(axes: "Axes", figure: "Figure") -> None:
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
