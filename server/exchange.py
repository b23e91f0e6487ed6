"""Sends messages through a Flower Grid and yields replies as they arrive.

`Grid.send_and_receive` holds every reply until the last one has come; here one is fetched at a
time, handed over and forgotten, so that memory does not grow with the number of sites.

A node that is not connected is not asked for its reply: a SuperLink would take that for a reason to
drop the message, and a site behind a cut cable could not answer when it is back. A node that is
connected anew may have forgotten what it was asked, since a SuperNode keeps messages in memory
only; where the study allows it, it is asked again. Whichever answer comes first counts.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator

from flwr.app import Message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid

from medfed.server.pulling import Puller
from medfed.server.watch import Asked, Patience, Watch

LATE = "late"
LOST = "lost"
DAMAGED = "damaged"
DROPPED_OUT = "dropped out"
AFTER_DEADLINE = "after the deadline"
UNREADABLE = -1
"""Code of the error that stands for a reply which is not what was announced. None of Flower's."""
TOO_LATE = -2
"""Code of the error that stands, in a simulation, for a reply after the deadline. Nor is this."""
NO_ANSWER = -3
"""Code of the error that stands, in a simulation, for a site that drops out. Nor is this."""

_ENDS = {UNREADABLE: DAMAGED, TOO_LATE: AFTER_DEADLINE, NO_ANSWER: DROPPED_OUT}
_JUDGE_EVERY_S = 1.0
# A message or its reply that Flower lost on the way: its ErrorCode MESSAGE_UNAVAILABLE,
# REPLY_MESSAGE_UNAVAILABLE and NODE_UNAVAILABLE.
_LOST_ON_THE_WAY = (3, 4, 5)
# CLIENT_APP_CRASHED: the program at the site died, or a SuperNode whose clock was set took it for
# dead. That may pass, or be the fault of the message: it is tried once more.
_CRASHED = 8
_MOST_ASKED = 5


