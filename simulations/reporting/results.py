"""How good the models are: the tables of figures, arm by arm, site by site and class by class."""

from collections.abc import Mapping

from medfed.common.metrics import add_sums, classification_metrics
from medfed.simulations.reporting.run_data import (
    FEDERATED,
    LOCAL_PREFIX,
    POOLED,
    Arm,
    RunData,
)
from medfed.simulations.reporting.tables import ABSENT, Table, figure, mean, whole
from medfed.simulations.reporting.training_plots import SiteScores

_ALL_SITES = ("auroc", "average_precision", "balanced_accuracy", "accuracy", "loss",
              "calibration_error")  # fmt: skip
_ALL_HEADINGS = ("AUROC", "Average precision", "Balanced accuracy", "Accuracy", "Loss",
                 "Calibration error")  # fmt: skip


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


def arms_table(run: RunData) -> Table:
    """Return every arm with its state: what ran, how far, how long."""
    rows = [
        (
            arm_title(name),
            arm.state,
            f"{len(arm.rounds)} of {arm.planned_rounds}",
            figure(arm.final_metrics.get("auroc")),
        )
        for name, arm in run.arms.items()
    ]
    rows += [(arm_title(name), "not started", "0", ABSENT) for name in run.missing_arms]
    return Table(
        ("Arm", "State", "Rounds", "AUROC"),
        tuple(rows),
        strong=frozenset(i for i, row in enumerate(rows) if row[1] != "finished"),
        text=frozenset({0, 1}),
    )


def comparison_table(run: RunData) -> Table:
    """Return federated against pooled against local, on all sites' images and on their own."""
    rows: list[tuple[str, ...]] = []
    for name in (POOLED, FEDERATED):
        arm = run.arms.get(name)
        if arm is not None and arm.final_metrics:
            own = [own_site_mean(run, arm, key) for key in ("auroc", "balanced_accuracy")]
            rows.append(_comparison_row(arm_title(name), arm.final_metrics, own))
    trained = {site: arm for site, arm in run.local_arms.items() if arm.final_metrics}
    if trained:
        means = {key: value for key in _ALL_SITES if (value := local_mean(run, key)) is not None}
        own = [local_own_mean(run, key) for key in ("auroc", "balanced_accuracy")]
        title = f"Local only, mean of {len(trained)}"
        rows.append(_comparison_row(title, means, own))
    strong = frozenset(range(len(rows)))
    for site, arm in trained.items():
        metrics = arm.site_metrics(site)
        own = [metrics.get(key) for key in ("auroc", "balanced_accuracy")]
        rows.append(_comparison_row(arm_title(arm.name), arm.final_metrics, own))
    columns = ("Model", *_ALL_HEADINGS, "AUROC, own site", "Balanced accuracy, own site")
    return Table(columns, tuple(rows), strong=strong)


def _comparison_row(
    title: str, metrics: Mapping[str, float], own: list[float | None]
) -> tuple[str, ...]:
    return (title, *(figure(metrics.get(key)) for key in _ALL_SITES), *map(figure, own))


def site_scores(run: RunData, key: str) -> tuple[SiteScores, ...]:
    """Return each site's figure under the federated, the pooled and its own local model."""

    def score(arm: Arm | None, site: str) -> float | None:
        return None if arm is None else arm.site_metrics(site).get(key)

    return tuple(
        SiteScores(
            site,
            federated=score(run.federated, site),
            pooled=score(run.arms.get(POOLED), site),
            local=score(run.local_arms.get(site), site),
        )
        for site in run.site_names
    )


def worst_site(run: RunData) -> str | None:
    """Return the site with the lowest federated AUROC, if at least two have one."""
    known = [(row.federated, row.site) for row in site_scores(run, "auroc") if row.federated]
    return min(known)[1] if len(known) > 1 else None


def sites_table(run: RunData) -> Table:
    """Return each site's AUROC and balanced accuracy under the three models, the worst marked."""
    worst = worst_site(run)
    rows = []
    for area, accuracy in zip(
        site_scores(run, "auroc"), site_scores(run, "balanced_accuracy"), strict=True
    ):
        metrics = run.federated.site_metrics(area.site) if run.federated else {}
        values = (area.federated, area.pooled, area.local)
        more = (accuracy.federated, accuracy.pooled, accuracy.local)
        gain = None if area.federated is None or area.local is None else area.federated - area.local
        rows.append(
            (
                area.site + (" (lowest)" if area.site == worst else ""),
                whole(metrics.get("num_images")),
                *map(figure, values),
                ABSENT if gain is None else f"{gain:+.3f}",
                *map(figure, more),
            )
        )
    columns = ("Site", "Held-out images", "AUROC federated", "AUROC pooled", "AUROC own data",
               "Gain over own data", "Bal. acc. federated", "Bal. acc. pooled",
               "Bal. acc. own data")  # fmt: skip
    strong = frozenset(i for i, name in enumerate(run.site_names) if name == worst)
    return Table(columns, tuple(rows), strong=strong)


def classes_table(run: RunData) -> Table:
    """Return the federated model's figures for each class, all held-out images together."""
    sums = list(run.federated.final_sums.values()) if run.federated else []
    classes = run.study.task.classes
    columns = ("Class", "Images with it", "AUROC", "Sensitivity", "Specificity", "True positives",
               "False negatives", "False positives", "True negatives")  # fmt: skip
    if not sums:
        return Table(columns, ())
    total = add_sums(sums)
    metrics = classification_metrics(total, classes)
    rows = []
    for index, name in enumerate(classes):
        (tn, fp), (fn, tp) = total["confusion"][index].tolist()
        rows.append(
            (
                name,
                whole(tp + fn),
                *(figure(metrics.get(f"{key}/{name}")) for key in
                  ("auroc", "sensitivity", "specificity")),
                *map(whole, (tp, fn, fp, tn)),
            )
        )  # fmt: skip
    return Table(columns, tuple(rows))
