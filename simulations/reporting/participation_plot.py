"""The figure of who did what in each round: one bar a site, in the colours of its answers."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from medfed.simulations.reporting.drawing import INK, new_figure, short, whole_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATUS_COLOURS = {
    "ok": INK["blue"],
    "refused": INK["amber"],
    "failed": INK["vermillion"],
    "late": INK["purple"],
    "rejected": INK["green"],
    "away": INK["grey"],
    "lost": INK["yellow"],
    "training": INK["sky"],
}
# A letter in each stretch says the same as its colour.
_LETTERS = {
    **{status: status[0].upper() for status in STATUS_COLOURS},
    **{"ok": "", "rejected": "X", "lost": "LO"},
}
_DARK_LETTERS = ("lost", "away", "training")


def stretches(statuses: Mapping[int, str]) -> list[tuple[str, int, int]]:
    """Return (status, first, last) of each stretch of rounds in a row that went the same way."""
    found = []
    # Numbers in a row keep their distance to their place.
    places = enumerate(sorted(statuses))
    for (status, _), group in groupby(places, key=lambda p: (statuses[p[1]], p[1] - p[0])):
        numbers = [number for _, number in group]
        found.append((status, numbers[0], numbers[-1]))
    return found


def participation(
    by_site: Mapping[str, Mapping[int, str]], rounds: Sequence[int]
) -> "Figure | None":
    """Draw each site's answers by round; rounds in which it was not asked stay empty."""
    from matplotlib.patches import Patch

    if not rounds or not by_site:
        return None
    figure, axes = new_figure(10, 1.3 + 0.32 * len(by_site))
    for row, statuses in enumerate(by_site.values()):
        for status, first, last in stretches(statuses):
            colour = STATUS_COLOURS.get(status, INK["muted"])
            axes.barh(row, last - first + 0.9, 0.62, left=first - 0.45, color=colour)
            axes.text(
                *((first + last) / 2, row, _LETTERS.get(status, "?")),
                ha="center",
                va="center",
                fontsize=8,
                fontweight="bold",
                color=INK["ink" if status in _DARK_LETTERS else "paper"],
            )
    axes.set_yticks(range(len(by_site)), [short(site) for site in by_site])
    axes.set(xlabel="round", ylim=(len(by_site) - 0.5, -0.5))
    axes.set_xlim(rounds[0] - 0.6, rounds[-1] + 0.6)
    axes.grid(axis="y", visible=False)
    whole_numbers(axes.xaxis)
    seen = {status for statuses in by_site.values() for status in statuses.values()}
    shown = [*(s for s in STATUS_COLOURS if s in seen), *sorted(seen - STATUS_COLOURS.keys())]
    letters = [_LETTERS.get(status, "?") for status in shown]
    labels = [f"{s} ({letter})" if letter else s for s, letter in zip(shown, letters, strict=True)]
    handles = [Patch(color=STATUS_COLOURS.get(status, INK["muted"])) for status in shown]
    figure.legend(handles, labels, loc="outside upper right", ncols=len(shown))
    return figure
