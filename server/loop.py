"""The round loop: configure -> send -> screen -> aggregate -> evaluate -> checkpoint -> record.

Flower's `Strategy.start` has no start round, no checkpoint and no early stop; this has, and resumes
from the last complete round with the same weights, bit for bit.
"""

import time
from typing import cast

from flwr.app import ConfigRecord
from flwr.serverapp import Grid

from medfed.common.errors import RunError
from medfed.common.files import write_json
from medfed.common.state_dicts import digest, read_state, write_state
from medfed.common.study import StudyConfig
from medfed.server.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, write_weights
from medfed.server.participants import least_present
from medfed.server.progress import Progress
from medfed.server.quorum import without_quorum
from medfed.server.records import ArmFolder, RoundRecord, RunPlan, now
from medfed.server.run import Run, begin
from medfed.server.training import train_round

_NO_CONFIG = ConfigRecord()


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
    run.attendance.gather(number, _least_present(run))
    started, clock = now(), time.perf_counter()
    bound = run.privacy.bound if run.privacy else None
    reason = _spent(run, number, progress)
    if reason:
        return reason
    _check_draw(run)
    arrays = train_round(run, number, progress, started)
    if arrays is None:
        return without_quorum(run, number)
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


def _least_present(run: Run) -> int:
    """Return how many sites must be there for a round that can count."""
    # Under site-level privacy who is drawn must not decide that.
    return run.needed if run.privacy else least_present(run.needed, run.study)


def _check_draw(run: Run) -> None:
    """Refuse a round that could not count, before any site trains or is charged for it.

    Raises:
        RunError: federation.fraction draws fewer sites than are needed.
    """
    least, present = _least_present(run), len(run.strategy.present)
    if run.study.federation.fraction < 1 and run.needed <= present < least:
        raise RunError(
            f"federation.fraction = {run.study.federation.fraction:g} of the {present} sites that "
            f"are here is fewer than the {run.needed} that have to answer in every round; {least} "
            "would do. Raise federation.fraction, or lower federation.min_sites."
        )


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
