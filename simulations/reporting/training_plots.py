"""Figures of the training: convergence, epsilon, bytes and time by round."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medfed.simulations.reporting.drawing import (
    CYCLE,
    FEDERATED_COLOUR,
    HALO,
    INK,
    LOCAL_COLOUR,
    POOLED_COLOUR,
    label_ends,
    new_figure,
    short,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# At most so many labels fit beside a panel.
_MAX_LABELS = 12


@dataclass(frozen=True)
class Curve:
    """One quantity by round: `points` are (round number, value)."""

    label: str
    points: Sequence[tuple[int, float]]


def convergence(
    panels: Mapping[str, tuple[Curve, Curve, Sequence[float]]], rounds: int
) -> "Figure | None":
    """Draw figures by round, a panel each.

    Args:
        panels: By quantity: the federated curve, the pooled curve, and each local model's final.
        rounds: Rounds that the study asks for: the x axis ends there.
    """
    shown = {name: panel for name, panel in panels.items() if any(c.points for c in panel[:2])}
    if not shown:
        return None
    figure, axes = new_figure(10, 3.7, len(shown), squeeze=False)
    for panel, (name, (federated, pooled, locals_)) in zip(axes[0], shown.items(), strict=True):
        ends = []
        for curve, colour, marker in (
            (federated, FEDERATED_COLOUR, "o"),
            (pooled, POOLED_COLOUR, "D"),
        ):
            if curve.points:
                x, y = zip(*curve.points, strict=True)
                panel.plot(x, y, color=colour, marker=marker, markersize=4, **HALO)
                ends.append((y[-1], f"{curve.label} {y[-1]:.3f}", colour))
        if locals_:
            ends.append(_local_finals(panel, locals_, rounds))
        panel.set_title(name)
        panel.set_xlabel("round")
        panel.set_xlim(0.6, rounds + 0.4)
        whole_numbers(panel.xaxis)
        _open_y(panel)
        last = max(curve.points[-1][0] for curve in (federated, pooled) if curve.points)
        label_ends(panel, rounds + 0.4 if locals_ else last, ends)
    return figure


def _local_finals(panel: "Axes", finals: Sequence[float], rounds: int) -> tuple[float, str, str]:
    """A dashed line at the mean, a tick at the last round for each model."""
    mean = sum(finals) / len(finals)
    panel.axhline(mean, color=LOCAL_COLOUR, linestyle=(0, (4, 3)), linewidth=1.4)
    panel.plot(
        [rounds] * len(finals),
        finals,
        linestyle="none",
        marker="s",
        markersize=4.5,
        color=LOCAL_COLOUR,
        **HALO,
    )
    return mean, f"local mean {mean:.3f}", LOCAL_COLOUR


def _open_y(panel: "Axes") -> None:
    """Keep a little room, so that a flat curve does not fill the panel with rounding noise."""
    low, high = panel.get_ylim()
    need = 0.05 - (high - low)
    if need > 0:
        panel.set_ylim(low - need / 2, high + need / 2)


def epsilon_by_round(
    spent: Mapping[str, Sequence[tuple[int, float]]], budget: float | None, rounds: int
) -> "Figure | None":
    """Draw epsilon by round; sites whose curves are equal share one line and one label."""
    if not any(spent.values()):
        return None
    figure, axes = new_figure(10, 3.6)
    ends = _lines(axes, spent)
    axes.set_ylim(bottom=0)
    if budget is not None:
        axes.axhline(budget, color=INK["vermillion"], linestyle=(0, (4, 3)), linewidth=1.4)
        axes.set_ylim(top=max(budget, axes.get_ylim()[1]) * 1.06)
        ends.append((budget, f"budget {budget:g}", INK["vermillion"]))
    axes.set(xlabel="round", ylabel="ε spent so far", xlim=(0.6, rounds + 0.4))
    whole_numbers(axes.xaxis)
    _label_some(axes, rounds + 0.4, ends)
    return figure


def alphas_by_round(
    learned: Mapping[str, Sequence[tuple[int, float]]], start: float, rounds: int
) -> "Figure | None":
    """Draw each site's alpha by round; sites whose curves are equal share one line and label."""
    if not any(learned.values()):
        return None
    figure, axes = new_figure(10, 3.6)
    ends = _lines(axes, learned)
    _open_y(axes)
    axes.axhline(start, color=INK["muted"], linestyle=(0, (4, 3)), linewidth=1.2)
    axes.set(xlabel="round", ylabel="alpha", xlim=(0.6, rounds + 0.4))
    whole_numbers(axes.xaxis)
    _label_some(axes, rounds + 0.4, ends)
    return figure


