"""What only one task's report has: its words, its tables and its figures.

The template `details_<task>.html.j2` shows what `Detail.values` returns, `examples_<task>.html.j2`
the examples. Everything else of the page is the same for every task.
"""

from medfed.simulations.reporting.details import classification, report, segmentation
from medfed.simulations.reporting.details.detail import Detail, Plots
from medfed.simulations.reporting.run_data import RunData

__all__ = ["Detail", "Plots", "detail_of"]

_DETAILS = {
    "classification": classification.DETAIL,
    "segmentation": segmentation.DETAIL,
    "report": report.DETAIL,
}


def detail_of(run: RunData) -> Detail:
    """Return the part of the report that only this run's task has."""
    return _DETAILS[run.study.task.type]
