"""What the page of a deployed run shows in other words than a simulation's, and what it cannot.

A simulation knows every site's data; a coordinator knows what the sites sent it, and no more.
"""

from collections.abc import Mapping

from medfed.simulations.reporting import results
from medfed.simulations.reporting.arms import Arm, is_training
from medfed.simulations.reporting.participation_plot import stretches
from medfed.simulations.reporting.run_data import RunData
from medfed.simulations.reporting.tables import Table, figure, in_order, whole

# Of the sections of a simulation's page, those that need data or arms that a deployment lacks.
WITHOUT = frozenset({"comparison", "examples", "data"})
# And those that only a deployment's has.
ONLY = frozenset({"happened", "unseen"})


def cannot_see(run: RunData) -> tuple[str, ...]:
    """Say what this page does not show because the coordinator does not have it."""
    lines = [
        "Images, labels, reports and names of patients: they stay at the sites, and so do example "
        "images, counts of patients, and models trained on one site's data or on all data in one "
        "place.",
        "The sites' ledgers: each site keeps its own. ε by site is what the site stated; it can be "
        "held against the site's ledger with the heads that were countersigned.",
        "The sites' policies and budgets: a refusal comes with one word, without detail. What lies "
        "behind it is in the site's own log (`medfed site log`).",
    ]
    if run.study.federation.apfl_alpha_rate:
        lines.append("Each site's alpha, which it learns for its own model and tells nobody.")
    if run.study.secure_aggregation.enabled:
        lines.append("One site's update: the server saw sums of masked updates alone.")
    return tuple(lines)


def captions(run: RunData) -> dict[str, str]:
    """Return what stands under figures, and other lines in which the two kinds of run differ."""
    named = " and the naming of words" if _names_words_with_noise(run) else ""
    spent = f"ε is what each site's data set has spent so far, all rounds{named} together"
    line = "ε spent by round. Sites that spent the same share a line."
    if run.deployed:
        return {
            "convergence": f"Held-out images of all sites together, by round{_but_busy(run)}.",
            "epsilon": f"{spent}, and all other studies before them, as the site stated it.",
            "epsilon_figure": f"{line} Each site keeps its own budget, which the coordinator does "
            "not know, and refuses a round that would cross it.",
            "times": "Seconds of each round, as the coordinator saw them: training at the sites, "
            "messages, and waiting for the last of them.",
            "again": "Where noise is drawn from a machine's own generator, the same weights cannot "
            "come again. Without privacy, on CPU, the same sites, data and versions end in the "
            "same weights, bit for bit.",
        }
    local = "Green squares: each local model after its last round; dashed line: their mean."
    return {
        "convergence": "Held-out images of all sites together, by round. "
        + (local if run.local_arms else ""),
        "epsilon": f"{spent}.",
        "epsilon_figure": f"{line} The dashed line is the budget; a site refuses a round that "
        "would cross it.",
        "times": "Seconds of each federated round on this machine; simulated sites share it.",
        "again": "On CPU, the same study, seed, data and versions end in the same weights, bit for "
        "bit.",
    }


def _but_busy(run: RunData) -> str:
    if run.study.federation.algorithm != "fedbuff":
        return ""
    return "; before the last round of those alone that were not training: curves jump with them"


def _names_words_with_noise(run: RunData) -> bool:
    task = run.study.task
    return task.type == "report" and task.report.words_noise_multiplier is not None


def statuses(arm: Arm | None) -> dict[str, dict[int, str]]:
    """Return each site's answer to the request to train, by round; rounds not asked are absent."""
    found: dict[str, dict[int, str]] = {}
    for record in arm.rounds if arm else ():
        for name, site in record.sites.items():
            if is_training(site):
                found.setdefault(name, {})[record.round_number] = site.status
    return {name: found[name] for name in sorted(found, key=in_order)}


def by_round(statuses_of_site: Mapping[int, str]) -> str:
    """Write one site's answers as `ok 1-5, 7-12; late 6`, in the order of their first round."""
    grouped: dict[str, list[str]] = {}
    for status, first, last in stretches(statuses_of_site):
        which = f"{first}" if first == last else f"{first}\u2013{last}"
        grouped.setdefault(status, []).append(which)
    return "; ".join(f"{status} {', '.join(which)}" for status, which in grouped.items())


def sites_table(run: RunData) -> Table:
    """Return each site's two figures under the federated model, the worst site marked."""
    worst = results.worst_site(run)
    shown = (results.leading(run), results.beside(run))
    rows = []
    for name in run.site_names:
        metrics = run.federated.site_metrics(name) if run.federated else {}
        rows.append(
            (
                name + (" (worst)" if name == worst else ""),
                whole(metrics.get("num_images")),
                *(figure(metrics.get(one.key)) for one in shown),
            )
        )
    columns = ("Site", "Held-out images", *(one.title for one in shown))
    strong = frozenset(i for i, name in enumerate(run.site_names) if name == worst)
    return Table(columns, tuple(rows), strong=strong)
