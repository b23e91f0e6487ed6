"""Secure aggregation over a SuperLink's own bookkeeping, while sites die in each of its phases.

In every case: no round waits for its deadline, no update is paid for twice, no masks hide two
vectors, and of one round no two sums are opened. Noise is the operating system's, so that a second
training would be another release.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from dying import SITES, Federation, die, first_updates, once, statuses
from flwr.app import Context, Error, Message, RecordDict
from link import Killed, superlink

from medfed.client import answers
from medfed.client.site import SiteConfig
from medfed.client.training import TrainingResult
from medfed.common import messages
from medfed.common.errors import RunError
from medfed.common.messages import MASKED, SecureReply, TrainReply
from medfed.common.secure_sum import wire
from medfed.server import loop

pytestmark = pytest.mark.usefixtures("soon")

VICTIM = "scanner-2"
OTHERS = ("scanner-1", "scanner-3")
PHASES = (messages.SECURE_KEYS, messages.SECURE_SHARES, messages.TRAIN, messages.SECURE_REVEAL)
SOON_S = 30  # of the 60 s until a round's deadline
NEEDED = "federation.min_sites=3"
OF_ALL = "secure_aggregation.threshold=1.0"


@dataclass
class Seen:
    """What a curious server keeps: all that sites sent in round 2.

    Attributes:
        vectors: By site, its masked vectors.
        reveals: By site, over whom it helped to open a sum.
    """

    vectors: dict[str, list[np.ndarray]] = field(default_factory=dict)
    reveals: dict[str, list[set[str]]] = field(default_factory=dict)

    def watch(self, federation: Federation, name: str) -> None:
        """Look at all that a site sends from now on."""
        node = federation.node(name)
        works = node.app

        def seen(message: Message, context: Context) -> Message | None:
            answer = works(message, context)
            if answer is not None and answer.has_content() and message.metadata.group_id == "2":
                self._note(name, message.metadata.message_type, answer)
            return answer

        node.app = seen

    def _note(self, name: str, kind: str, answer: Message) -> None:
        reply = messages.unpack_reply(answer.content)
        if isinstance(reply, TrainReply):
            self.vectors.setdefault(name, []).append(reply.update[MASKED])
        elif kind == messages.SECURE_REVEAL and isinstance(reply, SecureReply):
            reveal = wire.Reveal.from_bytes(reply.payload)
            assert not set(reveal.seeds) & set(reveal.keys)
            self.reveals.setdefault(name, []).append(set(reveal.seeds))


@pytest.fixture
def masking(prepared: Callable[..., Path]) -> Iterator[Callable[..., tuple[Federation, Seen]]]:
    """Starts a federation of three under secure aggregation, for two rounds."""
    made: list[Federation] = []
    with superlink() as link:

        def start(*overrides: str) -> tuple[Federation, Seen]:
            masks = ("training.rounds=2", "secure_aggregation.enabled=true")
            federation, seen = Federation(link, prepared(*masks, *overrides)), Seen()
            federation.add(*SITES)
            for name in SITES:
                seen.watch(federation, name)
            made.append(federation)
            return federation, seen

        yield start
        assert all(federation.failed == [] for federation in made)


def begun(federation: Federation) -> list[object]:
    return [event["round"] for event in federation.events("round")]


def restarts(federation: Federation) -> Callable[[], None]:
    """What kills the victim's node with all of its memory, and starts it again."""
    node = federation.node(VICTIM)

    def restart() -> None:
        threading.Timer(0.2, node.start).start()
        die(node)

    return restart


def check_whole(federation: Federation, seen: Seen) -> None:
    """All sites are in both rounds, each at the cost of one release, and one sum was opened."""
    for name in SITES:
        assert statuses(federation.records, name) == ["ok", "ok"]
        assert federation.charged(name) == [1, 2]
        assert first_updates(federation, name) == [1, 2]
    assert federation.records[1].seconds < SOON_S
    check_curious(seen)


def check_curious(seen: Seen) -> None:
    opened = {frozenset(stayed) for each in seen.reveals.values() for stayed in each}
    assert len(opened) <= 1
    for vectors in seen.vectors.values():
        for one, other in pairwise(vectors):
            # Of one update under fresh masks: their difference is uniform, too.
            assert float((one == other).mean()) < 1e-3
            top = np.bincount(((one - other) >> np.uint32(28)).astype(int), minlength=16)
            expected = one.size / 16
            assert float(((top - expected) ** 2 / expected).sum()) < 60  # p = 2e-7


@pytest.mark.parametrize(
    ("phase", "is_begun"),
    [
        (messages.SECURE_KEYS, [1, 2]),  # it offers other keys
        (messages.SECURE_SHARES, [1, 2, 2]),
        (messages.TRAIN, [1, 2, 2]),
        (messages.SECURE_REVEAL, [1, 2]),  # the others' shares are enough
    ],
)
def test_a_killed_site_that_the_quorum_needs_is_not_waited_for_until_the_deadline(
    masking: Callable[..., tuple[Federation, Seen]], phase: str, is_begun: list[int]
) -> None:
    federation, seen = masking(NEEDED)
    federation.before = once(phase, 2, VICTIM, restarts(federation))
    federation.run()
    assert begun(federation) == is_begun
    check_whole(federation, seen)