class Exchange:
    """Messages under way and their replies.

    Args:
        grid: Flower's.
        watch: Tells which nodes will not answer; None to wait for all.
        asks_again: Whether a node may be asked the same twice: it then gives the same answer.
        forgets: See `Patience`.
        away_at_most_s: See `Patience`.
        most_bytes: Most memory that a reply may take, besides 64 MB.

    Attributes:
        failures: By node, why there was no reply: unreachable, late, lost, damaged, or the error's
            code.
        ignored: What came and was not used: node (0 if unknown) and why.
    """

    def __init__(
        self,
        grid: Grid,
        watch: Watch | None = None,
        *,
        asks_again: bool = False,
        forgets: bool = False,
        away_at_most_s: float = math.inf,
        most_bytes: float = 0.0,
    ) -> None:
        self._grid = grid
        self._puller = Puller(grid, most_bytes)
        self._watch = watch
        self._asks_again = asks_again
        self._patience = Patience(forgets, away_at_most_s)
        self._asked: dict[int, Asked] = {}
        self._nodes: dict[str, int] = {}
        self._deadline = float("inf")
        self._noticed = -1
        self._owes = False
        self._gave_up = -math.inf
        self.failures: dict[int, str] = {}
        self.ignored: list[tuple[int, str]] = []

    @property
    def num_waiting(self) -> int:
        """Nodes without an answer so far."""
        return len(self._asked)

    def is_waiting_for(self, node: int) -> bool:
        """Whether a node was asked and has not answered so far."""
        return node in self._asked

    def replies(
        self,
        outgoing: Iterable[Message],
        timeout_s: float,
        enough: Callable[[], bool] | None = None,
    ) -> Iterator[Message]:
        """Send, then yield each reply with content once, as they arrive, until the deadline.

        Args:
            outgoing: One message a node.
            timeout_s: Until the deadline.
            enough: Whether nodes that are lost need not be waited for any longer; None for never.
        """
        self.extend(timeout_s)
        self.push(outgoing)
        while self._asked and time.monotonic() < self._deadline:
            self._notice()
            yield from self.pull()
            if enough is not None and self._asked:
                yield from self._give_up(is_enough=enough())
            if self._asked:
                self.wait()
        for node in list(self._asked):
            self._end(node, LATE if self._is_online(node) else LOST)

    def extend(self, timeout_s: float) -> None:
        """Set the deadline of the replies that are under way anew, from now."""
        self._deadline = time.monotonic() + timeout_s

    def push(self, outgoing: Iterable[Message]) -> None:
        """Send messages; may be called again while others are under way."""
        # A list: the real grid answers a generator with HTTP 500.
        pushed = list(outgoing)
        if pushed:
            self._puller.hurry()
        accepted = set(self._grid.push_messages(pushed)) if pushed else set()
        for message in pushed:
            # Grids number the messages they are given; one that they could not take is left out.
            identifier, node = message.metadata.message_id, message.metadata.dst_node_id
            if identifier not in accepted:
                self._asked.setdefault(node, Asked(message, ""))
                self._end(node, "unreachable")
                continue
            self.failures.pop(node, None)
            asked = self._asked.setdefault(node, Asked(message, self._start_of(node)))
            asked.identifiers.add(identifier)
            self._nodes[identifier] = node

    def pull(self) -> Iterator[Message]:
        """Yield the replies with content that have come."""
        if self._puller.waits:
            if self._nodes:
                yield from self._pull(list(self._nodes))
            return
        for identifier, node in list(self._nodes.items()):
            if identifier in self._nodes and self._is_online(node):
                yield from self._pull([identifier])

    def wait(self) -> None:
        """Pause before the next pull, unless pulling from this grid itself waits for replies."""
        if not (self._asked and self._puller.waits):
            self._puller.rest()

    def _pull(self, identifiers: list[str]) -> Iterator[Message]:
        found = self._puller.pull(identifiers)
        while found:
            message = found.pop(0)
            if self._takes(message):
                yield message
            del message  # or it is held while the next is fetched

    def _takes(self, message: Message) -> bool:
        """Whether this is the first answer of a node, with content, to what it was asked here."""
        metadata = message.metadata
        node = self._nodes.get(metadata.reply_to_message_id)
        if node is None:
            self._ignore(metadata.src_node_id, "a second reply, or one to no message of this round")
            return False
        asked = self._asked[node]
        # Errors may be the SuperLink's own; no member can send in its name.
        senders = (node, SUPERLINK_NODE_ID) if message.has_error() else (node,)
        if metadata.src_node_id not in senders:
            self._ignore(node, "a reply from another node than was asked")
            return False
        if message.has_error():
            # Its reason may quote a site's exception: it is neither kept nor logged.
            self._take_error(node, asked, metadata.reply_to_message_id, message.error.code)
            return False
        if metadata.run_id != asked.message.metadata.run_id:
            self._ignore(node, "a reply from another run")
            return False
        self._forget(node)
        return True

    def _take_error(self, node: int, asked: Asked, identifier: str, code: int) -> None:
        del self._nodes[identifier]
        asked.identifiers.discard(identifier)
        if asked.identifiers:
            return  # it was asked again meanwhile
        if code in _ENDS:
            self._end(node, _ENDS[code])
            return
        most = {_CRASHED: 2, **dict.fromkeys(_LOST_ON_THE_WAY, _MOST_ASKED)}.get(code, 0)
        if self._watch is not None and self._asks_again and asked.times < most:
            asked.owed = self._owes = True
        else:
            self._end(node, LOST if code in _LOST_ON_THE_WAY else f"error {code}")

    def _notice(self) -> None:
        """Look who is connected, and ask those again that were connected anew."""
        if self._watch is None:
            return
        presence = self._watch.presence
        presence.look()
        if presence.changes == self._noticed and not self._owes:
            return
        self._noticed, self._owes = presence.changes, False
        anew = [
            node
            for node, asked in self._asked.items()
            if presence.is_online(node) and (asked.owed or presence.start_of(node) != asked.start)
        ]
        for node in anew:
            asked = self._asked[node]
            if self._asks_again and asked.times < _MOST_ASKED:
                self._ask_again(node, asked)
            elif asked.forgot_at is None:
                asked.forgot_at = time.monotonic()

    def _ask_again(self, node: int, asked: Asked) -> None:
        old = asked.message.metadata
        asked.start, asked.times, asked.owed = self._start_of(node), asked.times + 1, False
        again = Message(
            content=asked.message.content,
            dst_node_id=node,
            message_type=old.message_type,
            group_id=old.group_id,
            ttl=max(1.0, min(old.ttl, self._deadline - time.monotonic())),
        )
        self.push([again])

    def _give_up(self, *, is_enough: bool) -> Iterator[Message]:
        """Stop waiting for nodes that have been unable to answer for long, or cannot any more."""
        clock = time.monotonic()
        if self._watch is None or clock - self._gave_up < _JUDGE_EVERY_S:
            return
        self._gave_up = clock
        for node, asked in list(self._asked.items()):
            if self._patience.has_ended(node, asked, self._watch, is_enough=is_enough):
                # Asked for now, a SuperLink drops the message: it must not wait for the node, which
                # would train for a round that is over.
                for identifier in list(asked.identifiers):
                    yield from self._pull([identifier])
                if node in self._asked:
                    self._end(node, LOST)

    def _end(self, node: int, reason: str) -> None:
        self._forget(node)
        self.failures[node] = reason

    def _forget(self, node: int) -> None:
        for identifier in self._asked.pop(node).identifiers:
            self._nodes.pop(identifier, None)

    def _ignore(self, node: int, why: str) -> None:
        self.ignored.append((node, why))

    def _is_online(self, node: int) -> bool:
        return self._watch is None or self._watch.presence.is_online(node)

    def _start_of(self, node: int) -> str:
        return "" if self._watch is None else self._watch.presence.start_of(node)
