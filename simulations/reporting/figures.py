"""All figures of one run's report, in the order of the page."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from medfed.common.metrics import MetricSums, add_sums, classification_metrics
from medfed.simulations.reporting import conduct, model_plots, results, training_plots
from medfed.simulations.reporting.drawing import Drawing, draw
from medfed.simulations.reporting.run_data import POOLED, Arm, RunData
from medfed.simulations.reporting.training_plots import Curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_figures(run: RunData) -> dict[str, Drawing]:
    """Draw every figure that the run has data for, by name."""
    plots: dict[str, tuple[str, Callable[[], Figure | None]]] = {
        "convergence": (
            "AUROC and loss on all sites' held-out images by round: federated, pooled, local.",
            partial(_convergence, run),
        ),
        "sites": (
            "AUROC and balanced accuracy of each site under the federated, pooled and own model.",
            partial(_sites, run),
        ),
        "epsilon": ("Epsilon spent by round and site, with the budget.", partial(_epsilon, run)),
        "traffic": ("Bytes between the server and each site.", partial(_traffic, run)),
        "times": ("Seconds of each federated round.", partial(_times, run)),
        "partition": ("Images of each class at each site.", partial(_partition, run)),
    }
    sums = federated_sums(run)
    if sums is not None:
        plots |= _model_figures(run, sums)
    drawings = {name: draw(name, text, plot) for name, (text, plot) in plots.items()}
    return {name: drawing for name, drawing in drawings.items() if drawing is not None}


def federated_sums(run: RunData) -> MetricSums | None:
    """Return the federated model's sums over all sites' held-out images, if it was evaluated."""
    parts = run.federated.final_sums.values() if run.federated else ()
    return add_sums(parts) if parts else None


def metric_curve(label: str, arm: Arm | None, key: str) -> Curve:
    """Return one figure of an arm by round."""
    points = [
        (record.round_number, record.metrics[key])
        for record in (arm.evaluated if arm else ())
        if record.metrics and key in record.metrics
    ]
    return Curve(label, points)


def _model_figures(
    run: RunData, sums: MetricSums
) -> dict[str, tuple[str, Callable[[], "Figure | None"]]]:
    classes = run.study.task.classes
    metrics = classification_metrics(sums, classes)
    areas = [metrics.get(f"auroc/{name}") for name in classes]
    return {
        "roc": (
            "ROC curve of each class, federated model.",
            partial(model_plots.roc, sums, classes, areas),
        ),
        "confusion": (
            "Images of each class by what the federated model called them.",
            partial(model_plots.matrix, sums["matrix"], classes)
            if "matrix" in sums
            else partial(model_plots.confusion, sums, classes),
        ),
        "calibration": (
            "Share of right predictions at each confidence, federated model.",
            partial(model_plots.calibration, sums),
        ),
    }


def _convergence(run: RunData) -> "Figure | None":
    panels = {
        title: (
            metric_curve("federated", run.federated, key),
            metric_curve("pooled", run.arms.get(POOLED), key),
            [arm.final_metrics[key] for arm in run.local_arms.values() if key in arm.final_metrics],
        )
        for title, key in (("AUROC", "auroc"), ("Loss", "loss"))
    }
    return training_plots.convergence(panels, run.study.training.rounds)


def _sites(run: RunData) -> "Figure | None":
    panels = {
        "AUROC": results.site_scores(run, "auroc"),
        "Balanced accuracy": results.site_scores(run, "balanced_accuracy"),
    }
    known = any(
        value is not None
        for row in panels["AUROC"]
        for value in (row.federated, row.pooled, row.local)
    )
    return training_plots.sites(panels, results.worst_site(run)) if known else None


def _epsilon(run: RunData) -> "Figure | None":
    simulation = run.study.simulation
    return training_plots.epsilon_by_round(
        conduct.spent_by_round(run.federated),
        simulation.max_epsilon if simulation else None,
        run.study.training.rounds,
    )


def _traffic(run: RunData) -> "Figure | None":
    rows = [(site, *pair) for site, pair in conduct.traffic(run.federated).items()]
    return training_plots.traffic(rows)


def _times(run: RunData) -> "Figure | None":
    rounds = run.federated.rounds if run.federated else ()
    walls = [(record.round_number, record.seconds) for record in rounds]
    return training_plots.round_times(walls, conduct.slowest_sites(run.federated))


def _partition(run: RunData) -> "Figure | None":
    splits = [
        (name, run.sites[name].train, run.sites[name].test)
        for name in run.site_names
        if name in run.sites
    ]
    unit = "images" if run.study.task.mode == "multiclass" else "labels (an image may have several)"
    return model_plots.partition(splits, run.study.task.classes, unit)
