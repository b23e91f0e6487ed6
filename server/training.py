"""One round's training, however its sites train: asked, waited for, and made into new weights."""

import logging
from collections.abc import Iterable, Iterator

from flwr.app import ArrayRecord, ConfigRecord, Message

from medfed.common import messages
from medfed.common.errors import MessageError, RunError
from medfed.server.buffered import train_buffered
from medfed.server.cyclic import train_in_turn
from medfed.server.distributed_privacy import DistributedPrivacy, masked_mean
from medfed.server.masked import MaskedRound
from medfed.server.progress import Progress
from medfed.server.run import Run
from medfed.server.split import train_split

log = logging.getLogger(__name__)

_NO_CONFIG = ConfigRecord()
_OWN_ROUNDS = {"cyclic": train_in_turn, "fedbuff": train_buffered, "split": train_split}


def train_round(run: Run, number: int, progress: Progress, started: str) -> ArrayRecord | None:
    """Have the round's participants train, and return the weights after it.

    Args:
        run: The run.
        number: The round.
        progress: The global weights now.
        started: When the round began (ISO).

    Returns:
        None if too few updates could be used.
    """
    if run.study.secure_aggregation.enabled:
        return _train_masked(run, number, progress, started)
    if run.study.federation.algorithm in _OWN_ROUNDS:
        return _train_own_way(run, number, progress, started)
    return _train(run, number, progress, started)


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
    """Do the same under secure aggregation; None if the round was lost."""
    conversation, weights = run.strategy.conversation, progress.weights
    chosen = run.strategy.choose(number)
    names = [site.name for site in chosen]
    run.arm.emit("round", round=number, sites=len(names), names=names)
    masked = MaskedRound(
        lambda: run.exchange(
            started,
            progress,
            # A site takes no step twice: one that took it says that it cannot.
            asks_again=True,
            away_at_most_s=run.study.federation.rejoin_timeout_s,
        ),
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
