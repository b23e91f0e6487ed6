"""The arms of a study: what each of them trains on, and what of the study it does.

federated     all sites train
pooled        one site holds everyone's data: the ceiling
local-<site>  one site trains alone: the floor
"""

from pathlib import Path
from typing import Any

from medfed.client.data.site_data import check_population, load_site_data
from medfed.client.data.store import Store
from medfed.client.site import load_site
from medfed.common.files import write_atomically
from medfed.common.study import CompressionSection, StatisticsSection, StudyConfig
from medfed.common.study.aggregation import AggregationSection
from medfed.server.records import ArmFolder, RunPlan
from medfed.server.words import read_public_words, write_vocabulary
from medfed.simulations.drifting import write_drifted_sites
from medfed.simulations.harmonised import store_harmonised
from medfed.simulations.pace import with_pace
from medfed.simulations.poisoning import store_poisoned
from medfed.simulations.sites import POOLED, FakeHospitals, write_pooled_site, write_sites


def arm_names(study: StudyConfig, hospitals: FakeHospitals) -> list[str]:
    """Return the arms that a study asks for; the federated one always runs, and first."""
    assert study.simulation is not None
    names = ["federated"]
    if "pooled" in study.simulation.arms:
        names.append("pooled")
    if "local" in study.simulation.arms:
        names += [f"local-{site}" for site in sorted(hospitals.sites)]
    return names


def prepare_arm(
    run: Path, arm: str, store: Store, hospitals: FakeHospitals, study: StudyConfig
) -> None:
    """Make an arm's folder: its own study, its sites and its plan.

    Args:
        run: The run's folder.
        arm: One of `arm_names`.
        store: All images, as the sites see them.
        hospitals: Who has which of them.
        study: The whole run's.

    Raises:
        MedfedError: A site that trains has too few patients or images.
    """
    folder = run / "arms" / arm
    names = tuple(sorted(hospitals.sites))
    own, train_sites, note = study, names, ""
    if arm == "federated":
        store = store_poisoned(store, hospitals.sites, study)
    else:
        own, note = _alone(study, is_pooled=arm == "pooled")
    if arm == "pooled":
        if study.data.harmonise != "none":
            store = store_harmonised(store, hospitals.sites, study)
        own, train_sites = _pooled_study(own, _num_training(study, len(names))), (POOLED,)
    elif arm != "federated":
        own, train_sites = _local_study(own), (arm.removeprefix("local-"),)
    # Of the arm's own study: what a site's policy allows is what that asks.
    paths = write_sites(folder / "sites", store, hospitals.sites, own)
    if arm == "pooled":
        paths.append(write_pooled_site(folder / "sites", store, hospitals.sites, own))
    write_drifted_sites(paths, store, hospitals.sites, own)
    for path in paths:
        site = load_site(path)
        if site.name in train_sites:
            check_population(load_site_data(site, own), own, site)
    quorum = study.federation.min_sites if arm == "federated" else 1
    # Ledgers of different arms must not share a run's name: each arm spends on its own copy.
    plan = RunPlan(
        run=f"{run.name}/{arm}",
        arm=arm,
        min_sites=quorum,
        expected_sites=len(paths),
        train_sites=train_sites,
        evaluate_sites=names,
        seeded_noise=True,
        note=note,
    )
    if study.task.report.vocabulary:
        words = read_public_words(Path(study.task.report.vocabulary))
        write_vocabulary(folder, words)
    ArmFolder(folder).write_plan(with_pace(plan, own))
    write_atomically(folder / "study.json", own.for_sites().to_json().encode())


def _alone(study: StudyConfig, *, is_pooled: bool) -> tuple[StudyConfig, str]:
    """Return what of a study a site that trains alone can do, and what that leaves out.

    Site-level privacy hides a site among others, secure aggregation an update among others.
    Statistics are for a server that sees no data. Alone, no update travels that could be made
    small, and there is no other to be combined with or outvoted. Grey levels are brought to those
    of all sites: one site alone knows no others, and whoever holds all data does it beforehand,
    site by site.
    """
    # What an algorithm or a rule does is about several sites: alone, training is training.
    changes: dict[str, Any] = {
        "aggregation": AggregationSection(),
        "statistics": StatisticsSection(),
        "compression": CompressionSection(),
        "federation": study.federation.without_algorithm(),
    }
    left_out = []
    if study.data.harmonise != "none":
        changes["data"] = study.data.model_copy(update={"harmonise": "none"})
        if not is_pooled:
            left_out.append("harmonised grey levels (a site alone knows no others)")
    if study.privacy.unit == "site":
        changes["privacy"] = study.privacy.model_copy(update={"unit": "none"})
        left_out.append("differential privacy (its unit is the site, and this arm trains on one)")
    if study.secure_aggregation.enabled:
        off = {"enabled": False, "distributed_noise": "none"}
        changes["secure_aggregation"] = study.secure_aggregation.model_copy(update=off)
        left_out.append("secure aggregation (there is nothing to add up)")
    note = f"Without {' and without '.join(left_out)}." if left_out else ""
    if is_pooled and study.data.harmonise != "none":
        by_site = "Grey levels were harmonised beforehand, site by site, from exact histograms."
        note = f"{note} {by_site}".strip()
    return study.model_copy(update=changes), note


def _num_training(study: StudyConfig, num_sites: int) -> int:
    """Return how many sites train for one round, as it is drawn or expected."""
    federation = study.federation
    return federation.buffer_size or max(1, round(federation.fraction * num_sites))


def _pooled_study(study: StudyConfig, num_sites: int) -> StudyConfig:
    """The same budget of images: without DP, steps that were taken side by side come in turn."""
    steps = study.training.local_steps
    if study.privacy.enabled or steps is None:
        return study
    training = study.training.model_copy(update={"local_steps": steps * num_sites})
    return study.model_copy(update={"training": training})


def _local_study(study: StudyConfig) -> StudyConfig:
    """A site alone, evaluated at the end only: its curve is not what is compared."""
    evaluation = study.evaluation.model_copy(update={"every": study.training.rounds})
    return study.model_copy(update={"evaluation": evaluation})
