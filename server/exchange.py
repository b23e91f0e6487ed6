"""Sends messages through a Flower Grid and yields replies as they arrive.

`Grid.send_and_receive` holds every reply until the last one has come; here each is handed over at
once and then forgotten, so that memory does not grow with the number of sites.
"""

import time
from collections.abc import Iterable, Iterator

from flwr.app import Message
from flwr.serverapp import Grid

_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 1.0


class Exchange:
    """Messages under way and their replies.

    `failures` tells, by node, why there was no reply: unreachable, late, or the error's code.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._waiting: dict[str, int] = {}
        self._pause_s = _FIRST_PAUSE_S
        self.failures: dict[int, str] = {}

    @property
    def num_waiting(self) -> int:
        """Messages without an answer so far."""
        return len(self._waiting)

    def replies(self, outgoing: Iterable[Message], timeout_s: float) -> Iterator[Message]:
        """Send, then yield each reply with content once, as they arrive, until the deadline."""
        self.push(outgoing)
        deadline = time.monotonic() + timeout_s
        while self._waiting and time.monotonic() < deadline:
            yield from self.pull()
            if self._waiting:
                self.wait()
        for node_id in self._waiting.values():
            self.failures[node_id] = "late"

    def push(self, outgoing: Iterable[Message]) -> None:
        """Send messages; may be called again while others are under way."""
        # A list: the real grid answers a generator with HTTP 500.
        pushed = list(outgoing)
        accepted = set(self._grid.push_messages(pushed)) if pushed else set()
        for message in pushed:
            # Grids number the messages they are given; one that they could not take is left out.
            if message.metadata.message_id in accepted:
                self._waiting[message.metadata.message_id] = message.metadata.dst_node_id
            else:
                self.failures[message.metadata.dst_node_id] = "unreachable"

    def pull(self) -> Iterator[Message]:
        """Yield the replies with content that have come."""
        if not self._waiting:
            return
        for message in self._grid.pull_messages(list(self._waiting)):
            node_id = self._waiting.pop(message.metadata.reply_to_message_id, None)
            if node_id is None:
                continue  # a duplicate
            if message.has_error():
                # Its reason may quote a site's exception: it is neither kept nor logged.
                self.failures[node_id] = f"error {message.error.code}"
            else:
                yield message

    def wait(self) -> None:
        """Pause before the next pull, unless pulling from this grid itself waits for replies."""
        if self._waiting and getattr(self._grid, "pull_waits", False):
            return
        time.sleep(self._pause_s)
        self._pause_s = min(self._pause_s * 1.5, _LONGEST_PAUSE_S)
