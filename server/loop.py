"""The round loop: configure -> send -> screen -> aggregate -> evaluate -> checkpoint -> record.

Flower's `Strategy.start` has no start round, no checkpoint and no early stop; this has, and resumes
from the last complete round with the same weights, bit for bit.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from medfed.common import messages
from medfed.common.errors import MessageError, RefusalReason, RunError
from medfed.common.files import write_json
from medfed.common.state_dicts import digest, read_state, write_state
from medfed.common.study import StudyConfig
from medfed.server.buffered import train_buffered
from medfed.server.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, write_weights
from medfed.server.conversation import Absence
from medfed.server.cyclic import train_in_turn
from medfed.server.distributed_privacy import DistributedPrivacy, masked_mean
from medfed.server.masked import MaskedRound
from medfed.server.progress import Progress
from medfed.server.records import ArmFolder, RoundRecord, RunPlan, SiteRound, now
from medfed.server.run import Run, begin
from medfed.server.split import train_split

log = logging.getLogger(__name__)

_NO_CONFIG = ConfigRecord()
_OWN_ROUNDS = {"cyclic": train_in_turn, "fedbuff": train_buffered, "split": train_split}


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
    run, progress = begin(grid, study, plan, arm, checkpoint)
    reason = ""
    while progress.round_number < study.training.rounds and not reason:
        reason = _round(run, progress)
    _finish(arm, progress, reason)


def _round(run: Run, progress: Progress) -> str:
    """Run the next round, or try to. Returns why the run ends here, or nothing to go on."""
    number = progress.round_number + 1
    run.attendance.gather(number, run.needed)
    started, clock = now(), time.perf_counter()
    bound = run.privacy.bound if run.privacy else None
    reason = _spent(run, number, progress)
    if reason:
        return reason
    train = _train
    if run.study.secure_aggregation.enabled:
        train = _train_masked
    elif run.study.federation.algorithm in _OWN_ROUNDS:
        train = _train_own_way
    arrays = train(run, number, progress, started)
    if arrays is None:
        return _without_quorum(run, number)
    run.attendance.note_complete()
    progress.advance(arrays, run.study)
    if run.strategy.variates is not None:
        run.strategy.variates.commit()
    if run.under_way is not None:
        run.under_way.commit(number, run.strategy.conversation.sites)
        run.strategy.training = run.under_way.busy(number)
    metrics = _evaluate(run, progress, started)
    record = RoundRecord(
        round_number=number,
        started=started,
        seconds=time.perf_counter() - clock,
        sites=dict(sorted(run.strategy.conversation.sites.items())),
        metrics=metrics,
        global_metrics=run.strategy.global_metrics if metrics else None,
        weights_sha256=digest(progress.weights),
        average_sha256=progress.average_sha256,
        site_epsilon=run.privacy.epsilon if run.privacy else None,
        site_noise=run.privacy.noise if run.privacy else "none",
        update_bound=bound,
        order=run.strategy.conversation.order if run.study.federation.keeps_order else [],
        under_way=dict(sorted(run.under_way.asked_in.items())) if run.under_way else {},
        clock_s=run.under_way.clock_s if run.under_way and run.under_way.is_virtual else None,
    )
    _keep(run, progress, record)
    run.strategy.conversation.note_counted(number, record.sites)
    return ""


def _spent(run: Run, number: int, progress: Progress) -> str:
    """Return why the server's budget ends the run; what a round needs of its sites is checked here.

    Raises:
        RunError: Under site-level privacy, too few sites are connected. That is looked up before
            the draw: who was drawn, and what they answer, must not decide whether a round counts.
    """
    if run.privacy is None:
        return ""
    present = len(run.strategy.present)
    if present < run.plan.min_sites:
        raise RunError(
            f"Before round {number} {present} sites were connected and willing, the quorum is "
            f"{run.plan.min_sites}. Nothing is lost: resume once the sites are back."
        )
    return run.privacy.over_budget(number, progress.weights)


def _train(run: Run, number: int, progress: Progress, started: str) -> ArrayRecord | None:
    """Ask the round's participants, and aggregate what comes by the deadline."""
    strategy, conversation = run.strategy, run.strategy.conversation
    outgoing = strategy.configure_train(number, progress.arrays, _NO_CONFIG, run.grid)
    names = [conversation.name_of(message.metadata.dst_node_id) for message in outgoing]
    run.arm.emit("round", round=number, sites=len(names), names=names)
    # A site that is asked twice sends the same update again (`client.replies`).
    exchange = run.exchange(started, progress, asks_again=True)
    replies = exchange.replies(
        outgoing,
        run.study.federation.round_timeout_s,
        # Under site-level privacy, who answered must not decide whether a round counts.
        lambda: run.privacy is not None or strategy.num_updates >= run.needed,
    )
    arrays, _ = strategy.aggregate_train(number, _announced(run, replies, number))
    conversation.note_failures(exchange.failures)
    conversation.note_ignored(exchange.ignored)
    _note_ends(run, number, started)
    if run.privacy is None and strategy.num_updates < run.needed:
        return None
    return arrays


