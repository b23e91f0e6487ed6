"""A plug-in's task that extends none of medfed's: curves and tables of its figures are all."""

from typing import Any

from medfed.common.metrics import MetricSums
from medfed.simulations.reporting.details.detail import Detail, Plots
from medfed.simulations.reporting.run_data import RunData


def _plots(run: RunData, sums: MetricSums) -> Plots:
    return {}


def _values(run: RunData, sums: MetricSums) -> dict[str, Any]:
    return {"task": run.study.task.plugin, "package": run.study.plugins.task}


DETAIL = Detail(
    note="The figures are a plug-in's own; what they mean, its package says.",
    counts="Class counts of each site, by patient: no patient is on both sides or at two sites.",
    noun="image",
    plots=_plots,
    values=_values,
)
