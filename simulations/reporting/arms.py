"""One arm of a run, read from its folder and from nothing else.

What is missing is left out; a damaged file is a RunError that names it and the way out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from medfed.common.errors import RunError
from medfed.common.files import read_json
from medfed.common.metrics import MetricSums
from medfed.common.study import StudyConfig
from medfed.server.countersigning import HEADS_FILE
from medfed.server.records import STATISTICS_FILE, ArmFolder, RoundRecord, RunPlan, SiteRound
from medfed.simulations.reporting.alphas import Alphas, read_alphas
from medfed.simulations.reporting.cards import CardFacts, read_cards
from medfed.simulations.reporting.heads import HeadFacts, read_heads
from medfed.simulations.reporting.history import Happening, read_history
from medfed.simulations.reporting.ledgers import LedgerFacts, read_ledger_of, read_ledgers
from medfed.simulations.reporting.model_facts import ModelSize, read_model_size
from medfed.simulations.reporting.tables import in_order
from medfed.simulations.reporting.vocabulary import VocabularyFacts, read_vocabulary_facts

if TYPE_CHECKING:
    from medfed.common.tasks import Task

FEDERATED = "federated"
POOLED = "pooled"
LOCAL_PREFIX = "local-"
EVALUATION_ONLY = "evaluation only"
FEDERATED_GLOBAL = "federated global"
"""What files call the model of all sites where "federated" is each site's own."""
_Value = TypeVar("_Value")


class Released(NamedTuple):
    """Held-out sums over all sites that released the same of them."""

    sites: tuple[str, ...]
    sums: MetricSums


@dataclass(frozen=True)
class Arm:
    """One arm of the run, as far as it got.

    Attributes:
        name: federated, pooled, or local-<site>.
        rounds: Completed rounds, in order.
        final_sums: Held-out sums of the last evaluation.
        outcome: state (finished or failed), reason, time; None while it has not ended.
        ledgers: What each site's ledger says, by site.
        server_ledger: What the server's says; None without site-level privacy.
        note: What this arm leaves out of the study.
        planned_rounds: Rounds the study asks for.
        vocabulary: The words of a report task; None before they are agreed, and for other tasks.
        cards: What the sites said of their data; None before, and where no study asks.
        model_size: How much of the model is sent; None before the first round is saved.
        happened: What the server wrote down while it ran, oldest first.
        heads: What the server signed of the sites' ledgers; None if it signed nothing.
        alphas: With apfl, what each simulated site learned, by site and round.
    """

    name: str
    rounds: tuple[RoundRecord, ...]
    final_sums: tuple[Released, ...]
    outcome: Mapping[str, str] | None
    ledgers: Mapping[str, LedgerFacts]
    planned_rounds: int
    vocabulary: VocabularyFacts | None = None
    cards: CardFacts | None = None
    model_size: ModelSize | None = None
    server_ledger: LedgerFacts | None = None
    note: str = ""
    happened: tuple[Happening, ...] = ()
    heads: HeadFacts | None = None
    alphas: Alphas = field(default_factory=dict)

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
    def final_global_metrics(self) -> Mapping[str, float]:
        """With personal models, `final_metrics` of the global one; else empty."""
        return (self.evaluated[-1].global_metrics or {}) if self.evaluated else {}

    def site_global_metrics(self, site: str) -> Mapping[str, float]:
        """With personal models, `site_metrics` of the global one; else empty."""
        record = self.evaluated[-1].sites.get(site) if self.evaluated else None
        return (record.global_metrics or {}) if record is not None else {}

    @property
    def last_alphas(self) -> Mapping[str, float]:
        """What each site's alpha was at the end, by site; empty unless it is learned."""
        return {site: by_round[max(by_round)] for site, by_round in self.alphas.items()}

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


def is_training(site: SiteRound) -> bool:
    """Whether the site was asked to train in this round."""
    return site.reason != EVALUATION_ONLY


