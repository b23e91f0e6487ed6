"""All figures of one run's report, in the order of the page."""

from functools import partial
from typing import TYPE_CHECKING

from medfed.simulations.reporting import (
    card_plots,
    conduct,
    data_plots,
    deployed,
    results,
    scarce,
    spending,
    training_plots,
)
from medfed.simulations.reporting.arms import POOLED, Arm
from medfed.simulations.reporting.beside import draw_all
from medfed.simulations.reporting.cards import names_of
from medfed.simulations.reporting.details import Plots, detail_of
from medfed.simulations.reporting.dot_plots import ARM_SERIES, dot_plot
from medfed.simulations.reporting.drawing import Drawing, some_of
from medfed.simulations.reporting.matrix import plot_matrix
from medfed.simulations.reporting.participation_plot import participation
from medfed.simulations.reporting.run_data import RunData
from medfed.simulations.reporting.training_plots import Curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_figures(run: RunData) -> dict[str, Drawing | None]:
    """Draw every figure, by name; None where the run has no data for it."""
    return draw_all(plots_of(run))


def plots_of(run: RunData) -> Plots:
    """Return how to draw every figure: from what the arms left, not from what ends a run."""
    detail = detail_of(run)
    first, second = results.leading(run).title, results.beside(run).title
    plots: Plots = {
        "convergence": (
            f"{first} and loss on all sites' held-out images by round: federated, pooled, local.",
            partial(_convergence, run),
        ),
        "sites": (
            f"{first} and {second} of each site under the federated, pooled and own model.",
            partial(_sites, run),
        ),
        "alphas": (
            "Each site's alpha, the share of its own weights in its model, by round.",
            partial(_alphas, run),
        ),
        "labels": (
            "Patients with labels by round, and the leading figure over them.",
            partial(scarce.plot_labels, run),
        ),
        "matrix": (
            f"{first} of every site's own model, and of all sites', on every site's images.",
            partial(plot_matrix, run),
        ),
        "epsilon": ("Epsilon spent by round, with the budget.", partial(_epsilon, run)),
        "traffic": ("Bytes between the server and each site.", partial(_traffic, run)),
        "times": ("Seconds of each federated round.", partial(_times, run)),
        "participation": ("Each site's answers by round.", partial(_participation, run)),
        "partition": (detail.counts, partial(_partition, run)),
    }
    sums = results.federated_sums(run)
    if sums is not None:
        plots |= detail.plots(run, sums)
    return plots | _cards(run)


def _cards(run: RunData) -> Plots:
    facts = run.federated.cards if run.federated else None
    if facts is None:
        return {}
    names = names_of(facts)
    all_sites = partial(card_plots.all_sites, facts, names, run.study)
    return {
        "cards": ("Grey levels of all sites, and how far they lie apart.", all_sites),
        **{
            f"card-{name}": (
                f"Patients with each class and grey levels of {name}, as in its table.",
                partial(card_plots.site_card, facts.cards[name], run.study),
            )
            for name in names
        },
    }


def metric_curve(label: str, arm: Arm | None, key: str) -> Curve:
    """Return one figure of an arm by round."""
    points = [
        (record.round_number, record.metrics[key])
        for record in (arm.evaluated if arm else ())
        if record.metrics and key in record.metrics
    ]
    return Curve(label, points)


def _convergence(run: RunData) -> "Figure | None":
    first = results.leading(run)
    panels = {
        title: (
            metric_curve("federated", run.federated, key),
            metric_curve("pooled", run.arms.get(POOLED), key),
            [arm.final_metrics[key] for arm in run.local_arms.values() if key in arm.final_metrics],
        )
        for title, key in ((first.title, first.key), ("Loss", "loss"))
    }
    return training_plots.convergence(panels, run.study.training.rounds)


def _sites(run: RunData) -> "Figure | None":
    scores = {
        one.title: results.site_scores(run, one.key)
        for one in (results.leading(run), results.beside(run))
    }
    leading = scores[results.leading(run).title]
    ranks = [next((v for v in leading[site] if v is not None), 0.0) for site in run.site_names]
    shown, note = some_of(ranks)
    names = [run.site_names[index] for index in shown]
    panels = {title: [by_site[site] for site in names] for title, by_site in scores.items()}
    return dot_plot(names, panels, ARM_SERIES, bold=results.worst_site(run), note=note)


def _epsilon(run: RunData) -> "Figure | None":
    return training_plots.epsilon_by_round(
        spending.curves(run), spending.budget(run), run.study.training.rounds
    )


def _alphas(run: RunData) -> "Figure | None":
    federation = run.study.federation
    learned = run.federated.alphas if run.federated else {}
    points = {site: sorted(by_round.items()) for site, by_round in learned.items()}
    return training_plots.alphas_by_round(
        points, federation.apfl_alpha or 0.0, run.study.training.rounds
    )


def _traffic(run: RunData) -> "Figure | None":
    rows = [(site, *pair) for site, pair in conduct.traffic(run.federated).items()]
    shown, note = some_of([down + up for _, down, up in rows])
    return training_plots.traffic([rows[index] for index in shown], note)


def _times(run: RunData) -> "Figure | None":
    rounds = run.federated.rounds if run.federated else ()
    walls = [(record.round_number, record.seconds) for record in rounds]
    return training_plots.round_times(walls, conduct.slowest_sites(run.federated))


def _participation(run: RunData) -> "Figure | None":
    # Sites on one machine are not lost or late, unless their time is virtual.
    if not run.deployed and run.study.federation.algorithm != "fedbuff":
        return None
    rounds = [record.round_number for record in (run.federated.rounds if run.federated else ())]
    return participation(deployed.statuses(run.federated), rounds)


def _partition(run: RunData) -> "Figure | None":
    splits = [
        (name, run.sites[name].train, run.sites[name].test)
        for name in run.site_names
        if name in run.sites
    ]
    shown, note = some_of([train.images for _, train, _ in splits])
    splits = [splits[index] for index in shown]
    task = run.study.task
    noun = detail_of(run).noun
    return data_plots.partition(splits, task.label_names, noun, one_label=task.one_label, note=note)
