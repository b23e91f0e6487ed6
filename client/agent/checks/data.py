"""Whether this site's data can be read and serve a study. Counts are for this screen alone."""

import json
from collections.abc import Iterator, Sequence

import numpy as np

from medfed.client import policy
from medfed.client.agent.checks.finding import Finding, Subject
from medfed.client.data.site_data import check_population, load_site_data
from medfed.client.data.store import Store, open_store
from medfed.client.planning import DataSetPlan, plan_study
from medfed.client.site import SiteConfig
from medfed.common.errors import DataError, SiteRefusal
from medfed.common.study import StudyConfig

_FEW = 20


def check_data(subject: Subject) -> Iterator[Finding]:
    """Open every store, decode images, look at labels and the split."""
    site = subject.site
    stores: list[Store] = []
    for path in site.data.stores:
        try:
            stores.append(open_store(site.path(path)))
        except DataError as error:
            yield Finding("data", "failed", f"{error} Mend data.stores, or prepare the data.")
            return
    yield from (_describe(store) for store in stores)
    yield from (_decode(store) for store in stores)
    yield _check_labels(stores)
    yield _check_split(site, stores)


def check_study(subject: Subject) -> Iterator[Finding]:
    """Hold a study to the data, the policy and the budget."""
    site, study = subject.site, subject.study
    if study is None:
        yield Finding("study", "skipped", "none named: --study STUDY.toml checks one")
        return
    yield _check_policy(site, study)
    yield _check_fit(site, study)
    yield _check_budget(plan_study(study, site))


def _describe(store: Store) -> Finding:
    patients = len(set(store.patients))
    text = f"{store.folder.name}: {len(store):,} images of {patients:,} patients, {store.task}"
    if store.num_quarantined:
        return Finding(
            "data",
            "warning",
            f"{text}; {store.num_quarantined:,} could not be used, "
            f"{store.folder / 'quarantine.jsonl'} says why.",
        )
    if patients < _FEW:
        return Finding("data", "warning", f"{text}: few to learn from, and fewer to hide among.")
    return Finding("data", "ok", text)


def _decode(store: Store) -> Finding:
    """Read the first and the last image, which lie at the ends of the file."""
    for row in (0, len(store) - 1):
        image = np.asarray(store.images_NCHW[row])
        if image.min() == image.max():
            return Finding(
                "image",
                "warning",
                f"{store.folder.name}: image {row} is of one single grey. Look at it, and at how "
                "the store was prepared.",
            )
    shape = " x ".join(str(side) for side in store.images_NCHW.shape[1:])
    return Finding("image", "ok", f"{store.folder.name}: {shape}, read and not empty")


def _check_labels(stores: Sequence[Store]) -> Finding:
    classes = stores[0].classes
    if any(store.classes != classes or store.task != stores[0].task for store in stores):
        return Finding(
            "labels",
            "failed",
            "The stores are for different tasks or labels. Give each a site folder of its own.",
        )
    if stores[0].task == "report" and not any(any(store.reports) for store in stores):
        return Finding("labels", "failed", "No image has a report. Prepare the data with reports.")
    counts = np.zeros(len(classes), dtype=np.int64)
    for store in stores:
        if store.one_label:
            counts += np.bincount(store.labels, minlength=len(classes))
        else:
            counts += store.labels.sum(axis=0, dtype=np.int64)
    missing = [name for name, count in zip(classes, counts, strict=True) if not count]
    text = ", ".join(f"{name} {count:,}" for name, count in zip(classes, counts, strict=True))
    if len(missing) == len(classes) and classes:
        return Finding("labels", "failed", "No image has a label. Prepare the data with labels.")
    if missing:
        return Finding("labels", "warning", f"{text}. No image shows {', '.join(missing)}.")
    return Finding("labels", "ok", text or "reports, no findings named")


def _check_split(site: SiteConfig, stores: Sequence[Store]) -> Finding:
    if not site.data.subset:
        splits = {split for store in stores for split in store.splits}
        if "" in splits:
            return Finding("split", "ok", "by patient, a share that each study names")
        if not {"train", "test"} <= splits:
            return Finding(
                "split", "failed", f"all images are on one side ({', '.join(sorted(splits))})."
            )
        return Finding("split", "ok", "by patient, as the data set has it")
    path = site.path(site.data.subset)
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        sides = [
            {
                (number, store.patients[row])
                for number, (store, rows) in enumerate(zip(stores, table[side], strict=True))
                for row in rows
            }
            for side in ("train", "test")
        ]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        return Finding("split", "failed", f"{path} names no rows of these stores ({error}).")
    train, test = ({patient for _, patient in side} for side in sides)
    if train & test:
        return Finding("split", "failed", f"{path}: a patient is on both sides. Mend it.")
    if not train or not test:
        return Finding("split", "failed", f"{path}: one side has no patient. Mend it.")
    return Finding("split", "ok", f"{len(train):,} patients to train on, {len(test):,} held out")


def _check_policy(site: SiteConfig, study: StudyConfig) -> Finding:
    try:
        policy.check_study(study, site.policy)
    except SiteRefusal as refusal:
        return Finding(
            "policy",
            "failed",
            f"{refusal} Change the policy in site.toml if you want to take part.",
        )
    return Finding("policy", "ok", f"{study.study.name} asks for nothing that it forbids")


def _check_fit(site: SiteConfig, study: StudyConfig) -> Finding:
    try:
        data = load_site_data(site, study)
        check_population(data, study, site)
    except DataError as error:
        return Finding("fit", "failed", str(error))
    return Finding(
        "fit",
        "ok",
        f"{len(data.train):,} images to train on, {len(data.test):,} held out, as "
        f"{study.study.name} needs them",
    )


def _check_budget(plan: DataSetPlan) -> Finding:
    if plan.refusal is not None:
        return Finding("budget", "failed", plan.refusal[1])
    if plan.affordable_rounds is None:
        return Finding("budget", "warning", "No epsilon bounds what this study costs.")
    cost = f"the study alone comes to epsilon {plan.alone:.2f} per {plan.unit}"
    if plan.stops_at is None:
        return Finding("budget", "ok", f"lasts for all {plan.rounds} rounds; {cost}")
    if not plan.affordable_rounds:
        return Finding("budget", "failed", f"not enough for a single round; {cost}.")
    return Finding(
        "budget",
        "warning",
        f"lasts for {plan.affordable_rounds} of {plan.rounds} rounds; {cost}. Then this site "
        "refuses, and the federation goes on without it.",
    )
