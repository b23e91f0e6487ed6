"""Runs a study on fake hospitals: prepare, then every arm, then examples and report.

    federated     all sites train; FedAvg
    pooled        one site holds everyone's data: the ceiling
    local-<site>  one site trains alone: the floor

Every arm is a federation on the same code; they differ in who trains (`RunPlan`). Whatever is
killed goes on with `resume_study`, and ends in the same weights, bit for bit on CPU.
"""

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp

from medfed.client.app import app as client_app
from medfed.client.data.prepare import prepare_store
from medfed.client.data.site_data import check_population, load_site_data
from medfed.client.data.store import Store, read_quarantine
from medfed.client.site import load_site
from medfed.common.download import cache_folder
from medfed.common.errors import RunError
from medfed.common.files import read_json, without_waiting, write_atomically, write_json
from medfed.common.study import CompressionSection, StatisticsSection, StudyConfig
from medfed.common.study.aggregation import AggregationSection
from medfed.common.study_file import load_study, study_to_toml
from medfed.server.app import main as server_main
from medfed.server.records import ArmFolder, RunPlan, now
from medfed.server.words import read_public_words, write_vocabulary
from medfed.simulations.datasets.catalogue import load_dataset
from medfed.simulations.drifting import write_drifted_sites
from medfed.simulations.environment import describe_environment
from medfed.simulations.failing import check_names, sites_of
from medfed.simulations.grids.local import LocalGrid
from medfed.simulations.harmonised import store_harmonised
from medfed.simulations.labels import with_scarce_labels
from medfed.simulations.pace import check_pace, with_pace
from medfed.simulations.partition.seen import read_changes, store_as_seen
from medfed.simulations.poisoning import store_poisoned
from medfed.simulations.sites import (
    POOLED,
    FakeHospitals,
    describe_sites,
    make_hospitals,
    write_pooled_site,
    write_sites,
)
from medfed.simulations.uncertainty.columns import check_columns

log = logging.getLogger(__name__)

GridName = Literal["local", "ray"]
Preparing = Callable[[int, int], None]

