"""The round loop: configure -> send -> screen -> aggregate -> evaluate -> checkpoint -> record.

Flower's `Strategy.start` has no start round, no checkpoint and no early stop; this has, and resumes
from the last complete round with the same weights, bit for bit.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from medfed.common import messages
from medfed.common.errors import MessageError, RefusalReason, RunError
from medfed.common.files import write_json
from medfed.common.messages import JoinReply, JoinRequest, Refusal
from medfed.common.models import build_model
from medfed.common.state_dicts import StateDict, digest, read_state
from medfed.common.study import StudyConfig
from medfed.common.tasks import make_task
from medfed.server.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, write_weights
from medfed.server.exchange import Exchange
from medfed.server.participants import Participant
from medfed.server.records import ArmFolder, RoundRecord, RunPlan, now
from medfed.server.strategy import FedAvgStrategy

log = logging.getLogger(__name__)

_JOIN_GRACE_S = 5.0
_NO_CONFIG = ConfigRecord()


@dataclass
class _Progress:
    """Where the run stands: the next round starts from these."""

    arrays: ArrayRecord
    weights: StateDict
    round_number: int


def run_study(grid: Grid, study: StudyConfig, plan: RunPlan, arm: ArmFolder) -> None:
    """Run the arm to its end, from its last complete round if it has one.

    Raises:
        RunError: Too few sites joined or answered; the checkpoint stays for `--resume`.
    """
    progress = _resume(study, arm)
    if progress.round_number >= study.training.rounds and arm.read_outcome() is not None:
        return
    arm.emit("started", arm=plan.arm, rounds=study.training.rounds, after=progress.round_number)
    sites = _join(grid, study, plan, arm)
    strategy = FedAvgStrategy(
        study,
        plan.run,
        trainers=_named(sites, plan.train_sites),
        evaluators=_named(sites, plan.evaluate_sites),
    )
    strategy.summary()
    reason = ""
    while progress.round_number < study.training.rounds and not reason:
        reason = _round(grid, study, plan, arm, strategy, progress)
    _finish(study, arm, strategy, progress, reason)


def _resume(study: StudyConfig, arm: ArmFolder) -> _Progress:
    checkpoint = load_checkpoint(arm.checkpoint, study.digest())
    if checkpoint is None:
        weights = read_state(build_model(study, make_task(study.task).num_outputs))
        arm.rewrite_rounds([])
        return _Progress(messages.pack_arrays(weights), weights, 0)
    last = checkpoint.record
    # The record of the last round may be missing or torn: the checkpoint has it whole.
    earlier = [r for r in arm.read_rounds() if r.round_number < last.round_number]
    arm.rewrite_rounds([*earlier, last])
    return _Progress(
        messages.pack_arrays(checkpoint.weights), checkpoint.weights, last.round_number
    )


def _join(grid: Grid, study: StudyConfig, plan: RunPlan, arm: ArmFolder) -> dict[str, Participant]:
    """Ask every node who it is, until the expected sites have answered or time is up.

    Nodes are asked as they appear, and none is waited for while others are missing: a SuperNode
    that was killed counts as online for about a minute, and would never answer.
    """
    deadline = time.monotonic() + study.federation.join_timeout_s
    joined: dict[str, Participant] = {}
    refused: dict[str, str] = {}
    asked: set[int] = set()
    exchange = Exchange(grid)
    while time.monotonic() < deadline:
        new = [node for node in grid.get_node_ids() if node not in asked]
        asked.update(new)
        exchange.push(_join_messages(study, plan, new, deadline - time.monotonic()))
        for message in exchange.pull():
            _note_answer(message, joined, refused, arm)
        if len(joined) + len(refused) >= plan.expected_sites:
            # Whoever else is online has a moment to answer too.
            deadline = min(deadline, time.monotonic() + _JOIN_GRACE_S)
            if not exchange.num_waiting:
                break
        exchange.wait()
    if len(joined) < plan.min_sites:
        answers = "".join(f" {name} refused ({why})." for name, why in sorted(refused.items()))
        raise RunError(
            f"Expected at least {plan.min_sites} sites, {len(joined)} joined.{answers} "
            "Lower federation.min_sites, raise federation.join_timeout_s, or see the sites' logs."
        )
    return joined


def _join_messages(
    study: StudyConfig, plan: RunPlan, nodes: list[int], timeout_s: float
) -> list[Message]:
    content = messages.pack_join_request(JoinRequest(study=study, run=plan.run))
    return [
        Message(
            content=content, dst_node_id=node, message_type=messages.JOIN, ttl=max(timeout_s, 1.0)
        )
        for node in nodes
    ]


def _note_answer(
    message: Message,
    joined: dict[str, Participant],
    refused: dict[str, str],
    arm: ArmFolder,
) -> None:
    """Write down who joined or refused.

    Raises:
        RunError: Two nodes have one name.
    """
    try:
        reply = messages.unpack_reply(message.content)
    except MessageError as error:
        log.warning("A node's answer to joining was not understood: %s", error)
        return
    if isinstance(reply, Refusal):
        refused[reply.site] = reply.reason.value
        arm.emit("refused", site=reply.site, reason=reply.reason.value)
    elif isinstance(reply, JoinReply):
        if reply.site in joined:
            raise RunError(f"Two nodes call themselves {reply.site}. Give each site its own name.")
        node = message.metadata.src_node_id
        joined[reply.site] = Participant(reply.site, node, reply.public_num_patients)
        arm.emit("joined", site=reply.site)


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
    write_weights(arm.folder / "model.safetensors", progress.weights)
    arm.write_outcome("finished", reason)
    arm.emit("finished", rounds=progress.round_number, reason=reason)
