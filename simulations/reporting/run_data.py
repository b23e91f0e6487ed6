"""`load_run`: everything a report shows, read from the run folder and from nothing else.

A run may be unfinished, and arms, examples and ledgers may be missing: `RunData` then holds less.
What is there must be whole: a damaged file is a RunError. A coordinator's folder of a deployed run
holds no more than it may know: no data, no image, no site's ledger.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from medfed.common.errors import RunError, StudyError
from medfed.common.study import StudyConfig
from medfed.common.study_file import load_study
from medfed.simulations.reporting.arms import (
    FEDERATED,
    LOCAL_PREFIX,
    Arm,
    arm_order,
    checked,
    optional_json,
    read_arms,
)
from medfed.simulations.reporting.examples import Example, read_examples
from medfed.simulations.reporting.tables import in_order
from medfed.simulations.uncertainty import UNCERTAINTY_FILE

if TYPE_CHECKING:
    from medfed.common.tasks import Task

QUEUE_FILE = "queue.json"
SWEEP_FILE = "sweep.json"


@dataclass(frozen=True)
class SplitCounts:
    """One side of a site's split.

    Attributes:
        patients: Patients.
        images: Images.
        labels: Images with each of `study.task.label_names`, in their order.
    """

    patients: int
    images: int
    labels: tuple[int, ...]


@dataclass(frozen=True)
class SiteFacts:
    """What the simulation knows about one site's data. Never leaves a real hospital."""

    train: SplitCounts
    test: SplitCounts
    public_num_patients: int | None = None
    expected_batch: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunData:
    """A run folder in memory.

    Attributes:
        folder: Where it was read from.
        study: The resolved study.
        task: What its sums and figures mean.
        environment: environment.json; empty if missing.
        simulation: simulation.json; empty if missing.
        sites: Facts about each site's data.
        arms: Arms that have started, federated first, then pooled, then local.
        missing_arms: Arms that are planned and have not started, in the same order.
        examples: Held-out images with the federated model's prediction.
        queue: queue.json, where a coordinator's queue made the folder; empty elsewhere.
        uncertainty: uncertainty.json: the bootstrap's intervals; empty if missing.
    """

    folder: Path
    study: StudyConfig
    task: "Task"
    environment: Mapping[str, Any]
    simulation: Mapping[str, Any]
    sites: Mapping[str, SiteFacts]
    arms: Mapping[str, Arm]
    missing_arms: tuple[str, ...]
    examples: tuple[Example, ...] = field(default=())
    queue: Mapping[str, Any] = field(default_factory=dict)
    uncertainty: Mapping[str, Any] = field(default_factory=dict)

    @property
    def deployed(self) -> bool:
        """Whether the sites are hospitals, of which this machine has no data."""
        return bool(self.queue) and not self.simulation

    @property
    def run(self) -> str:
        """The run's identifier."""
        return str(self.simulation.get("run") or self.folder.resolve().name)

    @property
    def shown_study(self) -> StudyConfig:
        """The study as pages show it, files by name: paths of this machine stay on it."""
        simulation = self.study.simulation
        if simulation is not None and PurePath(simulation.data).is_absolute():
            simulation = simulation.model_copy(update={"data": PurePath(simulation.data).name})
        return self.study.for_sites().model_copy(update={"simulation": simulation})

    @property
    def federated(self) -> Arm | None:
        """The federated arm, if it has started."""
        return self.arms.get(FEDERATED)

    @property
    def local_arms(self) -> dict[str, Arm]:
        """Arms that trained one site alone, by site."""
        return {
            name.removeprefix(LOCAL_PREFIX): arm
            for name, arm in self.arms.items()
            if name.startswith(LOCAL_PREFIX)
        }

    @property
    def site_names(self) -> tuple[str, ...]:
        """Every hospital of the run: as partitioned, or else as the federated arm saw them."""
        seen = (r.sites for r in self.federated.rounds) if self.federated else ()
        names = self.sites or {name for sites in seen for name in sites}
        return tuple(sorted(names, key=in_order))


