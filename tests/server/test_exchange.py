"""Messages and replies over a SuperLink's own bookkeeping: who dies, who is cut off, who forges."""

import math
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from link import HEARTBEAT_S, Link, Node, superlink

from medfed.common import messages
from medfed.common.errors import RefusalReason
from medfed.common.messages import Refusal
from medfed.server.exchange import DAMAGED, LATE, LOST, UNREADABLE, Exchange
from medfed.server.presence import Presence
from medfed.server.watch import Watch

# A busy machine may keep a thread from its heartbeat for more than a second.
LOST_AFTER_S = 2.0


def content(site: str = "s") -> RecordDict:
    return messages.pack_refusal(Refusal(site=site, reason=RefusalReason.DATA))


def answer(message: Message, context: Context) -> Message:
    return Message(content(), reply_to=message)


def request(node: int, round_number: int = 1) -> Message:
    return Message(content(), node, messages.TRAIN, group_id=str(round_number), ttl=60)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medfed.server.presence._EVERY_S", 0.02)
    monkeypatch.setattr("medfed.server.exchange._JUDGE_EVERY_S", 0.05)
    monkeypatch.setattr("medfed.server.pulling._LONGEST_PAUSE_S", 0.05)
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def link() -> Iterator[Link]:
    with superlink() as made:
        yield made


def never(node: int) -> float:
    return 0.0


def watched(
    link: Link,
    *,
    asks_again: bool = False,
    forgets: bool = False,
    away_at_most_s: float = math.inf,
    turned: Callable[[int], float] = never,
) -> Any:
    presence = Presence(link.grid)
    presence.look()
    watch = Watch(presence, LOST_AFTER_S, turned)
    return Exchange(
        link.grid, watch, asks_again=asks_again, forgets=forgets, away_at_most_s=away_at_most_s
    )


