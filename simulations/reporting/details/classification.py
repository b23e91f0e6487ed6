"""Classification in detail: ROC, calibration, confusion, and a row of figures a class."""

from functools import partial
from typing import Any

from medfed.common.metrics import MetricSums
from medfed.simulations.reporting import model_plots
from medfed.simulations.reporting.details.detail import Detail, Plots
from medfed.simulations.reporting.run_data import RunData
from medfed.simulations.reporting.tables import Table, figure, whole

_NOTE = (
    "AUROC and average precision are macro averages over classes that have both kinds of image, "
    "from histograms in which scores tie whose odds differ by less than 3 %. "
    "A model that names the most frequent class every time has accuracy, but a balanced accuracy "
    "of one over the number of classes: chance."
)


def _plots(run: RunData, sums: MetricSums) -> Plots:
    classes = run.study.task.classes
    metrics = run.task.metrics(sums)
    areas = [metrics.get(f"auroc/{name}") for name in classes]
    return {
        "roc": (
            "ROC curve of each class, federated model.",
            partial(model_plots.roc, sums, classes, areas),
        ),
        "calibration": (
            "Share of right predictions at each confidence, federated model.",
            partial(model_plots.calibration, sums),
        ),
        "confusion": (
            "Images of each class by what the federated model called them.",
            partial(model_plots.matrix, sums["matrix"], classes)
            if "matrix" in sums
            else partial(model_plots.two_by_two, sums["confusion"], classes, "called present"),
        ),
    }


def _values(run: RunData, sums: MetricSums) -> dict[str, Any]:
    metrics = run.task.metrics(sums)
    return {
        "classes": classes_table(run, sums),
        "calibration_error": figure(metrics.get("calibration_error")),
    }


def classes_table(run: RunData, sums: MetricSums) -> Table:
    """Return the federated model's figures for each class, all held-out images together."""
    metrics = run.task.metrics(sums)
    rows = []
    for index, name in enumerate(run.study.task.classes):
        (tn, fp), (fn, tp) = sums["confusion"][index].tolist()
        own = [metrics.get(f"{key}/{name}") for key in ("auroc", "sensitivity", "specificity")]
        rows.append((name, whole(tp + fn), *map(figure, own), *map(whole, (tp, fn, fp, tn))))
    columns = ("Class", "Images with it", "AUROC", "Sensitivity", "Specificity", "True positives",
               "False negatives", "False positives", "True negatives")  # fmt: skip
    return Table(columns, tuple(rows))


DETAIL = Detail(
    note=_NOTE,
    counts="Class counts of each site, by patient: no patient is on both sides or at two sites.",
    noun="image",
    plots=_plots,
    values=_values,
)
