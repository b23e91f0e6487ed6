"""Figure of a partition by patients: sites by classes, and the two sides of each site.

Shapes: S sites, L classes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medfed.simulations.reporting.drawing import CYCLE, INK, new_figure, short, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW, _COLUMN = 0.36, 0.62
# Darker cells carry their number in the colour of the page.
_DARK = 0.55
# Width of a letter, inches: names longer than a cell is wide stand at an angle.
_LETTER = 0.085


def patients_by_class(
    names: Sequence[str],
    classes: Sequence[str],
    counts_SL: npt.NDArray[np.int64],
    train_S: Sequence[int],
    test_S: Sequence[int],
) -> "Figure | None":
    """Draw each site's patients by class, as numbers on a colour, and its size beside them.

    The colour is the share of the site's patients who show the class, so that sites of different
    size compare; a cell without a patient is empty.

    Args:
        names: Sites.
        classes: Names of the classes.
        counts_SL: int64 [S, L], patients of the site who show the class.
        train_S: Training patients of each site.
        test_S: Held-out patients of each site.
    """
    if not names:
        return None
    wide = max(2.0, _COLUMN * len(classes))
    figure, (cells, bars) = new_figure(
        wide + 6.4, 1.9 + _ROW * len(names), 2, sharey=True, width_ratios=(wide, 3.2)
    )
    _draw_cells(cells, counts_SL, np.asarray(train_S) + np.asarray(test_S))
    level = all(_LETTER * len(name) < wide / len(classes) for name in classes)
    cells.set_xticks(
        range(len(classes)),
        [short(name) for name in classes],
        rotation=0 if level else 35,
        ha="center" if level else "right",
        rotation_mode="anchor",
    )
    cells.set_yticks(range(len(names)), [short(name) for name in names])
    cells.set_title("Patients with each class")
    rows = range(len(names))
    bars.barh(rows, train_S, 0.68, color=CYCLE[0], label="training")
    bars.barh(rows, test_S, 0.68, left=train_S, color=CYCLE[1], label="held out")
    bars.set_title("Patients")
    bars.grid(axis="y", visible=False)
    whole_numbers(bars.xaxis)
    figure.legend(*bars.get_legend_handles_labels(), loc="outside lower right", ncols=2)
    return figure


def _draw_cells(
    panel: "Axes", counts_SL: npt.NDArray[np.int64], patients_S: npt.NDArray[np.int64]
) -> None:
    from matplotlib.patches import Rectangle

    shares_SL = counts_SL / np.maximum(patients_S, 1)[:, None]
    for (site, label), count in np.ndenumerate(counts_SL):
        # Patches and no picture: on a page their colour follows light and dark.
        panel.add_patch(
            Rectangle(
                (label - 0.47, site - 0.44),
                0.94,
                0.88,
                facecolor=CYCLE[0],
                alpha=float(shares_SL[site, label]),
                linewidth=0,
            )
        )
        dark = shares_SL[site, label] > _DARK
        if count:
            panel.text(
                label,
                site,
                str(count),
                ha="center",
                va="center",
                fontsize=8.5,
                color=INK["paper"] if dark else INK["ink"],
            )
    panel.grid(visible=False)
    panel.set_xlim(-0.5, counts_SL.shape[1] - 0.5)
    panel.set_ylim(len(counts_SL) - 0.5, -0.5)
