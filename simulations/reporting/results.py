"""How good the models are: the tables of figures, arm by arm and site by site."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from medfed.common.metrics import MetricSums
from medfed.simulations.reporting.arms import FEDERATED, LOCAL_PREFIX, POOLED, Arm
from medfed.simulations.reporting.run_data import RunData
from medfed.simulations.reporting.tables import ABSENT, Table, figure, mean, whole, without_absent

if TYPE_CHECKING:
    from medfed.common.tasks import Figure

ARMS = ("federated", "pooled", "local")
# Where "Federated" is each site's personal model.
GLOBAL_MODEL = "Federated, global model"
# What stands beside the leading figure, site by site: the first that the task has.
_BESIDE = ("balanced_accuracy", "hd95", "bleu4", "rouge_l")


def leading(run: RunData) -> "Figure":
    """Return the figure that everything leads with."""
    return run.task.figures[0]


def beside(run: RunData) -> "Figure":
    """Return the figure that is shown beside the leading one."""
    others = {figure.key: figure for figure in run.task.figures[1:]}
    found = (others[key] for key in _BESIDE if key in others)
    # A plug-in's task may have others, or one alone.
    return next(found, run.task.figures[:2][-1])


def federated_sums(run: RunData) -> MetricSums | None:
    """Return the federated model's sums over all sites' held-out images, if it was evaluated.

    Sites whose policy withholds a part of theirs are left out: what they lack cannot be added.
    """
    names = set(run.task.sum_shapes())
    found = run.federated.final_sums if run.federated else ()
    return next((group.sums for group in found if set(group.sums) == names), None)


def arm_title(name: str) -> str:
    """What the page calls an arm."""
    if name == FEDERATED:
        return "Federated"
    if name == POOLED:
        return "Pooled"
    return f"Only {name.removeprefix(LOCAL_PREFIX)}"


def final(run: RunData, arm: str, key: str) -> float | None:
    """Return an arm's last figure on all sites' held-out images, or None without one."""
    return run.arms[arm].final_metrics.get(key) if arm in run.arms else None


def local_mean(run: RunData, key: str) -> float | None:
    """Return the mean over the local models, each on all sites' held-out images."""
    return mean([arm.final_metrics.get(key) for arm in run.local_arms.values()])


def own_site_mean(run: RunData, arm: Arm | None, key: str) -> float | None:
    """Return the mean over sites of one model's figure on each site's held-out images."""
    if arm is None:
        return None
    return mean([arm.site_metrics(site).get(key) for site in run.site_names])


def local_own_mean(run: RunData, key: str) -> float | None:
    """Return the mean over the local models, each on its own site's held-out images."""
    return mean([arm.site_metrics(site).get(key) for site, arm in run.local_arms.items()])


def by_arm(run: RunData, key: str) -> tuple[float | None, ...]:
    """Return a figure on all sites' held-out images for each of `ARMS`; local is their mean."""
    return final(run, FEDERATED, key), final(run, POOLED, key), local_mean(run, key)


def baseline_notes(run: RunData) -> tuple[str, ...]:
    """Say what the pooled and the local arms leave out of the study, equal ones together."""
    notes: dict[str, list[str]] = {}
    for name, arm in run.arms.items():
        title = arm_title(name) if name in (FEDERATED, POOLED) else "Local arms"
        if arm.note and title not in notes.setdefault(arm.note, []):
            notes[arm.note].append(title)
    return tuple(f"{' and '.join(titles)}: {note}" for note, titles in notes.items())


def withholding_sites(run: RunData) -> tuple[str, ...]:
    """Return the sites that kept a part of their figures back at the last evaluation."""
    names = set(run.task.sum_shapes())
    found = run.federated.final_sums if run.federated else ()
    holding = {site for group in found if set(group.sums) != names for site in group.sites}
    return tuple(site for site in run.site_names if site in holding)


def arms_table(run: RunData) -> Table:
    """Return every arm with its state: what ran, how far, how good."""
    first = leading(run)
    rows = [
        (
            arm_title(name),
            arm.state,
            f"{len(arm.rounds)} of {arm.planned_rounds}",
            figure(arm.final_metrics.get(first.key)),
        )
        for name, arm in run.arms.items()
    ]
    rows += [(arm_title(name), "not started", "0", ABSENT) for name in run.missing_arms]
    return Table(
        ("Arm", "State", "Rounds", first.title),
        tuple(rows),
        strong=frozenset(i for i, row in enumerate(rows) if row[1] != "finished"),
        text=frozenset({0, 1}),
    )