def _train_own_way(run: Run, number: int, progress: Progress, started: str) -> ArrayRecord | None:
    """Do the same where a round is more than a question and an answer; None if too few answered."""
    train = _OWN_ROUNDS[run.study.federation.algorithm]
    arrays = train(run, number, progress, started, lambda replies: _announced(run, replies, number))
    _note_ends(run, number, started)
    return None if run.strategy.num_updates < run.needed else arrays


def _train_masked(run: Run, number: int, progress: Progress, started: str) -> ArrayRecord | None:
    """Do the same under secure aggregation; None if the round was lost, or too few stayed."""
    conversation, weights = run.strategy.conversation, progress.weights
    chosen = run.strategy.choose(number)
    names = [site.name for site in chosen]
    run.arm.emit("round", round=number, sites=len(names), names=names)
    masked = MaskedRound(
        lambda: run.exchange(started, progress, asks_again=False),
        run.study,
        run.plan.run,
        number,
        conversation,
        chosen,
        min_sites=run.plan.min_sites,
    )
    try:
        found = masked.train(
            progress.arrays,
            weights,
            lambda site: run.arm.emit("trained", round=number, site=site),
        )
    except (RunError, MessageError) as error:
        log.warning("Round %d was lost: %s", number, error)
        conversation.note_lost(str(error))
        return None
    finally:
        _note_ends(run, number, started)
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


def _note_ends(run: Run, number: int, started: str) -> None:
    """Note why sites gave no answer, and sign the ledger heads of those that did.

    Each site's next message carries its own.
    """
    conversation = run.strategy.conversation
    conversation.note_turned_away(run.turned_away.reasons(started))
    for name, site in conversation.sites.items():
        if site.status == "lost":
            run.attendance.note_lost(name, number)
    asked_in = run.under_way.asked_in if run.under_way else {}
    run.countersigner.sign_round(number, conversation.heads, asked_in)
    conversation.countersignatures = run.countersigner.latest


def _keep(run: Run, progress: Progress, record: RoundRecord) -> None:
    """Write the round to disk: from here on it is not repeated."""
    bound = run.privacy.bound if run.privacy else None
    variates = run.strategy.variates
    states = progress.moments if variates is None else variates.states()
    if run.under_way is not None:
        states = run.under_way.states()
    checkpoint = Checkpoint(progress.weights, record, progress.average, bound, states)
    save_checkpoint(run.arm.checkpoint, checkpoint, run.study.digest())
    run.arm.append_round(record)
    epsilons = [site.epsilon for site in record.sites.values() if site.epsilon is not None]
    epsilon = max(epsilons, default=None) if record.site_epsilon is None else record.site_epsilon
    run.arm.emit("completed", round=record.round_number, metrics=record.metrics, epsilon=epsilon)