def checked(path: Path, read: Callable[[], _Value]) -> _Value:
    """Turn what a table of the wrong shape raises into a RunError that names the file."""
    try:
        return read()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"{path} is damaged: {type(error).__name__} {error}. "
            "Restore it, or start a new run; `medfed simulate --resume` mends an unfinished one."
        ) from None


def optional_json(path: Path) -> dict[str, Any]:
    """Return a table, or an empty one where there is no file."""
    return read_json(path) if path.exists() else {}


def read_arms(folder: Path, study: StudyConfig, task: "Task", *, deployed: bool) -> dict[str, Arm]:
    """Read every arm in the folder `arms` of a run.

    Args:
        folder: Where they are; it may be missing.
        study: The run's.
        task: Its task.
        deployed: Whether ledgers compose over runs, as in a deployment.

    Raises:
        RunError: A damaged file.
    """
    if not folder.is_dir():
        return {}
    names = sorted((path.name for path in folder.iterdir() if path.is_dir()), key=arm_order)
    return {name: _read_arm(folder / name, study, task, deployed) for name in names}


def model_name(arm: str) -> str:
    """Return what a run's files call the model of an arm: federated, pooled, `<site> alone`."""
    site = arm.removeprefix(LOCAL_PREFIX)
    return arm if site == arm else f"{site} alone"


def arm_order(name: str) -> tuple[object, ...]:
    """Sort key of arms: federated, pooled, then the local ones."""
    order = [FEDERATED, POOLED]
    return (order.index(name) if name in order else len(order), in_order(name))


def _read_arm(folder: Path, study: StudyConfig, task: "Task", deployed: bool) -> Arm:
    files = ArmFolder(folder)
    rounds = checked(folder / "rounds.jsonl", files.read_rounds)
    sums = folder / "final_sums.json"
    words, state = folder / "vocabulary.json", files.checkpoint / "state.json"
    described = folder / STATISTICS_FILE
    path = folder / "plan.json"
    plan = checked(path, files.read_plan) if path.exists() else RunPlan(run="", arm=folder.name)
    ledgers, own = read_ledgers(folder / "sites"), read_ledger_of(files.server_state(plan))
    if deployed:  # where later runs are in the same ledgers
        ledgers = {site: facts.until(plan.run) for site, facts in ledgers.items()}
        own = own.until(plan.run) if own else None
    happened = read_history(folder / "events.jsonl")
    return Arm(
        name=folder.name,
        rounds=tuple(rounds),
        final_sums=checked(sums, lambda: _sums(optional_json(sums), task)),
        outcome=_outcome(checked(folder / "outcome.json", files.read_outcome), happened),
        ledgers=ledgers,
        planned_rounds=study.training.rounds,
        vocabulary=checked(words, lambda: read_vocabulary_facts(optional_json(words))),
        cards=checked(described, lambda: read_cards(optional_json(described), study)),
        model_size=checked(state, lambda: read_model_size(folder, optional_json(state))),
        server_ledger=own,
        note=plan.note,
        happened=happened,
        heads=read_heads(folder / HEADS_FILE),
        alphas=read_alphas(
            folder / "sites", plan.run, study, rounds[-1].round_number if rounds else 0
        ),
    )


def _outcome(
    outcome: dict[str, str] | None, happened: tuple[Happening, ...]
) -> dict[str, str] | None:
    """Take no outcome for one from before the arm was started again."""
    started = [event.time for event in happened if event.kind == "started"]
    if outcome is None or not started or outcome.get("state") == "finished":
        return outcome
    return None if started[-1] > str(outcome.get("time", "")) else outcome


def _sums(table: Mapping[str, Any], task: "Task") -> tuple[Released, ...]:
    """The sums, with the shapes that the task states; sites may withhold some."""
    shapes = task.sum_shapes()
    read = []
    for group in table["groups"] if table else ():
        arrays = {name: np.asarray(own, dtype=np.int64) for name, own in group["sums"].items()}
        for name, array in arrays.items():
            if array.shape != shapes.get(name):
                raise ValueError(
                    f"expected {name} with shape {shapes.get(name)}, got {array.shape}"
                )
        read.append(Released(tuple(str(site) for site in group["sites"]), arrays))
    return tuple(read)
