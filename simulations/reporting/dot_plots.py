"""Figures side by side: a row for each site, structure or finding, a panel for each figure."""

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
    new_figure,
    short,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = Sequence[float | None]
_MARKERS = "oDs^vPX*"
# More panels than these are too narrow for the usual ticks.
_MAX_WIDE = 3


@dataclass(frozen=True)
class Series:
    """What one kind of dot stands for."""

    label: str
    colour: str
    marker: str
    size: float = 6.5


# In the order of `results.ARMS`.
ARM_SERIES = (
    Series("federated", FEDERATED_COLOUR, "o", 7.5),
    Series("pooled", POOLED_COLOUR, "D", 6),
    Series("own data only", LOCAL_COLOUR, "s"),
)


def structure_series(names: Sequence[str]) -> tuple[Series, ...]:
    """Return a colour and a marker for each of several structures."""
    return tuple(
        Series(short(name, 24), CYCLE[i % len(CYCLE)], _MARKERS[i % len(_MARKERS)])
        for i, name in enumerate(names)
    )


def dot_plot(
    rows: Sequence[str],
    panels: Mapping[str, Sequence[Values]],
    series: Sequence[Series],
    *,
    bold: str | None = None,
    whole_scale: bool = False,
    note: str = "",
) -> "Figure | None":
    """Draw a dot for each value; what is first in `series` lies on top.

    Args:
        rows: Names, from the top.
        panels: By title: for each row the values in the order of `series`, None where there is
            none.
        series: What the dots stand for.
        bold: The row that stands out.
        whole_scale: Whether a panel begins at 0 and, if all of it are shares, ends at 1.
        note: What stands beside the rows.
    """
    known = [value for values in panels.values() for row in values for value in row]
    if not any(value is not None for value in known):
        return None
    figure, axes = new_figure(10, 1.5 + 0.34 * len(rows), len(panels), sharey=True, squeeze=False)
    for panel, (title, values) in zip(axes[0], panels.items(), strict=True):
        _dots(panel, values, series)
        panel.set_title(title)
        panel.grid(axis="y", visible=False)
        panel.set_ylim(len(rows) - 0.5, -0.5)
        if len(panels) > _MAX_WIDE:
            panel.locator_params(axis="x", nbins=3)
        if whole_scale:
            _show_whole_scale(panel, values)
    figure.get_layout_engine().set(wspace=0.05)  # type: ignore[union-attr,call-arg]
    first = axes[0][0]
    first.set_yticks(range(len(rows)), [short(row, 24) for row in rows])
    first.set_ylabel(note)
    for tick, row in zip(first.get_yticklabels(), rows, strict=True):
        tick.set_fontweight("bold" if row == bold else "normal")
    handles = {
        label: handle
        for panel in axes[0]
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    labels = [one.label for one in series if one.label in handles]
    figure.legend([handles[label] for label in labels], labels, loc="outside lower center", ncols=6)
    return figure


def _dots(panel: "Axes", rows: Sequence[Values], series: Sequence[Series]) -> None:
    for y, row in enumerate(rows):
        known = [value for value in row if value is not None]
        if known:
            panel.plot([min(known), max(known)], [y, y], color=INK["grid"], linewidth=3)
    for index, one in reversed(list(enumerate(series))):
        dots = [(value, y) for y, row in enumerate(rows) if (value := row[index]) is not None]
        if dots:
            panel.plot([x for x, _ in dots], [y for _, y in dots], one.marker, color=one.colour,
                       markersize=one.size, label=one.label, **HALO)  # fmt: skip


def _show_whole_scale(panel: "Axes", rows: Sequence[Values]) -> None:
    known = [value for row in rows for value in row if value is not None]
    if known:
        end = max(1.0, *known)
        panel.set_xlim(-0.04 * end, 1.04 * end)
    else:
        panel.set_xticks([])