class Gate:
    """An app that answers once it is opened."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.open = threading.Event()

    def __call__(self, message: Message, context: Context) -> Message:
        self.asked.set()
        assert self.open.wait(30)
        return answer(message, context)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open.set()


def collect(
    exchange: Exchange,
    nodes: Iterable[Node],
    timeout_s: float = 20.0,
    enough: Callable[[], bool] | None = None,
) -> list[int]:
    """Return the nodes that answered, in order."""
    outgoing = [request(node.node_id) for node in nodes]
    return [r.metadata.src_node_id for r in exchange.replies(outgoing, timeout_s, enough)]


def later(act: Callable[[], None], asked: threading.Event) -> threading.Thread:
    def run() -> None:
        assert asked.wait(20)
        act()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def restarted_when_asked(node: Node, gate: Gate) -> threading.Thread:
    def restart() -> None:
        node.kill()
        gate.open.set()
        node.start()

    return later(restart, gate.asked)


def test_each_reply_comes_once(link: Link) -> None:
    nodes = [link.add(str(number), answer) for number in range(5)]
    exchange = watched(link)
    assert sorted(collect(exchange, nodes)) == sorted(node.node_id for node in nodes)
    assert (exchange.failures, exchange.ignored, exchange.num_waiting) == ({}, [], 0)


def test_an_error_is_put_to_the_node_that_was_asked(link: Link) -> None:
    def fail(message: Message, context: Context) -> Message:
        raise TypeError("patient Erika Mustermann")

    broken, whole = link.add("broken", fail), link.add("whole", answer)
    exchange = watched(link)
    assert collect(exchange, [broken, whole]) == [whole.node_id]
    assert exchange.failures == {broken.node_id: "error 2"}


def test_a_node_that_is_no_longer_registered_is_unreachable(link: Link) -> None:
    gone, whole = link.add("gone", answer), link.add("whole", answer)
    gone.kill()
    link.state.delete_node("owner", gone.node_id)
    exchange = watched(link)
    assert collect(exchange, [gone, whole]) == [whole.node_id]
    assert exchange.failures == {gone.node_id: "unreachable"}


def test_a_killed_node_is_lost_once_enough_have_answered(link: Link, gate: Gate) -> None:
    dead, whole = link.add("dead", gate), link.add("whole", answer)
    killing = later(dead.kill, gate.asked)
    began = time.monotonic()
    exchange = watched(link)
    assert collect(exchange, [dead, whole], enough=lambda: True) == [whole.node_id]
    assert LOST_AFTER_S < time.monotonic() - began < 10
    assert exchange.failures == {dead.node_id: LOST}
    killing.join()


def test_a_lost_node_is_waited_for_while_there_are_too_few_answers(link: Link, gate: Gate) -> None:
    dead, whole = link.add("dead", gate), link.add("whole", answer)
    killing = later(dead.kill, gate.asked)
    began = time.monotonic()
    exchange = watched(link)
    assert collect(exchange, [dead, whole], 3.0, enough=lambda: False) == [whole.node_id]
    assert time.monotonic() - began >= 3.0
    assert exchange.failures == {dead.node_id: LOST}
    killing.join()


def test_a_node_is_waited_for_no_longer_than_it_may_be_away(link: Link, gate: Gate) -> None:
    dead, whole = link.add("dead", gate), link.add("whole", answer)
    killing = later(dead.kill, gate.asked)
    began = time.monotonic()
    exchange = watched(link, away_at_most_s=2.0)
    assert collect(exchange, [dead, whole], enough=lambda: False) == [whole.node_id]
    assert 2.0 < time.monotonic() - began < 10
    assert exchange.failures == {dead.node_id: LOST}
    killing.join()


def test_a_slow_node_that_is_connected_is_late_at_the_deadline(link: Link, gate: Gate) -> None:
    slow, whole = link.add("slow", gate), link.add("whole", answer)
    exchange = watched(link)
    assert collect(exchange, [slow, whole], 2.0, enough=lambda: True) == [whole.node_id]
    assert exchange.failures == {slow.node_id: LATE}


def test_the_answer_of_a_node_that_was_cut_off_for_a_while_counts(link: Link, gate: Gate) -> None:
    node, whole = link.add("node", gate), link.add("whole", answer)
    exchange = watched(link)

    def cut_and_heal() -> None:
        node.connected = False
        gate.open.set()
        time.sleep(0.7)  # offline after 0.4 s
        node.connected = True

    healing = later(cut_and_heal, gate.asked)
    assert collect(exchange, [node, whole], enough=lambda: True) == [whole.node_id, node.node_id]
    assert (exchange.failures, node.handled) == ({}, [(messages.TRAIN, "1")])
    healing.join()


def test_a_node_that_was_killed_and_is_back_is_asked_again(link: Link) -> None:
    gate = Gate()
    node = link.add("node", gate)
    restarting = restarted_when_asked(node, gate)
    exchange = watched(link, asks_again=True)
    assert collect(exchange, [node]) == [node.node_id]
    assert node.handled == [(messages.TRAIN, "1")] * 2
    assert exchange.failures == {}
    restarting.join()


def crashing(times: int, code: int) -> Callable[[Message, Context], Message]:
    """Fail so many times, then answer."""
    left = iter(range(times))

    def app(message: Message, context: Context) -> Message:
        is_over = next(left, None) is None
        return answer(message, context) if is_over else Message(Error(code), reply_to=message)

    return app


def test_a_node_whose_program_crashed_is_asked_once_more(link: Link) -> None:
    once, ever = link.add("once", crashing(1, 8)), link.add("ever", crashing(9, 8))
    exchange = watched(link, asks_again=True)
    assert collect(exchange, [once, ever]) == [once.node_id]
    assert (len(once.handled), len(ever.handled)) == (2, 2)
    assert exchange.failures == {ever.node_id: "error 8"}


def test_a_node_whose_message_was_lost_on_the_way_is_asked_up_to_five_times(link: Link) -> None:
    four, ever = link.add("four", crashing(4, 3)), link.add("ever", crashing(9, 3))
    exchange = watched(link, asks_again=True)
    assert collect(exchange, [four, ever]) == [four.node_id]
    assert (len(four.handled), len(ever.handled)) == (5, 5)
    assert exchange.failures == {ever.node_id: LOST}


def test_a_node_that_answered_with_an_error_is_not_asked_again(link: Link) -> None:
    node = link.add("node", crashing(1, 2))
    exchange = watched(link, asks_again=True)
    assert collect(exchange, [node]) == []
    assert exchange.failures == {node.node_id: "error 2"}


def test_a_node_that_must_not_be_asked_again_is_lost_when_it_was_killed(link: Link) -> None:
    gate = Gate()
    node, whole = link.add("node", gate), link.add("whole", answer)
    restarting = restarted_when_asked(node, gate)
    exchange = watched(link, asks_again=False)
    assert collect(exchange, [node, whole], enough=lambda: True) == [whole.node_id]
    assert exchange.failures == {node.node_id: LOST}
    assert len(node.handled) == 1
    restarting.join()


@pytest.mark.parametrize("forgets", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_node_that_has_forgotten_is_not_waited_for_even_if_there_are_too_few_answers(
    link: Link, forgets: bool
) -> None:
    gate = Gate()
    node, whole = link.add("node", gate), link.add("whole", answer)
    restarting = restarted_when_asked(node, gate)
    exchange = watched(link, asks_again=False, forgets=forgets)
    began = time.monotonic()
    assert collect(exchange, [node, whole], 6.0, enough=lambda: False) == [whole.node_id]
    assert (time.monotonic() - began < 5.0) == forgets
    assert exchange.failures == {node.node_id: LOST if forgets else LATE}
    restarting.join()


def test_a_node_that_is_cut_off_is_waited_for_though_it_may_forget(link: Link, gate: Gate) -> None:
    dead, whole = link.add("dead", gate), link.add("whole", answer)
    killing = later(dead.kill, gate.asked)
    exchange = watched(link, forgets=True)
    began = time.monotonic()
    assert collect(exchange, [dead, whole], 3.0, enough=lambda: False) == [whole.node_id]
    assert time.monotonic() - began >= 3.0
    killing.join()


def test_one_answer_counts_of_a_node_that_was_asked_twice_and_answers_both(link: Link) -> None:
    """A cut looks like a restart: the node is asked again, and had not forgotten."""
    gate = Gate()
    node, slow = link.add("node", gate), link.add("slow", gate)
    exchange = watched(link, asks_again=True)

    def cut_and_heal() -> None:
        node.connected = False
        time.sleep(4 * HEARTBEAT_S)
        node.connected = True
        time.sleep(2 * HEARTBEAT_S)
        gate.open.set()

    healing = later(cut_and_heal, gate.asked)
    assert sorted(collect(exchange, [node, slow])) == sorted([node.node_id, slow.node_id])
    healing.join()
    deadline = time.monotonic() + 10
    while len(node.handled) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert node.handled == [(messages.TRAIN, "1")] * 2
    assert list(exchange.pull()) == []


def test_a_lost_node_finds_no_message_of_the_round_that_is_over(link: Link) -> None:
    node, whole = link.add("node", answer), link.add("whole", answer)
    node.connected = False
    exchange = watched(link)
    assert collect(exchange, [node, whole], enough=lambda: True) == [whole.node_id]
    node.connected = True
    assert collect(watched(link), [whole]) == [whole.node_id]
    time.sleep(0.3)
    assert node.handled == []


def test_a_node_whose_upload_was_turned_away_is_not_waited_for(link: Link, gate: Gate) -> None:
    large, whole = link.add("large", gate), link.add("whole", answer)
    exchange = watched(link, turned=lambda node: 100.0 if node == large.node_id else 0.0)
    assert collect(exchange, [large, whole], enough=lambda: True) == [whole.node_id]
    assert exchange.failures == {large.node_id: LOST}


class Scripted(Grid):
    """A grid whose replies a test writes; it asks for nothing and checks nothing."""

    def __init__(self, script: Callable[[dict[int, Message]], list[list[Message]]]) -> None:
        self._script = script
        self._turns: list[list[Message]] = []
        self.pulled: list[list[str]] = []
        self.alive: list[weakref.ref[Message]] = []

    def set_run(self, run: Run) -> None: ...

    @property
    def run(self) -> Run:
        return Run.create_empty(run_id=1)

    def create_message(self, *arguments: Any, **named: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return [2, 3, 4]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        sent = {}
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"to {message.metadata.dst_node_id}"
            sent[message.metadata.dst_node_id] = message
        self._turns = self._script(sent)
        return [message.metadata.message_id for message in sent.values()]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self.pulled.append(list(message_ids))
        held = [reference() for reference in self.alive if reference() is not None]
        assert not held, "an earlier reply is held while the next is fetched"
        found = self._turns.pop(0) if self._turns else []
        self.alive += [weakref.ref(message) for message in found]
        return found

    def send_and_receive(self, *arguments: Any, **named: Any) -> list[Message]:
        raise NotImplementedError


def reply_to(message: Message, **metadata: Any) -> Message:
    reply = Message(content(), reply_to=message)
    for name, value in metadata.items():
        reply.metadata.__dict__[f"_{name}"] = value
    return reply


def run_scripted(
    script: Callable[[dict[int, Message]], list[list[Message]]], nodes: tuple[int, ...] = (2, 3)
) -> tuple[Exchange, list[int], Scripted]:
    grid = Scripted(script)
    exchange = Exchange(grid)
    outgoing = [request(node) for node in nodes]
    got = []
    for reply in exchange.replies(outgoing, 1.0):
        got.append(reply.metadata.src_node_id)
        del reply
    return exchange, got, grid


def test_a_second_reply_to_a_message_is_ignored_and_noted() -> None:
    exchange, got, _ = run_scripted(
        lambda sent: [[reply_to(sent[2]), reply_to(sent[2])], [reply_to(sent[3])]]
    )
    assert got == [2, 3]
    assert exchange.ignored == [(2, "a second reply, or one to no message of this round")]


@pytest.mark.parametrize(
    ("forged", "why"),
    [
        ({"reply_to_message_id": "of round 1"}, "no message of this round"),
        ({"src_node_id": 3}, "another node than was asked"),
        ({"run_id": 7}, "another run"),
    ],
)
def test_a_reply_that_was_not_asked_for_is_ignored_and_the_right_one_counts(
    forged: dict[str, Any], why: str
) -> None:
    exchange, got, _ = run_scripted(
        lambda sent: [
            [reply_to(sent[2], **forged)],
            [reply_to(sent[3])],
            [reply_to(sent[2])],
        ]
    )
    assert got == [3, 2]
    [(node, noted)] = exchange.ignored
    assert node == 2
    assert why in noted


def error_to(message: Message, code: int, sender: int) -> Message:
    error = Message(Error(code), reply_to=message)
    error.metadata.__dict__["_src_node_id"] = sender
    return error


@pytest.mark.parametrize("code", [UNREADABLE, 2, 3])
def test_an_error_in_another_nodes_name_fails_nobody(code: int) -> None:
    exchange, got, _ = run_scripted(
        lambda sent: [[error_to(sent[2], code, 3)], [reply_to(sent[2])], [reply_to(sent[3])]]
    )
    assert got == [2, 3]
    assert exchange.failures == {}
    assert exchange.ignored == [(2, "a reply from another node than was asked")]


@pytest.mark.parametrize(
    ("code", "sender", "failure"),
    [(UNREADABLE, 2, DAMAGED), (2, 2, "error 2"), (5, SUPERLINK_NODE_ID, LOST)],
)
def test_an_error_of_its_own_or_of_the_superlink_fails_a_node(
    code: int, sender: int, failure: str
) -> None:
    exchange, got, _ = run_scripted(
        lambda sent: [[error_to(sent[2], code, sender)], [reply_to(sent[3])]]
    )
    assert got == [3]
    assert exchange.failures == {2: failure}


def test_replies_are_fetched_one_at_a_time_in_turn_and_none_is_held() -> None:
    _, got, grid = run_scripted(
        lambda sent: [[], [reply_to(sent[3])], [], [reply_to(sent[2])], [], [reply_to(sent[4])]],
        (2, 3, 4),
    )
    assert got == [3, 2, 4]
    assert [len(identifiers) for identifiers in grid.pulled] == [1] * len(grid.pulled)
    # In turn: each node once a turn, until its reply has come.
    asked = [node for [node] in grid.pulled]
    assert asked == ["to 2", "to 3", "to 4", "to 2", "to 4", "to 4"]