@pytest.mark.parametrize("phase", [messages.TRAIN, messages.SECURE_REVEAL])
def test_updates_that_were_sent_leave_again_for_nothing_under_other_masks(
    masking: Callable[..., tuple[Federation, Seen]], phase: str
) -> None:
    federation, seen = masking(NEEDED, OF_ALL)
    federation.after = once(phase, 2, VICTIM, restarts(federation))
    federation.run()
    assert begun(federation) == [1, 2, 2]
    check_whole(federation, seen)
    for name in OTHERS:
        assert (2, True) in federation.updates(name)
        assert len(seen.vectors[name]) == 2


def test_a_charge_of_which_nothing_left_counts_when_the_round_is_begun_anew(
    masking: Callable[..., tuple[Federation, Seen]], monkeypatch: pytest.MonkeyPatch
) -> None:
    federation, seen = masking(NEEDED)
    trained, killed = answers._trained, []

    def die_once(here: object, request: object, site: SiteConfig) -> TrainingResult:
        if site.name == VICTIM and federation.charged(VICTIM) == [1, 2] and not killed:
            killed.append(1)
            restarts(federation)()
        return trained(here, request, site)  # type: ignore[arg-type]

    monkeypatch.setattr(answers, "_trained", die_once)
    federation.run()
    assert killed
    assert begun(federation) == [1, 2, 2]
    check_whole(federation, seen)


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param(messages.SECURE_KEYS, marks=pytest.mark.slow),
        pytest.param(messages.SECURE_SHARES, marks=pytest.mark.slow),
        messages.TRAIN,
        messages.SECURE_REVEAL,
    ],
)
def test_a_round_goes_on_without_a_site_that_stays_away(
    masking: Callable[..., tuple[Federation, Seen]], phase: str
) -> None:
    federation, seen = masking()
    federation.before = once(phase, 2, VICTIM, lambda: die(federation.node(VICTIM)))
    federation.run()
    assert begun(federation) == [1, 2]
    in_sum = phase == messages.SECURE_REVEAL
    assert statuses(federation.records, VICTIM) == ["ok", "ok" if in_sum else "lost"]
    for name in OTHERS:
        assert statuses(federation.records, name) == ["ok", "ok"]
        assert federation.charged(name) == [1, 2]
    assert federation.records[1].seconds < SOON_S
    check_curious(seen)


@pytest.mark.parametrize(
    "phase", [pytest.param(messages.SECURE_SHARES, marks=pytest.mark.slow), messages.TRAIN]
)
def test_a_needed_site_that_stays_away_ends_the_run_soon_and_nothing_is_opened(
    masking: Callable[..., tuple[Federation, Seen]], phase: str
) -> None:
    federation, seen = masking(NEEDED, "federation.rejoin_timeout_s=2")
    federation.before = once(phase, 2, VICTIM, lambda: die(federation.node(VICTIM)))
    began = time.monotonic()
    with pytest.raises(RunError, match=r"scanner-2 \(not connected.*Nothing is lost: resume"):
        federation.run()
    assert time.monotonic() - began < SOON_S
    assert seen.reveals == {}
    federation.node(VICTIM).start()
    federation.run()
    check_whole(federation, seen)


