"""Figures of data cards: classes and grey levels of one site, and all sites over one another.

Shapes: S sites, L classes, C channels of all views, B bins.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from medfed.common.statistics import Floats, standard_errors
from medfed.common.study import StudyConfig
from medfed.simulations.reporting.cards import Card, CardFacts, distances
from medfed.simulations.reporting.drawing import CYCLE, INK, new_figure, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_CLASSES = 24
_MAX_CHANNELS = 4
_STYLES = ("-", (0, (5, 2)), (0, (1, 1.2)))
# A cell with a distance in it, and a letter, inches.
_CELL, _LETTER = 0.52, 0.085


def site_card(card: Card, study: StudyConfig) -> "Figure | None":
    """Draw one site's patients a class and its grey levels."""
    if card.values is None or all(np.isnan(array).all() for array in card.values.values()):
        return None
    classes = study.task.label_names[:_MAX_CLASSES]
    height = max(2.2, 0.9 + 0.26 * len(classes))
    if not classes:
        figure, axes = new_figure(5.2, height)
        _draw_levels(axes, card, study)
        return figure
    figure, panels = new_figure(10, height, 2)
    _draw_classes(panels[0], card, classes, study)
    _draw_levels(panels[1], card, study)
    return figure


def _draw_classes(panel: "Axes", card: Card, classes: Sequence[str], study: StudyConfig) -> None:
    assert card.values is not None
    counts = card.values["classes"][: len(classes)]
    error = standard_errors(study)["classes"] if card.with_noise else 0.0
    rows = np.arange(len(classes))
    panel.barh(
        rows,
        np.nan_to_num(counts),
        0.68,
        color=CYCLE[0],
        xerr=error or None,
        ecolor=INK["ink"],
        capsize=2 if error else 0,
        error_kw={"linewidth": 1.0},
    )
    for row in rows[np.isnan(counts)]:
        panel.text(0, row, " withheld", va="center", fontsize=8.5, color=INK["muted"])
    panel.set_yticks(rows, [short(name, 22) for name in classes])
    panel.set_ylim(len(classes) - 0.5, -0.5)
    low = min(0.0, float(np.nan_to_num(counts).min()) - error)
    panel.set_xlim(low, max(1.0, 1.08 * (float(np.nan_to_num(counts).max()) + error)))
    panel.set_title("Patients with each class")
    panel.grid(axis="y", visible=False)


def _draw_levels(panel: "Axes", card: Card, study: StudyConfig) -> None:
    edges = np.linspace(0, 256, study.statistics.bins + 1)
    channels = range(min(study.data.total_channels, _MAX_CHANNELS))
    for channel in channels:
        shares = card.shares(channel)
        if shares is None:
            continue
        percent, error = 100 * shares, 100 * card.share_error(channel, study)
        colour = CYCLE[channel]
        label = channel_name(channel, study) if len(channels) > 1 else None
        panel.stairs(percent, edges, color=colour, label=label, fill=len(channels) == 1, alpha=0.85)
        if error:
            panel.fill_between(
                edges,
                np.append(percent - error, percent[-1] - error),
                np.append(percent + error, percent[-1] + error),
                step="post",
                color=INK["grey"],
                alpha=0.35,
                linewidth=0,
            )
    panel.set_title("Grey levels")
    panel.set(xlabel="grey level, 0 to 255", ylabel="% of pixels", xlim=(0, 256))
    panel.axhline(0, color=INK["muted"], linewidth=0.8)
    if len(channels) > 1:
        panel.legend(fontsize=8)


def all_sites(facts: CardFacts, names: list[str], study: StudyConfig) -> "Figure | None":
    """Draw the sites' grey levels over one another, one panel a channel, and their distances.

    The distances are those of the first channel.
    """
    known = [name for name in names if facts.cards[name].shares(0) is not None]
    if not known:
        return None
    channels = min(study.data.total_channels, _MAX_CHANNELS)
    letters = _LETTER * max(len(short(name, 12)) for name in known)
    square = letters + _CELL * len(known) + 0.5
    wide = 5.2 if channels == 1 else 3.4
    figure, panels = new_figure(
        wide * channels + square,
        max(3.6, 1.2 + letters + _CELL * len(known)),
        channels + 1,
        width_ratios=[*[wide] * channels, square],
    )
    for channel in range(channels):
        _draw_over(panels[channel], facts, known, channel, study)
    _draw_distances(panels[-1], distances(facts.cards, known, 0), known)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=min(len(labels), 6))
    return figure


def _draw_over(
    panel: "Axes", facts: CardFacts, names: list[str], channel: int, study: StudyConfig
) -> None:
    edges = np.linspace(0, 256, study.statistics.bins + 1)
    for rank, name in enumerate(names):
        shares = facts.cards[name].shares(channel)
        if shares is not None:
            panel.stairs(
                100 * shares,
                edges,
                color=CYCLE[rank % len(CYCLE)],
                linestyle=_STYLES[rank // len(CYCLE) % len(_STYLES)],
                linewidth=1.6,
                label=short(name),
            )
    if facts.reference is not None:
        shares = _shares_of(facts.reference[channel], edges)
        panel.stairs(
            100 * shares, edges, color=INK["ink"], linestyle=(0, (4, 2)), label="all sites' mean"
        )
    title = "Grey levels" if study.data.total_channels == 1 else channel_name(channel, study)
    panel.set_title(title)
    panel.set(xlabel="grey level, 0 to 255", xlim=(0, 256))
    panel.set_ylabel("% of pixels" if channel == 0 else "")


def _shares_of(quantile_function: Floats, edges: Floats) -> Floats:
    """The shares of pixels between `edges`, by a quantile function."""
    shares = np.linspace(0.0, 1.0, len(quantile_function))
    below: Floats = np.interp(edges, quantile_function, shares)
    return np.diff(below)


def _draw_distances(panel: "Axes", distances_SS: Floats, names: list[str]) -> None:
    from matplotlib.patches import Rectangle

    largest = max(1.0, float(np.nanmax(distances_SS)))
    for (row, column), value in np.ndenumerate(distances_SS):
        if row == column:
            continue
        share = float(value) / largest
        corner = (column - 0.47, row - 0.47)
        panel.add_patch(
            Rectangle(corner, 0.94, 0.94, facecolor=CYCLE[0], alpha=0.9 * share, linewidth=0)
        )
        panel.text(
            column,
            row,
            f"{value:.0f}" if value >= 9.5 else f"{value:.1f}",
            ha="center",
            va="center",
            fontsize=8.5,
            color=INK["paper"] if share > 0.6 else INK["ink"],
        )
    ticks = [short(name, 12) for name in names]
    panel.set_xticks(range(len(names)), ticks, rotation=90)
    panel.set_yticks(range(len(names)), ticks)
    panel.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5), aspect="equal")
    panel.grid(visible=False)
    panel.set_title("Apart, in grey levels")


def channel_name(channel: int, study: StudyConfig) -> str:
    """Name a channel by its view, and by its number where a view has several."""
    section = study.data
    view, number = divmod(channel, section.channels)
    parts = [section.views[view]] if section.views else []
    if section.channels > 1:
        parts.append(f"channel {number + 1}")
    return ", ".join(parts)
