"""Figures of the final model: ROC, confusion, calibration.

Shapes: L classes, B score bins.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medfed.common.metrics import FIXED_POINT, MetricSums
from medfed.simulations.reporting.drawing import CYCLE, INK, new_figure, short, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_CURVES = 16
# More names than these would cover the curves.
_MAX_INSIDE = 8
_STYLES = ("-", (0, (5, 2)), (0, (1, 1.2)))


def roc_points(
    histogram_2B: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
    """Return (false positive rate, true positive rate) at every threshold, from high to low.

    None without both kinds of image. The trapezoid under them is the AUROC of `common.metrics`.
    """
    negatives, positives = histogram_2B[0][::-1], histogram_2B[1][::-1]
    if not negatives.sum() or not positives.sum():
        return None
    filled = (negatives + positives) > 0
    rates = [
        np.concatenate([[0.0], np.cumsum(counts)[filled] / counts.sum()])
        for counts in (negatives, positives)
    ]
    return rates[0], rates[1]


def roc(sums: MetricSums, classes: Sequence[str], areas: Sequence[float | None]) -> "Figure | None":
    """Draw one curve a class against the rest, with its AUROC beside its name."""
    curves = [(i, roc_points(sums["scores"][i])) for i in range(len(classes))]
    known = [(i, points) for i, points in curves if points is not None][:_MAX_CURVES]
    if not known:
        return None
    many = len(known) > _MAX_INSIDE
    figure, axes = new_figure(4.7, 4.6 + (0.2 * -(-len(known) // 2) if many else 0))
    axes.plot([0, 1], [0, 1], color=INK["muted"], linewidth=1, linestyle=(0, (2, 3)))
    for rank, (index, (false_rate, true_rate)) in enumerate(known):
        area = areas[index]
        axes.plot(
            false_rate,
            true_rate,
            color=CYCLE[rank % len(CYCLE)],
            linestyle=_STYLES[rank // len(CYCLE) % len(_STYLES)],
            label=short(classes[index], 22) + ("" if area is None else f"  {area:.3f}"),
        )
    axes.set(xlabel="false positive rate", ylabel="true positive rate (sensitivity)")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), aspect="equal")
    if many:
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    else:
        axes.legend(
            loc="lower right",
            title="class, AUROC",
            alignment="left",
            # A model worse than chance has its curves there.
            frameon=True,
            framealpha=0.85,
            facecolor=INK["paper"],
            edgecolor="none",
        )
    return figure


def two_by_two(
    tables_L22: npt.NDArray[np.int64], names: Sequence[str], found: str
) -> "Figure | None":
    """Draw a table for each name: there or not (rows) by found or not (columns).

    Shade is the share of the row, figures are images.

    Args:
        tables_L22: Counts by (truth, prediction).
        names: What is there or not: classes or structures.
        found: What the columns say.
    """
    if not tables_L22.any():
        return None
    columns = min(len(names), 5)
    rows = -(-len(names) // columns)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 * columns, 2.25 * rows))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, name, table_22 in zip(panels, names, tables_L22, strict=False):
        _two_by_two(panel, table_22)
        panel.set_xlabel(found)
        panel.set_title(short(name, 17))
    figure.get_layout_engine().set(h_pad=0.14)  # type: ignore[union-attr,call-arg]
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    return figure


def matrix(counts_LL: npt.NDArray[np.int64], classes: Sequence[str]) -> "Figure | None":
    """Draw true classes (rows) by predicted ones: shade is the share of the row."""
    if not counts_LL.any():
        return None
    from matplotlib.figure import Figure

    num_classes = len(classes)
    figure = Figure(figsize=(2.2 + 0.85 * num_classes, 1.4 + 0.62 * num_classes))
    panel = figure.subplots()
    names = [short(name, 14) for name in classes]
    for row in range(num_classes):
        total = int(counts_LL[row].sum())
        for column in range(num_classes):
            _cell(panel, (column, num_classes - 1 - row), counts_LL[row, column], total,
                  right=row == column)  # fmt: skip
    panel.set(xlim=(0, num_classes), ylim=(0, num_classes))
    panel.set_xticks(np.arange(num_classes) + 0.5, names, rotation=30 if num_classes > 5 else 0)
    panel.set_yticks(num_classes - 0.5 - np.arange(num_classes), names)
    panel.set(xlabel="predicted", ylabel="truth")
    panel.tick_params(length=0)
    panel.grid(visible=False)
    panel.spines[:].set_visible(False)
    return figure


def _cell(
    panel: "Axes", corner: tuple[int, int], count: np.int64, total: int, *, right: bool
) -> None:
    """One cell of unit size: how many images, and the share of its row."""
    from matplotlib.patches import Rectangle

    share = int(count) / total if total else 0.0
    colour = INK["blue"] if right else INK["vermillion"]
    panel.add_patch(Rectangle(corner, 1, 1, facecolor=colour, alpha=0.06 + 0.44 * share))
    text = f"{int(count)}\n{share:.0%}" if total else "0"
    middle = (corner[0] + 0.5, corner[1] + 0.5)
    panel.text(*middle, text, ha="center", va="center", linespacing=1.3)


def _two_by_two(panel: "Axes", table_22: npt.NDArray[np.int64]) -> None:
    """Present in the upper row, called present in the left column."""
    for row, truth in enumerate((1, 0)):
        total = int(table_22[truth].sum())
        for column, called in enumerate((1, 0)):
            _cell(panel, (column, 1 - row), table_22[truth, called], total, right=truth == called)
    panel.set(xlim=(0, 2), ylim=(0, 2), aspect="equal")
    panel.set_xticks([0.5, 1.5], ["yes", "no"])
    panel.set_yticks([1.5, 0.5], ["present", "absent"], rotation=90, va="center")
    panel.tick_params(length=0)
    panel.grid(visible=False)
    panel.spines[:].set_visible(False)


def calibration(sums: MetricSums) -> "Figure | None":
    """Draw how often the model is right at each confidence, and how many predictions there are."""
    count, right, confidence = sums["calibration"]
    filled = count > 0
    if not filled.any():
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.7, 4.6))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    mean = confidence[filled] / FIXED_POINT / count[filled]
    accuracy = right[filled] / count[filled]
    upper.plot([0, 1], [0, 1], color=INK["muted"], linewidth=1, linestyle=(0, (2, 3)))
    upper.vlines(mean, mean, accuracy, color=INK["vermillion"], linewidth=1.4, alpha=0.7)
    upper.plot(mean, accuracy, "o-", color=INK["blue"], markeredgecolor=INK["paper"])
    upper.set(ylabel="share that was right", ylim=(0, 1.03), xlim=(0, 1.01))
    num_bins = len(count)
    edges = np.arange(num_bins) / num_bins
    lower.bar(edges, count, 0.9 / num_bins, align="edge", color=INK["sky"])
    lower.set(xlabel="confidence of the prediction", ylabel="predictions")
    lower.grid(axis="x", visible=False)
    whole_numbers(lower.yaxis)
    lower.yaxis.get_major_locator().set_params(nbins=3)
    return figure
