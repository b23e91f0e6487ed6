"""What only one task's report has: its words, its tables and its figures.

The template `details_<task>.html.j2` shows what `Detail.values` returns, `examples_<task>.html.j2`
the examples. Everything else of the page is the same for every task.
"""

from medfed.simulations.reporting.details import classification, plain, report, segmentation
from medfed.simulations.reporting.details.detail import Detail, Plots
from medfed.simulations.reporting.run_data import RunData

__all__ = ["Detail", "Plots", "detail_of", "template_of"]

_DETAILS = {
    "classification": classification.DETAIL,
    "segmentation": segmentation.DETAIL,
    "report": report.DETAIL,
    "plain": plain.DETAIL,
}


def detail_of(run: RunData) -> Detail:
    """Return the part of the report that only this run's task has."""
    return _DETAILS[template_of(run)]


def template_of(run: RunData) -> str:
    """Return which templates show this run's task: those of its type, unless it is of none."""
    # torch takes seconds to import.
    from medfed.common.tasks import is_own_task

    return run.study.task.type if is_own_task(run.task, run.study) else "plain"
