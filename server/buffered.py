"""FedBuff: sites train at their own pace, and a round is over once its buffer is full.

A round begins by asking every site that is not training: each gets the weights of now. It ends when
`federation.buffer_size` updates have come, from whatever weights their sites started; who is not
done goes on training, and its update is for a later round (`aggregation.fedbuff` says what it then
counts for). A site whose update is in the buffer waits for the buffer to be applied: so no site
trains twice from the same weights, none is in a buffer twice, and none trains more often than there
are rounds, which is what budgets are planned by. In the paper the server finds another client at
once; here all sites are at work already.

The same code runs everywhere; what differs is who is first. In a deployment that is real. In a
simulation it follows from a clock that nobody waits for: how long a training takes is drawn from
(seed, round in which the site was asked, site), and a site is asked for real only when its update
is the next to come, with the weights of when that clock asked it. Given the same order of arrival,
which rounds record, the bits are the same.

What is under way is in the checkpoint: by site the round in which it was asked, and the weights of
then. After a kill each site is asked for the same again. Nobody whose update was in the lost buffer
has been asked for anything since, so its journal (`client.replies`) still has that update. A site
whose answer did not come (lost, late, away) is asked for the same again in the next round: it may
have been paid for.

Reference: Nguyen et al. 2021, https://arxiv.org/abs/2106.06639
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

from flwr.app import ArrayRecord, Message

from medfed.common import messages
from medfed.server.exchange import Exchange
from medfed.server.participants import Participant
from medfed.server.progress import Progress
from medfed.server.records import SiteRound, now
from medfed.server.run import Run
from medfed.server.under_way import UnderWay

Announced = Callable[[Iterable[Message]], Iterator[Message]]


def train_buffered(
    run: Run, number: int, progress: Progress, started: str, announced: Announced
) -> ArrayRecord | None:
    """Fill the round's buffer, and return the weights with it applied.

    Args:
        run: The run.
        number: The round.
        progress: The global weights now.
        started: When the round began (ISO).
        announced: Passes replies on and tells what became of each.

    Returns:
        None if nobody's update could be used.
    """
    under_way = run.under_way
    assert under_way is not None  # with fedbuff `begin` makes it
    strategy = run.strategy
    sites = strategy.choose(number)
    names = [site.name for site in sites]
    under_way.begin(names, number, progress.arrays)
    run.arm.emit("round", round=number, sites=len(names), names=names)
    strategy.start_from(progress.weights, under_way.staleness(number))
    if under_way.is_virtual:
        replies = _by_the_clock(run, under_way, sites, progress, started)
    else:
        replies = _as_they_come(run, under_way, sites, progress)
    arrays, _ = strategy.aggregate_train(number, announced(replies))
    _note_training(run, under_way)
    return arrays


def _as_they_come(
    run: Run, under_way: UnderWay, sites: Sequence[Participant], progress: Progress
) -> Iterator[Message]:
    """Ask whoever is not training, and yield what comes until the buffer is full."""
    strategy, timeout_s = run.strategy, run.study.federation.round_timeout_s
    exchange = under_way.exchange
    if exchange is None:
        exchange = under_way.exchange = _exchange(run, under_way, progress)
    _expect(run, exchange)
    idle = [site for site in sites if not exchange.is_waiting_for(site.node_id)]
    under_way.asked_at |= {site.name: now() for site in idle}
    outgoing = _messages(run, under_way, idle)
    if exchange.num_waiting:
        exchange.push(outgoing)
        exchange.extend(timeout_s)
    else:
        under_way.stream = exchange.replies(outgoing, timeout_s, lambda: _may_fill(run, exchange))
    # Left where it is when the buffer is full: what it has fetched already is for the next round.
    while strategy.num_updates < run.needed:
        message = next(under_way.stream, None)
        if message is None:
            break
        yield message
        del message  # or it is held while the next is fetched
    _note_ends(run, exchange)


def _expect(run: Run, exchange: Exchange) -> None:
    """Let the answer of a site count that is away now, but was asked before: it may be back."""
    for site in run.strategy.staying:
        if exchange.is_waiting_for(site.node_id):
            waited_for = SiteRound(status="failed", reason="no answer")
            run.strategy.conversation.sites[site.name] = waited_for


def _exchange(run: Run, under_way: UnderWay, progress: Progress) -> Exchange:
    """Return an exchange for all of the run: what is asked in one round may come in another."""

    def asked_at(site: str) -> str:
        return under_way.asked_at.get(site, now())

    return run.exchange(asked_at, progress, asks_again=True)


def _may_fill(run: Run, exchange: Exchange) -> bool:
    """Whether the buffer can be filled without the sites that are not connected."""
    waiting = [site for site in run.strategy.staying if exchange.is_waiting_for(site.node_id)]
    online = sum(run.presence.is_online(site.node_id) for site in waiting)
    return run.strategy.num_updates + online >= run.needed


def _by_the_clock(
    run: Run,
    under_way: UnderWay,
    sites: Sequence[Participant],
    progress: Progress,
    started: str,
) -> Iterator[Message]:
    """Ask those that are the next to come, as many as the buffer lacks, and yield in that order."""
    strategy, timeout_s = run.strategy, run.study.federation.round_timeout_s
    waiting = sorted(sites, key=lambda site: (under_way.due_s(site.name), site.name))
    while waiting and strategy.num_updates < run.needed:
        lacking = run.needed - strategy.num_updates
        first, waiting = waiting[:lacking], waiting[lacking:]
        exchange = run.exchange(started, progress, asks_again=True)
        replies = exchange.replies(_messages(run, under_way, first), timeout_s, lambda: True)
        answered = {message.metadata.src_node_id: message for message in replies}
        for site in first:
            under_way.clock_s = max(under_way.clock_s, under_way.due_s(site.name))
            if site.node_id in answered:
                yield answered.pop(site.node_id)
        _note_ends(run, exchange)


def _messages(run: Run, under_way: UnderWay, sites: Sequence[Participant]) -> list[Message]:
    """Return what sites are asked: each from the weights, and by the number, of its own round."""

    def asked_in(site: Participant) -> int:
        return under_way.asked_in[site.name]

    return [
        message
        for number, group in groupby(sorted(sites, key=asked_in), asked_in)
        for message in run.strategy.conversation.model_messages(
            messages.TRAIN,
            number,
            under_way.model(number),
            [*group],
            # No fewer and no more, and no site twice.
            num_combined=run.needed,
        )
    ]


def _note_ends(run: Run, exchange: Exchange) -> None:
    """Put on record why sites did not answer: once, however long the exchange goes on."""
    conversation = run.strategy.conversation
    conversation.note_failures(exchange.failures)
    conversation.note_ignored(exchange.ignored)
    exchange.failures.clear()
    exchange.ignored.clear()


def _note_training(run: Run, under_way: UnderWay) -> None:
    """Put on record who goes on training, and in which round each was asked."""
    for name, site in run.strategy.conversation.sites.items():
        if name not in under_way.asked_in:
            continue
        site.asked_in = under_way.asked_in[name]
        if _has_not_answered(site):
            site.status, site.reason = "training", ""


def _has_not_answered(site: SiteRound) -> bool:
    return site.status == "failed" and site.reason == "no answer"