@pytest.mark.parametrize("has_sent", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("phase", PHASES)
def test_a_killed_worker_costs_no_more_than_the_phase(
    masking: Callable[..., tuple[Federation, Seen]], phase: str, has_sent: bool
) -> None:
    """A SuperNode says that the app crashed; its memory is as it was before the message."""
    federation, seen = masking(NEEDED, OF_ALL)
    crashed = crashes(federation, phase, has_sent=has_sent)
    federation.run()
    assert crashed.is_set()
    assert begun(federation) == [1, 2]
    for name in SITES:
        assert statuses(federation.records, name) == ["ok", "ok"]
        assert federation.charged(name) == [1, 2]
    for first, second in pairwise(seen.vectors[VICTIM]):
        np.testing.assert_array_equal(first, second)  # the same vector under the same masks
    assert {len(each) for each in seen.reveals.values()} <= {1, 2}
    opened = {frozenset(stayed) for each in seen.reveals.values() for stayed in each}
    assert opened == {frozenset(SITES)}


def crashes(federation: Federation, phase: str, *, has_sent: bool) -> threading.Event:
    """Have the victim's worker killed once in round 2; the event tells that it was.

    Args:
        federation: Runs.
        phase: It is killed in this.
        has_sent: Whether the answer had left, which is lost on the way; else it was not made.
    """
    node, crashed = federation.node(VICTIM), threading.Event()
    works = node.app

    def crash_once(message: Message, context: Context) -> Message | None:
        about = (message.metadata.message_type, message.metadata.group_id)
        if about != (phase, "2") or crashed.is_set():
            return works(message, context)
        crashed.set()
        if has_sent:
            works(message, _as_it_is(context))
        return Message(Error(8, "crashed"), reply_to=message)

    node.app = crash_once
    return crashed


def _as_it_is(context: Context) -> Context:
    return Context(
        run_id=context.run_id,
        node_id=context.node_id,
        node_config=context.node_config,
        state=RecordDict(dict(context.state)),
        run_config={},
    )


def test_a_site_that_is_back_says_that_it_cannot_go_on_and_gives_no_second_vector(
    masking: Callable[..., tuple[Federation, Seen]],
) -> None:
    federation, seen = masking()
    federation.after = once(messages.TRAIN, 2, VICTIM, restarts(federation))
    federation.run()
    assert begun(federation) == [1, 2]
    first, second = statuses(federation.records, VICTIM)
    # Lost where it was gone for longer than it took to be noticed, on a busy machine.
    assert (first, second) in (("ok", "refused"), ("ok", "lost"))
    assert VICTIM not in seen.vectors
    assert federation.updates(VICTIM) == [(1, False), (2, False)]
    assert federation.charged(VICTIM) == [1, 2]
    for name in OTHERS:
        assert statuses(federation.records, name) == ["ok", "ok"]
    check_curious(seen)


def test_a_site_that_always_fails_ends_the_run(
    masking: Callable[..., tuple[Federation, Seen]],
) -> None:
    federation, seen = masking(NEEDED)

    def broken(name: str, message: Message) -> None:
        about = (name, message.metadata.message_type, message.metadata.group_id)
        if about == (VICTIM, messages.TRAIN, "2"):
            raise ValueError

    federation.before = broken
    with pytest.raises(RunError, match="scanner-2: failed"):
        federation.run()
    assert begun(federation) == [1, 2, 2]
    assert {type(error) for error in federation.failed} == {ValueError}
    federation.failed.clear()
    assert seen.reveals == {}
    federation.before = lambda site, message: None
    federation.run()
    check_whole(federation, seen)


def test_no_second_sum_is_opened_over_other_sites(
    masking: Callable[..., tuple[Federation, Seen]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server dies with the sum of round 2 in hand and begins the round anew, without a site."""
    federation, seen = masking("federation.join_timeout_s=3")
    save = loop.save_checkpoint

    def die_in_round_2(*arguments: object) -> None:
        if arguments[1].record.round_number == 2:  # type: ignore[attr-defined]
            raise Killed
        save(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "save_checkpoint", die_in_round_2)
    with pytest.raises(Killed):
        federation.run()
    monkeypatch.setattr(loop, "save_checkpoint", save)
    node = federation.node(VICTIM)
    node.kill()
    with pytest.raises(RunError, match=r"scanner-1: refused \(internal\)"):
        federation.run()
    check_curious(seen)
    node.start()
    federation.run()
    assert statuses(federation.records, VICTIM) == ["ok", "ok"]
    assert {frozenset(stayed) for each in seen.reveals.values() for stayed in each} == {
        frozenset(SITES)
    }
    assert [federation.charged(name) for name in SITES] == [[1, 2]] * 3


SHARED_NOISE = (
    "privacy.unit=site",
    "privacy.sample_rate=1.0",
    "privacy.site.expected_sites=3",
    "privacy.site.max_update_norm=0.5",
    "secure_aggregation.distributed_noise=discrete_gaussian",
    "secure_aggregation.honest_sites=1.0",
    NEEDED,
    OF_ALL,
)


def test_no_masks_hide_two_vectors_where_noise_is_drawn_anew(
    masking: Callable[..., tuple[Federation, Seen]],
) -> None:
    """A killed worker's vector may have left: its SuperNode's memory does not say so."""
    federation, seen = masking(*SHARED_NOISE)
    crashes(federation, messages.TRAIN, has_sent=True)
    federation.run()
    assert begun(federation) == [1, 2, 2]
    assert [len(seen.vectors[name]) for name in SITES] == [2, 2, 2]
    assert statuses(federation.records, VICTIM) == ["ok", "ok"]
    check_curious(seen)


def test_shares_of_the_noise_are_drawn_and_charged_anew(
    masking: Callable[..., tuple[Federation, Seen]],
) -> None:
    federation, seen = masking(*SHARED_NOISE)
    federation.before = once(messages.TRAIN, 2, VICTIM, restarts(federation))
    federation.run()
    assert begun(federation) == [1, 2, 2]
    assert federation.charged(VICTIM) == [1, 2]
    assert [federation.charged(name) for name in OTHERS] == [[1, 2, 2]] * 2
    assert all(again is False for name in SITES for _, again in federation.updates(name))
    check_curious(seen)