def load_run(folder: Path, *, ends: bool = True) -> RunData:
    """Read a run folder.

    Args:
        folder: A run's folder.
        ends: Also read what was written after the arms. A run that goes on writes that anew:
            there, what a kill left of it is nothing to stop at.

    Raises:
        RunError: Not a run folder, or a damaged file; names the file and the way out.
        StudyError: The task is of a plug-in that is not installed here.
    """
    study_file = folder / "study.toml"
    if (folder / SWEEP_FILE).exists():
        raise RunError(
            f"{folder} is a sweep's folder. Name one of its runs, such as {folder}/runs/c001-s1."
        )
    if not study_file.is_file():
        raise RunError(
            f"Expected a run folder with study.toml at {folder}, found none. "
            "Name a folder that `medfed simulate` or `medfed federation run` made, such as "
            "runs/<name>."
        )
    # torch takes seconds to import, and `medfed --help` gets this far.
    from medfed.common.tasks import make_task

    try:
        study = load_study(study_file)
    except StudyError as error:
        raise RunError(f"{study_file} is damaged: {error}. Start a new run.") from None
    task = make_task(study)
    simulation = optional_json(folder / "simulation.json")
    queue = optional_json(folder / QUEUE_FILE)
    deployed = bool(queue) and not simulation
    if deployed:  # a study's [simulation] says nothing about hospitals
        study = study.model_copy(update={"simulation": None})
    checked(folder / "simulation.json", lambda: _check_tables(simulation))
    sites = checked(folder / "simulation.json", lambda: _sites(simulation, study))
    arms = read_arms(folder / "arms", study, task, deployed=deployed)
    started = {name: arm for name, arm in arms.items() if deployed or arm.state != "not started"}
    planned = checked(folder / "simulation.json", lambda: [*map(str, simulation.get("arms") or ())])
    return RunData(
        folder=folder,
        study=study,
        task=task,
        simulation=simulation,
        sites=sites,
        arms=started,
        missing_arms=tuple(sorted({*planned, *arms} - started.keys(), key=arm_order)),
        queue=queue,
        **(_ends_of(folder, study) if ends else {"environment": {}, "examples": ()}),
    )


def with_ends(run: RunData) -> RunData:
    """Return a run that was loaded when its arms had ended, with what was written since."""
    return replace(run, **_ends_of(run.folder, run.study))


def _ends_of(folder: Path, study: StudyConfig) -> dict[str, Any]:
    """Read what is written into a run's folder after its arms."""
    uncertainty = folder / UNCERTAINTY_FILE
    return {
        "environment": optional_json(folder / "environment.json"),
        "examples": read_examples(folder / "examples", study.task.type),
        "uncertainty": checked(uncertainty, lambda: _checked_uncertainty(uncertainty)),
    }


def _checked_uncertainty(path: Path) -> dict[str, Any]:
    table = optional_json(path)
    for facts in (table.get("figures") or {}).values():
        for one in (*facts["arms"].values(), *facts["differences"].values()):
            float(one["value"] or 0.0)
    return table


def _check_tables(simulation: Mapping[str, Any]) -> None:
    for key in ("dataset", "partition", "sites", "left_out"):
        if not isinstance(simulation.get(key) or {}, dict):
            raise TypeError(f"expected {key} to be a table")


def _sites(simulation: Mapping[str, Any], study: StudyConfig) -> dict[str, SiteFacts]:
    return {
        str(name): SiteFacts(
            train=_split(table["train"], len(study.task.label_names)),
            test=_split(table["test"], len(study.task.label_names)),
            public_num_patients=table.get("public_num_patients"),
            expected_batch=table.get("expected_batch"),
        )
        for name, table in (simulation.get("sites") or {}).items()
    }


def _split(table: Mapping[str, Any], num_labels: int) -> SplitCounts:
    labels = tuple(int(count) for count in table["labels"])
    if len(labels) != num_labels:
        raise ValueError(f"expected {num_labels} label counts, got {len(labels)}")
    return SplitCounts(int(table["patients"]), int(table["images"]), labels)
