"""The round loop: configure -> send -> screen -> aggregate -> evaluate -> checkpoint -> record.

Flower's `Strategy.start` has no start round, no checkpoint and no early stop; this has, and resumes
from the last complete round with the same weights, bit for bit.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from torch import nn

from medfed.common import messages
from medfed.common.errors import RefusalReason, RunError
from medfed.common.files import write_json
from medfed.common.models import build_model, frozen_state_digest, trained_state
from medfed.common.state_dicts import StateDict, digest, read_state, write_state
from medfed.common.study import StudyConfig
from medfed.common.tasks import make_task
from medfed.server.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, write_weights
from medfed.server.exchange import Exchange
from medfed.server.joining import join_sites
from medfed.server.participants import Participant
from medfed.server.records import ArmFolder, RoundRecord, RunPlan, now
from medfed.server.strategy import FedAvgStrategy
from medfed.server.words import agree_on_words

_NO_CONFIG = ConfigRecord()


@dataclass
class _Progress:
    """Where the run stands: the next round starts from these.

    Attributes:
        model: Holds what is frozen; what trains of it is in `weights`.
        arrays: `weights`, packed.
        weights: What trains, after the last round.
        round_number: The last complete round.
    """

    model: nn.Module
    arrays: ArrayRecord
    weights: StateDict
    round_number: int


def run_study(grid: Grid, study: StudyConfig, plan: RunPlan, arm: ArmFolder) -> None:
    """Run the arm to its end, from its last complete round if it has one.

    Raises:
        RunError: Too few sites joined or answered; the checkpoint stays for `--resume`.
    """
    checkpoint = load_checkpoint(arm.checkpoint, study.digest())
    done = checkpoint.record.round_number if checkpoint else 0
    if done >= study.training.rounds and arm.read_outcome() is not None:
        return
    arm.emit("started", arm=plan.arm, rounds=study.training.rounds, after=done)
    sites = join_sites(grid, study, plan, arm)
    trainers = _named(sites, plan.train_sites)
    words = agree_on_words(grid, study, plan, arm, trainers)
    progress = _resume(study, words, checkpoint, arm)
    strategy = FedAvgStrategy(
        study,
        plan.run,
        trainers=trainers,
        evaluators=_named(sites, plan.evaluate_sites),
        words=words,
        frozen_sha256=frozen_state_digest(progress.model),
    )
    strategy.summary()
    reason = ""
    while progress.round_number < study.training.rounds and not reason:
        reason = _round(grid, study, plan, arm, strategy, progress)
    _finish(study, arm, strategy, progress, reason)


def _resume(
    study: StudyConfig, words: tuple[str, ...], checkpoint: Checkpoint | None, arm: ArmFolder
) -> _Progress:
    model = build_model(study, make_task(study, words).num_outputs)
    if checkpoint is None:
        weights = trained_state(model)
        arm.rewrite_rounds([])
        return _Progress(model, messages.pack_arrays(weights), weights, 0)
    last = checkpoint.record
    # The record of the last round may be missing or torn: the checkpoint has it whole.
    earlier = [r for r in arm.read_rounds() if r.round_number < last.round_number]
    arm.rewrite_rounds([*earlier, last])
    return _Progress(
        model, messages.pack_arrays(checkpoint.weights), checkpoint.weights, last.round_number
    )


def _named(sites: dict[str, Participant], names: tuple[str, ...] | None) -> list[Participant]:
    chosen = sorted(sites) if names is None else [name for name in names if name in sites]
    return [sites[name] for name in chosen]


def _round(
    grid: Grid,
    study: StudyConfig,
    plan: RunPlan,
    arm: ArmFolder,
    strategy: FedAvgStrategy,
    progress: _Progress,
) -> str:
    """Run the next round. Returns why the run ends here, or nothing to go on."""
    started, clock = now(), time.perf_counter()
    number = progress.round_number + 1
    outgoing = strategy.configure_train(number, progress.arrays, _NO_CONFIG, grid)
    arm.emit("round", round=number, sites=len(outgoing))
    exchange = Exchange(grid)
    replies = exchange.replies(outgoing, study.federation.round_timeout_s)
    arrays, _ = strategy.aggregate_train(number, _announced(replies, arm, "trained", number))
    strategy.note_failures(exchange.failures)
    if arrays is None or strategy.num_updates < plan.min_sites:
        return _without_quorum(plan, strategy, number)
    progress.arrays, progress.weights = arrays, messages.unpack_arrays(arrays)
    progress.round_number = number
    metrics = _evaluate(grid, study, arm, strategy, progress)
    record = RoundRecord(
        round_number=number,
        started=started,
        seconds=time.perf_counter() - clock,
        sites=dict(sorted(strategy.sites.items())),
        metrics=metrics,
        weights_sha256=digest(progress.weights),
    )
    save_checkpoint(arm.checkpoint, Checkpoint(progress.weights, record), study.digest())
    arm.append_round(record)
    epsilons = [site.epsilon for site in strategy.sites.values() if site.epsilon is not None]
    arm.emit("completed", round=number, metrics=metrics, epsilon=max(epsilons, default=None))
    return ""


def _announced(
    replies: Iterable[Message], arm: ArmFolder, event: str, number: int
) -> Iterator[Message]:
    for message in replies:
        yield message
        arm.emit(event, round=number)


def _without_quorum(plan: RunPlan, strategy: FedAvgStrategy, number: int) -> str:
    """Say why too few sites answered: a spent budget ends the run, anything else fails it."""
    states = {name: site for name, site in strategy.sites.items() if site.status != "ok"}
    answers = ", ".join(f"{name}: {site.status} ({site.reason})" for name, site in states.items())
    over_budget = [n for n, site in states.items() if site.reason == RefusalReason.BUDGET.value]
    if over_budget and len(over_budget) == len(states):
        return f"privacy budget spent before round {number} at {', '.join(sorted(over_budget))}"
    raise RunError(
        f"Round {number} had {strategy.num_updates} usable updates, the quorum is "
        f"{plan.min_sites}. {answers}. Nothing is lost: resume once the sites are back."
    )


def _evaluate(
    grid: Grid,
    study: StudyConfig,
    arm: ArmFolder,
    strategy: FedAvgStrategy,
    progress: _Progress,
) -> dict[str, float] | None:
    number = progress.round_number
    if number % study.evaluation.every and number != study.training.rounds:
        return None
    outgoing = strategy.configure_evaluate(number, progress.arrays, _NO_CONFIG, grid)
    replies = Exchange(grid).replies(outgoing, study.federation.round_timeout_s)
    metrics = strategy.aggregate_evaluate(number, replies)
    if strategy.sums:
        sums = {
            site: {name: array.tolist() for name, array in sorted(parts.items())}
            for site, parts in sorted(strategy.sums.items())
        }
        write_json(arm.folder / "final_sums.json", sums)
    return None if metrics is None else cast(dict[str, float], dict(metrics))


def _finish(
    study: StudyConfig,
    arm: ArmFolder,
    strategy: FedAvgStrategy,
    progress: _Progress,
    reason: str,
) -> None:
    if progress.round_number == 0:
        raise RunError(f"No round was trained: {reason or 'the study has no rounds'}.")
    write_state(progress.model, progress.weights)
    write_weights(arm.folder / "model.safetensors", read_state(progress.model))
    arm.write_outcome("finished", reason)
    arm.emit("finished", rounds=progress.round_number, reason=reason)