def _announced(run: Run, replies: Iterable[Message], number: int) -> Iterator[Message]:
    """Pass replies on, and tell what became of each."""
    for message in replies:
        name = run.strategy.conversation.name_of(message.metadata.src_node_id)
        yield message
        del message  # or it is held while the next is fetched
        site = run.strategy.conversation.sites.get(name)
        if site is not None and site.status == "ok":
            run.arm.emit("trained", round=number, site=name)
        elif site is not None and site.status in ("refused", "rejected"):
            run.arm.emit(site.status, round=number, site=name, reason=site.reason)


def _without_quorum(run: Run, number: int) -> str:
    """Say why too few sites answered, or nothing if the round is to be repeated.

    It is repeated once sites are back that were away or paused; whoever has answered sends the same
    again. With split learning it is repeated once for sites that failed, too: half a step cannot be
    asked for twice. A spent budget ends the run, anything else fails it.

    Raises:
        RunError: It fails.
    """
    strategy = run.strategy
    states = {name: s for name, s in strategy.conversation.sites.items() if s.status != "ok"}
    again = run.study.federation.algorithm == "split" and not run.attendance.was_short
    missing = {
        name: Absence(site.status, site.reason)
        for name, site in states.items()
        if _may_return(site) or (again and _has_failed(site))
    }
    over_budget = [n for n, site in states.items() if site.reason == RefusalReason.BUDGET.value]
    few = not missing or len(strategy.staying) < run.needed
    if over_budget and len(over_budget) + len(missing) == len(states) and few:
        return f"privacy budget spent before round {number} at {', '.join(sorted(over_budget))}"
    enough = missing and strategy.num_updates + len(missing) >= run.needed
    if enough and not run.study.secure_aggregation.enabled and run.attendance.may_hope:
        run.attendance.hope_for(missing)
        return ""
    answers = ", ".join(f"{name}: {site.status} ({site.reason})" for name, site in states.items())
    raise RunError(
        f"Round {number} had {strategy.num_updates} usable updates, the quorum is "
        f"{run.needed}. {answers}. Nothing is lost: resume once the sites are back."
    )


def _may_return(site: SiteRound) -> bool:
    return site.status in ("away", "lost") or site.reason == RefusalReason.PAUSED.value


def _has_failed(site: SiteRound) -> bool:
    """Whether a site's program broke off, or had forgotten the round when it was to go on."""
    return site.status == "failed" or site.reason == RefusalReason.INTERNAL.value


def _evaluate(run: Run, progress: Progress, started: str) -> dict[str, float] | None:
    number, strategy = progress.round_number, run.strategy
    if number % run.study.evaluation.every and number != run.study.training.rounds:
        return None
    run.attendance.look()
    outgoing = strategy.configure_evaluate(number, progress.published_arrays, _NO_CONFIG, run.grid)
    exchange = run.exchange(started, progress, asks_again=True)
    timeout_s = run.study.federation.round_timeout_s
    # Nobody's figures are so needed that a lost site is waited for until the deadline.
    replies = exchange.replies(outgoing, timeout_s, lambda: True)
    metrics = strategy.aggregate_evaluate(number, replies)
    strategy.conversation.note_damaged(exchange.failures)
    strategy.conversation.note_ignored(exchange.ignored)
    if strategy.sums:
        write_json(run.arm.folder / "final_sums.json", {"groups": strategy.sums.table()})
    return None if metrics is None else cast(dict[str, float], dict(metrics))


def _finish(arm: ArmFolder, progress: Progress, reason: str) -> None:
    if progress.round_number == 0:
        raise RunError(f"No round was trained: {reason or 'the study has no rounds'}.")
    write_state(progress.model, progress.published)
    write_weights(arm.folder / "model.safetensors", read_state(progress.model))
    arm.write_outcome("finished", reason)
    arm.emit("finished", rounds=progress.round_number, reason=reason)
