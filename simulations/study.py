"""Runs a study on fake hospitals: prepare, then every arm, then examples and report.

Every arm (`arms`) is a federation on the same code; they differ in who trains (`RunPlan`). Whatever
is killed goes on with `run_study`, and ends in the same weights, bit for bit on CPU.
"""

import logging
import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp

from medfed.client.app import app as client_app
from medfed.client.data.prepare import prepare_store
from medfed.client.data.store import Store, read_quarantine
from medfed.common.arithmetic import device_for
from medfed.common.download import cache_folder
from medfed.common.errors import RunError, StudyError
from medfed.common.files import read_json, without_waiting, write_atomically, write_json
from medfed.common.study import StudyConfig
from medfed.common.study_file import load_study, parse_study_json, study_to_toml
from medfed.server.app import main as server_main
from medfed.server.records import ArmFolder, now
from medfed.simulations.arms import arm_names, prepare_arm
from medfed.simulations.baselines import take_over_baselines
from medfed.simulations.datasets.catalogue import load_dataset
from medfed.simulations.environment import describe_environment
from medfed.simulations.failing import check_names, check_quorum, sites_of
from medfed.simulations.grids.local import LocalGrid
from medfed.simulations.labels import with_scarce_labels
from medfed.simulations.pace import check_pace
from medfed.simulations.partition.seen import read_changes, store_as_seen
from medfed.simulations.sites import (
    describe_sites,
    make_hospitals,
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
        siblings: Folder of a sweep's runs, whose baselines are taken over where they are the same.
    """

    grid: GridName = "local"
    workers: int = 0
    strict: bool = False
    siblings: Path | None = None

    def num_workers(self, study: StudyConfig) -> int:
        """Return `workers` with 0 resolved for this machine."""
        if self.workers:
            return self.workers
        return max(1, len(os.sched_getaffinity(0)) // study.compute.threads)


def exists_already(folder: Path) -> RunError:
    """Return the refusal of a folder that is there; a run or a sweep can go on, others cannot."""
    if not any((folder / name).is_file() for name in ("run.json", "sweep.json")):
        return RunError(
            f"{folder} exists already, and is no run that could go on. Name another folder with "
            "--out, or remove it."
        )
    resume = shlex.quote(str(folder))
    return RunError(
        f"{folder} exists already. Resume it with --resume {resume}, or name another with --out."
    )


def start_study(study: StudyConfig, run: Path, data: Path | None, options: Options) -> None:
    """Make the run folder of a new study.

    Raises:
        RunError: The folder exists already.
    """
    try:
        run.mkdir(parents=True)
    except FileExistsError:
        raise exists_already(run) from None
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
    write_ends(run, run_arms(run, options, preparing), options)


def run_arms(run: Path, options: Options, preparing: Preparing | None = None) -> StudyConfig:
    """Prepare the study in folder `run` and bring its arms to their end; return it.

    Raises:
        MedfedError: What stopped it; nothing that was done is lost.
    """
    check_device(read_run(run)[0])
    study = prepare_run(run, preparing, options.siblings)
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
    return study


def write_ends(run: Path, study: StudyConfig, options: Options) -> None:
    """Write what is worked out when all arms have ended: intervals, examples, attacks' success."""
    from medfed.simulations.attack_success import write_attack_success
    from medfed.simulations.examples import write_examples
    from medfed.simulations.reporting.drawing import get_ready
    from medfed.simulations.uncertainty.write import write_uncertainty

    workers = options.num_workers(study)
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


def check_device(study: StudyConfig) -> None:
    """Check that there is a GPU if the study insists on one.

    Raises:
        StudyError: There is none.
    """
    if device_for(study.compute.device) is None:
        raise StudyError(
            'Expected a GPU for compute.device = "cuda", found none. Set it to "auto" or "cpu", or '
            "run the study on a machine that has one."
        )


def prepare_run(
    run: Path, preparing: Preparing | None = None, siblings: Path | None = None
) -> StudyConfig:
    """Make a run's store, sites and plans unless they are there; return its study.

    Every arm's folder can then be run on any grid. `simulation.json` comes last: it says that all
    of it is complete. Baselines that a run in `siblings` has are taken over.

    Raises:
        MedfedError: Data or study cannot be used; what to mend is in the message.
    """
    study, facts = read_run(run)
    if (run / "simulation.json").exists():
        _check_same_study(run, study)
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
    check_quorum(study, hospitals.sites)
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
    arms = arm_names(study, hospitals)
    # simulation.json comes when all of this is on the disk: until then a run begins anew.
    with without_waiting():
        if siblings is not None:
            shutil.rmtree(run / "arms", ignore_errors=True)
        for arm in arms:
            prepare_arm(run, arm, seen, hospitals, study)
        if siblings is not None:
            take_over_baselines(run, study, arms, siblings)
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


def _check_same_study(run: Path, study: StudyConfig) -> None:
    """Check that study.toml says what the arms train, as far as sites are told of it."""
    path = run / "arms" / "federated" / "study.json"
    if path.exists() and parse_study_json(path.read_text(encoding="utf-8")) != study.for_sites():
        raise RunError(
            f"{run / 'study.toml'} is not the study that this run was started with. Put it back "
            "as it was, or start another run with --out."
        )


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
