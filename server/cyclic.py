"""Cyclic weight transfer: within a round the weights go from site to site.

Each site trains from what the one before it made. Sites never talk to one another: the server adds
each update to the weights and sends them on, so every update is screened like any other. A site
that refuses, fails or is lost is skipped; the next one starts from the weights that there are.

The order is drawn anew in each round: a site near the end of a round shapes the model more than one
at its beginning, and that should not always be the same one. Each site draws its own place, so that
one which is missing changes nobody else's.

A round that is asked for again begins with the sites that had answered, in the order in which they
did (`turns.json`): each then gets the same weights as before, and sends what was paid for already.

Reference: Chang et al. 2018, https://doi.org/10.1093/jamia/ocy017
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from flwr.app import ArrayRecord, Message

from medfed.common import messages
from medfed.common.files import read_json, write_json
from medfed.common.seeding import numpy_rng
from medfed.common.state_dicts import StateDict, digest
from medfed.server.participants import Participant
from medfed.server.progress import Progress
from medfed.server.run import Run

TURNS_FILE = "turns.json"
Announced = Callable[[Iterable[Message]], Iterator[Message]]


def draw_order(sites: Collection[Participant], seed: int, round_number: int) -> list[Participant]:
    """Return the sites in the order of their turns."""
    return sorted(
        sites, key=lambda site: numpy_rng(seed, "cycle", round_number, site.name).random()
    )


class Turns:
    """Who has answered in the round that is under way, through a kill of the server.

    Args:
        folder: Where `turns.json` is or will be.
        round_number: The round.
        start_sha256: Digest of the weights that it starts from.
    """

    def __init__(self, folder: Path, round_number: int, start_sha256: str) -> None:
        self._path = folder / TURNS_FILE
        self._about = {"round": round_number, "start_sha256": start_sha256}
        known = read_json(self._path) if self._path.exists() else {}
        same = self._about.items() <= known.items()
        self._answered: list[str] = list(known["answered"]) if same else []

    def resumed(self, order: Sequence[Participant]) -> list[Participant]:
        """Return `order` with those first who answered in an earlier attempt, as they did."""
        places = {name: place for place, name in enumerate(self._answered)}
        return sorted(order, key=lambda site: places.get(site.name, len(places)))

    def note(self, answered: Sequence[str]) -> None:
        """Write down who has answered in this attempt, in order."""
        # Those of an earlier attempt who have not had their turn yet stay behind them.
        rest = [name for name in self._answered if name not in answered]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, {**self._about, "answered": [*answered, *rest]})


def train_in_turn(
    run: Run, number: int, progress: Progress, started: str, announced: Announced
) -> ArrayRecord | None:
    """Let the round's participants train in turn, and return the weights after the last.

    Args:
        run: The run.
        number: The round.
        progress: Where it starts from.
        started: When it did (ISO).
        announced: Passes replies on and tells what became of each.

    Returns:
        None if nobody's update could be used.
    """
    strategy, conversation = run.strategy, run.strategy.conversation
    turns = Turns(run.arm.checkpoint, number, digest(progress.weights))
    order = turns.resumed(draw_order(strategy.choose(number), run.study.study.seed, number))
    names = [site.name for site in order]
    run.arm.emit("round", round=number, sites=len(names), names=names)
    arrays, weights = progress.arrays, progress.weights
    for place, site in enumerate(order):
        rest = len(order) - place - 1
        outgoing = _turn(run, number, site, arrays, weights)
        exchange = run.exchange(started, progress, asks_again=True)
        replies = exchange.replies(
            outgoing,
            run.study.federation.round_timeout_s,
            partial(_still_a_quorum, run, rest),
        )
        taken, _ = strategy.aggregate_train(number, announced(replies))
        conversation.note_failures(exchange.failures)
        conversation.note_ignored(exchange.ignored)
        if taken is not None:
            arrays, weights = taken, messages.unpack_arrays(taken)
            turns.note(conversation.order)
    return arrays if conversation.order else None


def _still_a_quorum(run: Run, rest: int) -> bool:
    """Whether a lost site can be skipped: those `rest` to come make up the quorum."""
    return run.strategy.num_updates + rest >= run.needed


def _turn(
    run: Run, number: int, site: Participant, arrays: ArrayRecord, weights: StateDict
) -> list[Message]:
    """Return what a site is asked in its turn, and put the weights it starts from on record."""
    strategy = run.strategy
    strategy.start_from(weights, {})
    sha256 = digest(weights)
    strategy.conversation.round_of(site.name).start_sha256 = sha256
    # Of an attempt that becomes no round this is all that an auditor has to compare.
    run.arm.emit("turn", round=number, site=site.name, weights_sha256=sha256)
    # One: the next site gets a model in which this site's update is the only new one.
    return strategy.conversation.model_messages(
        messages.TRAIN, number, arrays, [site], num_combined=1
    )
