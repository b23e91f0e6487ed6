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
from medfed.common.models import frozen_state_digest
from medfed.common.state_dicts import digest, read_state, write_state
from medfed.common.study import StudyConfig
from medfed.server.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, write_weights
from medfed.server.countersigning import HEADS_FILE, SERVER_KEY, Countersigner
from medfed.server.distributed_privacy import (
    DistributedPrivacy,
    masked_mean,
    noised_by_sites,
)
from medfed.server.exchange import Exchange
from medfed.server.joining import join_sites
from medfed.server.masked import MaskedRound
from medfed.server.participants import Participant
from medfed.server.progress import Progress, resume
from medfed.server.records import ArmFolder, RoundRecord, RunPlan, now
from medfed.server.site_privacy import SitePrivacy, noised_by_server
from medfed.server.strategy import FedAvgStrategy
from medfed.server.words import agree_on_words

log = logging.getLogger(__name__)

_NO_CONFIG = ConfigRecord()


@dataclass(frozen=True)
class _Run:
    """What stays the same from round to round.

    `privacy` is that of privacy.unit = "site", where the server adds the noise or all sites do
    together; None where each site does by itself, or nobody.
    """

    grid: Grid
    study: StudyConfig
    plan: RunPlan
    arm: ArmFolder
    strategy: FedAvgStrategy
    countersigner: Countersigner
    privacy: SitePrivacy | DistributedPrivacy | None


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
    state = arm.server_state(plan)
    countersigner = Countersigner(arm.folder / HEADS_FILE, state / SERVER_KEY, plan.run)
    words = agree_on_words(grid, study, plan, arm, trainers, countersigner)
    progress = resume(study, words, checkpoint, arm)
    privacy: SitePrivacy | DistributedPrivacy | None = None
    if noised_by_server(study):
        bound = checkpoint.update_bound if checkpoint else None
        privacy = SitePrivacy(study, plan.run, state, seeded=plan.seeded_noise, bound=bound)
    elif noised_by_sites(study):
        privacy = DistributedPrivacy(study, plan.run, state, seeded=plan.seeded_noise)
    strategy = FedAvgStrategy(
        study,
        plan.run,
        trainers=trainers,
        evaluators=_named(sites, plan.evaluate_sites),
        words=words,
        frozen_sha256=frozen_state_digest(progress.model),
        privacy=privacy if isinstance(privacy, SitePrivacy) else None,
    )
    strategy.summary()
    strategy.conversation.countersignatures = countersigner.latest
    run = _Run(grid, study, plan, arm, strategy, countersigner, privacy)
    reason = ""
    while progress.round_number < study.training.rounds and not reason:
        reason = _round(run, progress)
    _finish(arm, progress, reason)


def _named(sites: dict[str, Participant], names: tuple[str, ...] | None) -> list[Participant]:
    chosen = sorted(sites) if names is None else [name for name in names if name in sites]
    return [sites[name] for name in chosen]


def _round(run: _Run, progress: Progress) -> str:
    """Run the next round. Returns why the run ends here, or nothing to go on."""
    started, clock = now(), time.perf_counter()
    number = progress.round_number + 1
    bound = run.privacy.bound if run.privacy else None
    reason = _spent(run, number, progress)
    if reason:
        return reason
    masked = run.study.secure_aggregation.enabled
    arrays = _train_masked(run, number, progress) if masked else _train(run, number, progress)
    if arrays is None:
        return _without_quorum(run.plan, run.strategy, number)
    progress.advance(arrays, run.study)
    metrics = _evaluate(run, progress)
    record = RoundRecord(
        round_number=number,
        started=started,
        seconds=time.perf_counter() - clock,
        sites=dict(sorted(run.strategy.conversation.sites.items())),
        metrics=metrics,
        weights_sha256=digest(progress.weights),
        average_sha256=progress.average_sha256,
        site_epsilon=run.privacy.epsilon if run.privacy else None,
        site_noise=run.privacy.noise if run.privacy else "none",
        update_bound=bound,
    )
    _keep(run, progress, record)
    return ""


def _spent(run: _Run, number: int, progress: Progress) -> str:
    """Return why the server's budget ends the run; what a round needs of its sites is checked here.

    Raises:
        RunError: Under site-level privacy, too few sites are connected. That is looked up before
            the draw: who was drawn, and what they answer, must not decide whether a round counts.
    """
    if run.privacy is None:
        return ""
    online = set(run.grid.get_node_ids())
    present = sum(site.node_id in online for site in run.strategy.staying)
    if present < run.plan.min_sites:
        raise RunError(
            f"Before round {number} {present} sites were connected and willing, the quorum is "
            f"{run.plan.min_sites}. Nothing is lost: resume once the sites are back."
        )
    return run.privacy.over_budget(number, progress.weights)