def comparison_table(run: RunData) -> Table:
    """Return federated against pooled against local, on all sites' images and on their own."""
    shown, own = run.task.figures, (leading(run), beside(run))

    def row(
        title: str, metrics: Mapping[str, float], on_own: list[float | None]
    ) -> tuple[str, ...]:
        return (title, *(figure(metrics.get(one.key)) for one in shown), *map(figure, on_own))

    rows = []
    for name in (POOLED, FEDERATED):
        arm = run.arms.get(name)
        if arm is not None and arm.final_metrics:
            on_own = [own_site_mean(run, arm, one.key) for one in own]
            rows.append(row(arm_title(name), arm.final_metrics, on_own))
        if arm is not None and arm.final_global_metrics:
            found = [[arm.site_global_metrics(s).get(o.key) for s in run.site_names] for o in own]
            rows.append(row(GLOBAL_MODEL, arm.final_global_metrics, [mean(one) for one in found]))
    trained = {site: arm for site, arm in run.local_arms.items() if arm.final_metrics}
    if trained:
        means = {one.key: local_mean(run, one.key) for one in shown}
        known = {key: value for key, value in means.items() if value is not None}
        on_own = [local_own_mean(run, one.key) for one in own]
        rows.append(row(f"Local only, mean of {len(trained)}", known, on_own))
    strong = frozenset(range(len(rows)))
    for site, arm in trained.items():
        on_own = [arm.site_metrics(site).get(one.key) for one in own]
        rows.append(row(arm_title(arm.name), arm.final_metrics, on_own))
    titles = [one.title for one in shown] + [f"{one.title}, own site" for one in own]
    return Table(("Model", *titles), tuple(rows), strong=strong)


def site_scores(run: RunData, key: str) -> dict[str, tuple[float | None, ...]]:
    """Return each site's figure for each of `ARMS`: federated, pooled and its own local model."""

    def score(arm: Arm | None, site: str) -> float | None:
        return None if arm is None else arm.site_metrics(site).get(key)

    return {
        site: (
            score(run.federated, site),
            score(run.arms.get(POOLED), site),
            score(run.local_arms.get(site), site),
        )
        for site in run.site_names
    }


def worst_site(run: RunData) -> str | None:
    """Return the site where the federated leading figure is worst, if at least two have one."""
    shown = leading(run)
    scores = site_scores(run, shown.key)
    known = [(score, site) for site, (score, _, _) in scores.items() if score is not None]
    pick = max if shown.higher_is_better is False else min
    return pick(known)[1] if len(known) > 1 else None


def _classes_held_out(run: RunData, site: str) -> str:
    """`3 of 7` where sites differ in the classes that figures are averages over, else a dash."""
    if run.study.task.type != "classification" or site not in run.sites:
        return ABSENT
    held_out = {name: facts.test.labels for name, facts in run.sites.items()}
    counts = {name: sum(number > 0 for number in numbers) for name, numbers in held_out.items()}
    every = len(held_out[site])
    return ABSENT if set(counts.values()) == {every} else f"{counts[site]} of {every}"


def sites_table(run: RunData) -> Table:
    """Return each site's two figures under the three models, the worst site marked."""
    worst = worst_site(run)
    first, second = leading(run), beside(run)
    more = site_scores(run, second.key)
    rows = []
    for site, values in site_scores(run, first.key).items():
        metrics = run.federated.site_metrics(site) if run.federated else {}
        federated, _, local = values
        gain = None if federated is None or local is None else federated - local
        rows.append(
            (
                site + (" (worst)" if site == worst else ""),
                whole(metrics.get("num_images")),
                *map(figure, values),
                ABSENT if gain is None else f"{gain:+.3f}",
                *map(figure, more[site]),
                _classes_held_out(run, site),
            )
        )
    models = ("federated", "pooled", "own data")
    columns = (
        "Site",
        "Held-out images",
        *(f"{first.title} {model}" for model in models),
        "Gain over own data",
        *(f"{second.title} {model}" for model in models),
        "Classes held out",
    )
    strong = frozenset(i for i, name in enumerate(run.site_names) if name == worst)
    return without_absent(Table(columns, tuple(rows), strong=strong))