# Public data needs no secret: the same pseudonyms everywhere let stores be shared and compared.
_PUBLIC_DATA_KEY = b"medfed simulations: public data"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to run, as against what: none of these changes a result.

    Attributes:
        grid: Where the federated arm's messages go.
        workers: Sites (then arms) at a time; 0 for as many as the cores allow.
        strict: Refuse a data set with unreadable images.
    """

    grid: GridName = "local"
    workers: int = 0
    strict: bool = False

    def num_workers(self, study: StudyConfig) -> int:
        """Return `workers` with 0 resolved for this machine."""
        if self.workers:
            return self.workers
        return max(1, len(os.sched_getaffinity(0)) // study.compute.threads)


def start_study(study: StudyConfig, run: Path, data: Path | None, options: Options) -> None:
    """Make the run folder of a new study.

    Raises:
        RunError: The folder exists already.
    """
    try:
        run.mkdir(parents=True)
    except FileExistsError:
        raise RunError(
            f"{run} exists already. Resume it with --resume {run}, or name another with --out."
        ) from None
    write_atomically(run / "study.toml", study_to_toml(study).encode())
    write_json(
        run / "run.json",
        {"run": run.name, "data": str(data.resolve()) if data else "", "strict": options.strict},
    )
    write_json(
        run / "environment.json",
        describe_environment(grid=options.grid, workers=options.num_workers(study)),
    )


def run_study(run: Path, options: Options, preparing: Preparing | None = None) -> None:
    """Bring the study in folder `run` to its end, from wherever it stands.

    Raises:
        MedfedError: What stopped it; nothing that was done is lost.
    """
    study = prepare_run(run, preparing)
    arms = list(read_json(run / "simulation.json")["arms"])
    sites = run / "arms" / "federated" / "sites"
    if not (run / "arms" / "federated").exists() or not sites.exists():
        raise RunError(f"{run} has lost its sites. Start the study again.")
    workers = options.num_workers(study)
    federated = sites_of(client_app, study, "federated")
    _run_arm(run / "arms" / "federated", options.grid, workers, federated)
    baselines = [run / "arms" / name for name in arms if name != "federated"]
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="arm") as pool:
        # A baseline has one site that trains, so the cores are filled by running several.
        runs = [
            pool.submit(_run_arm, arm, "local", 1, sites_of(client_app, study, arm.name))
            for arm in baselines
        ]
        for done in runs:
            done.result()
    from medfed.simulations.attack_success import write_attack_success
    from medfed.simulations.examples import write_examples
    from medfed.simulations.reporting.drawing import get_ready
    from medfed.simulations.uncertainty.write import write_uncertainty

    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="end") as pool:
        ends = (write_uncertainty, write_examples, write_attack_success)
        written = [pool.submit(write, run, study) for write in ends]
        pool.submit(get_ready)  # half a second of imports that the report needs
        for done in written:
            done.result()
    environment = read_json(run / "environment.json")
    write_json(run / "environment.json", {**environment, "finished": now()})


def read_run(run: Path) -> tuple[StudyConfig, dict[str, Any]]:
    """Return the study and the facts that a run folder was started with.

    Raises:
        RunError: Not a run folder.
    """
    if not (run / "run.json").exists() or not (run / "study.toml").exists():
        raise RunError(
            f"Expected a run folder with run.json and study.toml at {run}, found none. "
            "`medfed simulate STUDY` makes one and names it."
        )
    return load_study(run / "study.toml"), read_json(run / "run.json")


def prepare_run(run: Path, preparing: Preparing | None = None) -> StudyConfig:
    """Make a run's store, sites and plans unless they are there; return its study.

    Every arm's folder can then be run on any grid. `simulation.json` comes last: it says that all
    of it is complete.

    Raises:
        MedfedError: Data or study cannot be used; what to mend is in the message.
    """
    study, facts = read_run(run)
    if (run / "simulation.json").exists():
        return study
    assert study.simulation is not None
    dataset = load_dataset(study, Path(facts["data"]) if facts["data"] else None)
    store = prepare_store(
        dataset,
        study.task,
        study.data,
        parent=cache_folder() / "stores",
        pseudonym_key=_PUBLIC_DATA_KEY,
        strict=facts["strict"],
        progress=preparing,
    )
    check_columns(study, store.columns)
    hospitals = make_hospitals(store, study)
    check_names(study, hospitals.sites)
    check_pace(study, hospitals.sites)
    seen = store_as_seen(
        store,
        hospitals.sites,
        study.simulation.partition,
        seed=study.study.seed,
        progress=preparing,
    )
    hospitals = with_scarce_labels(hospitals, store, study)
    arms = _arm_names(study, hospitals)
    for arm in arms:
        _prepare_arm(run, arm, seen, hospitals, study)
    write_json(
        run / "simulation.json",
        {
            "run": facts["run"],
            "dataset": _describe_dataset(store, dataset.name, dataset.licence, dataset.citation),
            "partition": study.simulation.partition.model_dump(mode="json"),
            "sites": describe_sites(seen, hospitals.sites, study),
            "changes": read_changes(seen),
            "left_out": dict(hospitals.left_out),
            "arms": arms,
        },
    )
    return study


def _arm_names(study: StudyConfig, hospitals: FakeHospitals) -> list[str]:
    assert study.simulation is not None
    names = ["federated"]
    if "pooled" in study.simulation.arms:
        names.append("pooled")
    if "local" in study.simulation.arms:
        names += [f"local-{site}" for site in sorted(hospitals.sites)]
    return names


def _prepare_arm(
    run: Path, arm: str, store: Store, hospitals: FakeHospitals, study: StudyConfig
) -> None:
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
    quorum = min(study.federation.min_sites, len(names)) if arm == "federated" else 1
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


def _describe_dataset(store: Store, name: str, licence: str, citation: str) -> dict[str, Any]:
    quarantined = read_quarantine(store.folder)
    return {
        "name": name,
        "licence": licence,
        "citation": citation,
        "num_images": len(store),
        "num_patients": len(set(store.patients)),
        "num_quarantined": len(quarantined),
        # File names may hold a patient's name: the list stays with the store.
        "quarantine_list": str(store.folder / "quarantine.jsonl"),
    }


def _run_arm(folder: Path, grid: GridName, workers: int, app: ClientApp) -> None:
    arm = ArmFolder(folder)
    outcome = arm.read_outcome()
    if outcome is not None and outcome["state"] == "finished":
        return
    sites = sorted((folder / "sites").glob("*/site.toml"))
    if grid == "ray":
        from medfed.simulations.grids.ray import run_on_ray

        run_on_ray(folder, sites, app, workers=workers)
        return
    _run_locally(folder, sites, workers, app)


def _run_locally(folder: Path, sites: Sequence[Path], workers: int, app: ClientApp) -> None:
    nodes = {number: path for number, path in enumerate(sites, start=2)}
    context = Context(
        run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={"arm": str(folder)}
    )
    # Simulated sites owe nobody an account that outlives a power cut.
    with without_waiting(), LocalGrid(app, nodes, workers=workers) as grid:
        server_main(grid, context)