def _train(run: _Run, number: int, progress: Progress) -> ArrayRecord | None:
    """Ask the round's participants, and aggregate what comes by the deadline."""
    strategy, arm = run.strategy, run.arm
    outgoing = strategy.configure_train(number, progress.arrays, _NO_CONFIG, run.grid)
    arm.emit("round", round=number, sites=len(outgoing))
    exchange = Exchange(run.grid)
    replies = exchange.replies(outgoing, run.study.federation.round_timeout_s)
    arrays, _ = strategy.aggregate_train(number, _announced(replies, arm, "trained", number))
    strategy.conversation.note_failures(exchange.failures)
    _countersign(run, number)
    # Under site-level privacy, who answered must not decide whether a round counts.
    if run.privacy is None and strategy.num_updates < run.plan.min_sites:
        return None
    return arrays


def _train_masked(run: _Run, number: int, progress: Progress) -> ArrayRecord | None:
    """Do the same under secure aggregation; None if the round was lost, or too few stayed."""
    conversation, weights = run.strategy.conversation, progress.weights
    chosen = run.strategy.choose(number)
    run.arm.emit("round", round=number, sites=len(chosen))
    masked = MaskedRound(run.grid, run.study, run.plan.run, number, conversation, chosen)
    try:
        found = masked.train(
            progress.arrays, weights, lambda: run.arm.emit("trained", round=number)
        )
    except (RunError, MessageError) as error:
        log.warning("Round %d was lost: %s", number, error)
        conversation.note_lost(str(error))
        return None
    finally:
        _countersign(run, number)
    if len(found.replies) < run.plan.min_sites:
        conversation.note_lost("too few sites in the sum")
        return None
    if isinstance(run.privacy, DistributedPrivacy):
        new = run.privacy.release(
            found.total,
            found.replies.values(),
            weights,
            round_number=number,
            num_participants=len(chosen),
        )
    else:
        new = masked_mean(
            run.study, found.total, weights, summed=found.weights, asked=masked.weights
        )
    for site in chosen:
        if site.name in found.replies:
            conversation.accept(site, found.replies[site.name], found.weights[site.name])
    return messages.pack_arrays(new)


def _countersign(run: _Run, number: int) -> None:
    """Sign the ledger heads that came in the round; each site's next message carries its own."""
    run.countersigner.sign_round(number, run.strategy.conversation.heads)
    run.strategy.conversation.countersignatures = run.countersigner.latest


def _keep(run: _Run, progress: Progress, record: RoundRecord) -> None:
    """Write the round to disk: from here on it is not repeated."""
    bound = run.privacy.bound if run.privacy else None
    checkpoint = Checkpoint(progress.weights, record, progress.average, bound)
    save_checkpoint(run.arm.checkpoint, checkpoint, run.study.digest())
    run.arm.append_round(record)
    epsilons = [site.epsilon for site in record.sites.values() if site.epsilon is not None]
    epsilon = max(epsilons, default=None) if record.site_epsilon is None else record.site_epsilon
    run.arm.emit("completed", round=record.round_number, metrics=record.metrics, epsilon=epsilon)


def _announced(
    replies: Iterable[Message], arm: ArmFolder, event: str, number: int
) -> Iterator[Message]:
    for message in replies:
        yield message
        arm.emit(event, round=number)


def _without_quorum(plan: RunPlan, strategy: FedAvgStrategy, number: int) -> str:
    """Say why too few sites answered: a spent budget ends the run, anything else fails it."""
    states = {
        name: site for name, site in strategy.conversation.sites.items() if site.status != "ok"
    }
    answers = ", ".join(f"{name}: {site.status} ({site.reason})" for name, site in states.items())
    over_budget = [n for n, site in states.items() if site.reason == RefusalReason.BUDGET.value]
    if over_budget and len(over_budget) == len(states):
        return f"privacy budget spent before round {number} at {', '.join(sorted(over_budget))}"
    raise RunError(
        f"Round {number} had {strategy.num_updates} usable updates, the quorum is "
        f"{plan.min_sites}. {answers}. Nothing is lost: resume once the sites are back."
    )


def _evaluate(run: _Run, progress: Progress) -> dict[str, float] | None:
    number, strategy = progress.round_number, run.strategy
    if number % run.study.evaluation.every and number != run.study.training.rounds:
        return None
    outgoing = strategy.configure_evaluate(number, progress.published_arrays, _NO_CONFIG, run.grid)
    replies = Exchange(run.grid).replies(outgoing, run.study.federation.round_timeout_s)
    metrics = strategy.aggregate_evaluate(number, replies)
    if strategy.sums:
        sums = {
            site: {name: array.tolist() for name, array in sorted(parts.items())}
            for site, parts in sorted(strategy.sums.items())
        }
        write_json(run.arm.folder / "final_sums.json", sums)
    return None if metrics is None else cast(dict[str, float], dict(metrics))


def _finish(arm: ArmFolder, progress: Progress, reason: str) -> None:
    if progress.round_number == 0:
        raise RunError(f"No round was trained: {reason or 'the study has no rounds'}.")
    write_state(progress.model, progress.published)
    write_weights(arm.folder / "model.safetensors", read_state(progress.model))
    arm.write_outcome("finished", reason)
    arm.emit("finished", rounds=progress.round_number, reason=reason)
