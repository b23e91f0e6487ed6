"""`Detail`: what a task adds to the report."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medfed.common.metrics import MetricSums
from medfed.simulations.reporting.run_data import RunData

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Plots = dict[str, tuple[str, Callable[[], "Figure | None"]]]
"""By name: what the figure shows, for readers who cannot see it; and what draws it."""


@dataclass(frozen=True)
class Detail:
    """One task's part of the report.

    Attributes:
        note: How to read the figures of the comparison.
        counts: What the figure of the partition shows.
        noun: What is counted there: image or report.
        plots: Figures of the federated model, from its sums over all held-out images.
        values: What the task's template shows, from the same sums.
    """

    note: str
    counts: str
    noun: str
    plots: Callable[[RunData, MetricSums], Plots]
    values: Callable[[RunData, MetricSums], dict[str, Any]]
