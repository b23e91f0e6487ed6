"""`load_run`: everything a report shows, read from the run folder and from nothing else.

A run may be unfinished, and arms, examples and ledgers may be missing: `RunData` then holds less.
What is there must be whole: a damaged file is a RunError.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from medfed.common.errors import RunError, StudyError
from medfed.common.files import read_json
from medfed.common.metrics import MetricSums
from medfed.common.study import StudyConfig
from medfed.common.study_file import load_study
from medfed.server.records import ArmFolder, RoundRecord, RunPlan, SiteRound
from medfed.simulations.reporting.examples import Example, read_examples
from medfed.simulations.reporting.ledgers import LedgerFacts, read_ledger_of, read_ledgers
from medfed.simulations.reporting.model_facts import ModelSize, read_model_size
from medfed.simulations.reporting.vocabulary import VocabularyFacts, read_vocabulary_facts

if TYPE_CHECKING:
    from medfed.common.tasks import Task

FEDERATED = "federated"
POOLED = "pooled"
LOCAL_PREFIX = "local-"
EVALUATION_ONLY = "evaluation only"
_Value = TypeVar("_Value")


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


@dataclass(frozen=True)
class Arm:
    """One arm of the run, as far as it got.

    Attributes:
        name: federated, pooled, or local-<site>.
        rounds: Completed rounds, in order.
        final_sums: Held-out sums of the last evaluation by test site.
        outcome: state (finished or failed), reason, time; None while it has not ended.
        ledgers: What each site's ledger says, by site.
        server_ledger: What the server's says; None without site-level privacy.
        note: What this arm leaves out of the study.
        planned_rounds: Rounds the study asks for.
        vocabulary: The words of a report task; None before they are agreed, and for other tasks.
        model_size: How much of the model is sent; None before the first round is saved.
    """

    name: str
    rounds: tuple[RoundRecord, ...]
    final_sums: Mapping[str, MetricSums]
    outcome: Mapping[str, str] | None
    ledgers: Mapping[str, LedgerFacts]
    planned_rounds: int
    vocabulary: VocabularyFacts | None = None
    model_size: ModelSize | None = None
    server_ledger: LedgerFacts | None = None
    note: str = ""

    @property
    def evaluated(self) -> tuple[RoundRecord, ...]:
        """The rounds after which the model was evaluated."""
        return tuple(record for record in self.rounds if record.metrics is not None)

    @property
    def final_metrics(self) -> Mapping[str, float]:
        """Figures of the last evaluation over all sites' held-out images; empty before it."""
        return (self.evaluated[-1].metrics or {}) if self.evaluated else {}

    def site_metrics(self, site: str) -> Mapping[str, float]:
        """Figures of the last evaluation on one site's held-out images; empty without any."""
        record = self.evaluated[-1].sites.get(site) if self.evaluated else None
        return (record.metrics or {}) if record is not None else {}

    @property
    def state(self) -> str:
        """In words: finished, stopped early, failed, not started, or how far it got."""
        done, reason = len(self.rounds), (self.outcome or {}).get("reason", "")
        if self.outcome is None and not done:
            return "not started"
        if self.outcome is None:
            return f"unfinished, {done} of {self.planned_rounds} rounds"
        if self.outcome.get("state") != "finished":
            return f"failed after {done} of {self.planned_rounds} rounds: {reason}"
        if done < self.planned_rounds:
            return f"stopped after {done} of {self.planned_rounds} rounds: {reason}"
        return "finished"


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


def in_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key by which site-2 comes before site-10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return tuple((0, int(p), p) if p.isascii() and p.isdigit() else (1, 0, p) for p in parts)


def is_training(site: SiteRound) -> bool:
    """Whether the site was asked to train in this round."""
    return site.reason != EVALUATION_ONLY


