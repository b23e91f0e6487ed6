"""Figures of the data: how many images of each kind every site has."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medfed.simulations.reporting.drawing import CYCLE, INK, new_figure, short, whole_numbers
from medfed.simulations.reporting.run_data import SplitCounts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Splits = Sequence[tuple[str, SplitCounts, SplitCounts]]
# More bars than these in a row are too thin: they are stacked.
_MAX_BARS = 6
_ROW = 0.34
_BAR = 0.16


def partition(
    splits: Splits, labels: Sequence[str], noun: str, *, one_label: bool, note: str = ""
) -> "Figure | None":
    """Draw each site's counts, training beside held-out.

    Labels that exclude one another are stacked, so that a row is as long as there are images. Of
    others each has its own bar before a pale one for all images.

    Args:
        splits: Each site with its two sides.
        labels: What is counted; nothing if only images are.
        noun: What is counted: image or report.
        one_label: Whether an image has exactly one label.
        note: What stands beside the rows.
    """
    if not splits:
        return None
    stacked = one_label or len(labels) > _MAX_BARS
    row = _ROW if stacked else max(_ROW, 0.12 + _BAR * len(labels))
    figure, axes = new_figure(10, 1.6 + row * len(splits), 2, sharey=True, width_ratios=(3, 2))
    for panel, side, title in zip(axes, (1, 2), ("Training", "Held out"), strict=True):
        counts: list[SplitCounts] = [split[side] for split in splits]  # type: ignore[misc]
        counts_SL = np.array([side.labels for side in counts], dtype=np.int64)
        images_S = np.array([side.images for side in counts], dtype=np.int64)
        if stacked:
            _stacked(panel, counts_SL, labels)
        else:
            _beside(panel, counts_SL, images_S, labels)
        panel.set_title(title)
        panel.set_xlabel(f"{noun}s" if one_label or not stacked else f"labels of all {noun}s")
        panel.grid(axis="y", visible=False)
        panel.set_ylim(len(splits) - 0.5, -0.5)
        whole_numbers(panel.xaxis)
    axes[0].set_yticks(range(len(splits)), [short(name) for name, _, _ in splits])
    axes[0].set_ylabel(note)
    handles, names = axes[0].get_legend_handles_labels()
    if names:
        figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 6))
    return figure


def _stacked(panel: "Axes", counts_SL: npt.NDArray[np.int64], labels: Sequence[str]) -> None:
    left = np.zeros(len(counts_SL))
    for index, name in enumerate(labels):
        panel.barh(
            range(len(counts_SL)),
            counts_SL[:, index],
            0.68,
            left=left,
            color=CYCLE[index % len(CYCLE)],
            # Past eight classes colours repeat; hatching tells them apart.
            hatch="////" if index >= len(CYCLE) else None,
            edgecolor=INK["paper"],
            linewidth=0.5,
            label=short(name, 20),
        )
        left += counts_SL[:, index]


def _beside(
    panel: "Axes",
    counts_SL: npt.NDArray[np.int64],
    images_S: npt.NDArray[np.int64],
    labels: Sequence[str],
) -> None:
    rows = np.arange(len(images_S))
    colour = INK["grid"] if labels else CYCLE[0]
    panel.barh(rows, images_S, 0.8, color=colour, label="all" if labels else None)
    height = 0.7 / max(1, len(labels))
    for index, name in enumerate(labels):
        panel.barh(
            rows - 0.35 + (index + 0.5) * height,
            counts_SL[:, index],
            0.9 * height,
            color=CYCLE[index],
            label=short(name, 20),
        )