def _lines(
    axes: "Axes", curves: Mapping[str, Sequence[tuple[int, float]]]
) -> list[tuple[float, str, str]]:
    """Draw a line for each different curve; return its end, label and colour."""
    groups: dict[tuple[tuple[int, float], ...], list[str]] = {}
    for site, points in curves.items():
        if points:
            groups.setdefault(tuple(points), []).append(site)
    ends = []
    for index, (points, members) in enumerate(groups.items()):
        colour = CYCLE[index % len(CYCLE)]
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=colour, marker="o", markersize=4, **HALO)
        name = short(members[0]) if len(members) == 1 else f"{len(members)} sites"
        ends.append((y[-1], f"{name} {y[-1]:.2f}", colour))
    return ends


def _label_some(axes: "Axes", x: float, ends: list[tuple[float, str, str]]) -> None:
    ends.sort(reverse=True)
    label_ends(axes, x, ends if len(ends) <= _MAX_LABELS else [ends[0], ends[-1]])


def traffic(rows: Sequence[tuple[str, int, int]], note: str = "") -> "Figure | None":
    """Draw bytes by site: (site, from the server, to the server); `note` beside the rows."""
    if not rows or not any(down or up for _, down, up in rows):
        return None
    names = [short(site) for site, _, _ in rows]
    unit, divisor = byte_unit(max(down + up for _, down, up in rows))
    figure, axes = new_figure(10, 1.3 + 0.32 * len(rows))
    down = [row[1] / divisor for row in rows]
    up = [row[2] / divisor for row in rows]
    axes.barh(range(len(rows)), down, 0.62, color=INK["sky"], label="server to site")
    axes.barh(range(len(rows)), up, 0.62, left=down, color=INK["blue"], label="site to server")
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylabel(note)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"{unit} over all rounds")
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def byte_unit(number: int) -> tuple[str, int]:
    """Return the unit in which `number` bytes read well, and its size in bytes."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= size:
            return unit, size
    return "bytes", 1


def round_times(
    walls: Sequence[tuple[int, float]], slowest: Sequence[tuple[int, float]]
) -> "Figure | None":
    """Draw seconds by round: wall time as bars, the last site's answer as dots."""
    if not walls:
        return None
    figure, axes = new_figure(10, 3.0)
    x, y = zip(*walls, strict=True)
    axes.bar(x, y, 0.7, color=INK["sky"], label="whole round, evaluation included")
    if slowest:
        x, y = zip(*slowest, strict=True)
        axes.plot(x, y, "o", color=INK["blue"], label="last site's update", **HALO)
    axes.set(xlabel="round", ylabel="seconds", ylim=(0, None))
    axes.set_xlim(0.4, walls[-1][0] + 0.6)
    axes.grid(axis="x", visible=False)
    whole_numbers(axes.xaxis)
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def overlay(panels: Mapping[str, Sequence[tuple[Curve, Curve]]]) -> "Figure | None":
    """Draw several runs' curves in one panel a quantity.

    Args:
        panels: By quantity: each run's (federated, pooled) curves, labelled with the run's name.
    """
    shown = {name: pairs for name, pairs in panels.items() if any(p[0].points for p in pairs)}
    if not shown:
        return None
    num_runs = max(len(pairs) for pairs in shown.values())
    figure, axes = new_figure(10, 3.6 + 0.2 * -(-num_runs // 3), len(shown), squeeze=False)
    for panel, (name, pairs) in zip(axes[0], shown.items(), strict=True):
        for index, (federated, pooled) in enumerate(pairs):
            colour = CYCLE[index % len(CYCLE)]
            label = short(federated.label, 32)
            panel.plot(*_columns(federated), color=colour, marker="o", markersize=4, label=label)
            panel.plot(*_columns(pooled), color=colour, linestyle=(0, (4, 3)), linewidth=1.2)
        panel.set_title(name)
        panel.set_xlabel("round")
        whole_numbers(panel.xaxis)
        _open_y(panel)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _columns(curve: Curve) -> tuple[list[int], list[float]]:
    return [x for x, _ in curve.points], [y for _, y in curve.points]