def load_run(folder: Path) -> RunData:
    """Read a run folder.

    Raises:
        RunError: Not a run folder, or a damaged file; names the file and the way out.
    """
    study_file = folder / "study.toml"
    if not study_file.is_file():
        raise RunError(
            f"Expected a run folder with study.toml at {folder}, found none. "
            "Name a folder that `medfed simulate` made, such as runs/<name>."
        )
    # torch takes seconds to import, and `medfed --help` gets this far.
    from medfed.common.tasks import make_task

    try:
        study = load_study(study_file)
        task = make_task(study)
    except StudyError as error:
        raise RunError(f"{study_file} is damaged: {error}. Start a new run.") from None
    simulation = _optional_json(folder / "simulation.json")
    _checked(folder / "simulation.json", lambda: _check_tables(simulation))
    sites = _checked(folder / "simulation.json", lambda: _sites(simulation, study))
    arms = _read_arms(folder / "arms", study, task)
    planned = _checked(
        folder / "simulation.json", lambda: [*map(str, simulation.get("arms") or ())]
    )
    return RunData(
        folder=folder,
        study=study,
        task=task,
        environment=_optional_json(folder / "environment.json"),
        simulation=simulation,
        sites=sites,
        arms={name: arm for name, arm in arms.items() if arm.state != "not started"},
        missing_arms=tuple(
            sorted(
                {*planned, *arms}
                - {name for name, arm in arms.items() if arm.state != "not started"},
                key=_arm_order,
            )
        ),
        examples=read_examples(folder / "examples", study.task.type),
    )


def _checked(path: Path, read: Callable[[], _Value]) -> _Value:
    """Turn what a table of the wrong shape raises into a RunError that names the file."""
    try:
        return read()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"{path} is damaged: {type(error).__name__} {error}. "
            "Restore it, or start a new run; `medfed simulate --resume` mends an unfinished one."
        ) from None


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


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


def _read_arms(folder: Path, study: StudyConfig, task: "Task") -> dict[str, Arm]:
    if not folder.is_dir():
        return {}
    names = sorted((path.name for path in folder.iterdir() if path.is_dir()), key=_arm_order)
    return {name: _read_arm(folder / name, study, task) for name in names}


def _arm_order(name: str) -> tuple[object, ...]:
    order = [FEDERATED, POOLED]
    return (order.index(name) if name in order else len(order), in_order(name))


def _read_arm(folder: Path, study: StudyConfig, task: "Task") -> Arm:
    files = ArmFolder(folder)
    rounds = _checked(folder / "rounds.jsonl", files.read_rounds)
    sums = folder / "final_sums.json"
    words, state = folder / "vocabulary.json", files.checkpoint / "state.json"
    path = folder / "plan.json"
    plan = _checked(path, files.read_plan) if path.exists() else RunPlan(run="", arm=folder.name)
    return Arm(
        name=folder.name,
        rounds=tuple(rounds),
        final_sums=_checked(sums, lambda: _sums(_optional_json(sums), task)),
        outcome=_checked(folder / "outcome.json", files.read_outcome),
        ledgers=read_ledgers(folder / "sites"),
        planned_rounds=study.training.rounds,
        vocabulary=_checked(words, lambda: read_vocabulary_facts(_optional_json(words))),
        model_size=_checked(state, lambda: read_model_size(folder, _optional_json(state))),
        server_ledger=read_ledger_of(files.server_state(plan)),
        note=plan.note,
    )


def _sums(table: Mapping[str, Any], task: "Task") -> dict[str, MetricSums]:
    """Each site's sums, with the shapes that the task states; a site may withhold some."""
    shapes = task.sum_shapes()
    read: dict[str, MetricSums] = {}
    for site, parts in table.items():
        arrays = {name: np.asarray(values, dtype=np.int64) for name, values in parts.items()}
        for name, array in arrays.items():
            if array.shape != shapes.get(name):
                raise ValueError(
                    f"expected {name} of {site} with shape {shapes.get(name)}, got {array.shape}"
                )
        read[str(site)] = arrays
    return read
