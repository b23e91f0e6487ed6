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
    """One set of messages and their replies.

    `failures` tells, by node, why there was no reply: unreachable, late, or the error's code.
    """

    def __init__(self, grid: Grid, outgoing: Iterable[Message], timeout_s: float) -> None:
        self._grid = grid
        self._outgoing = list(outgoing)
        self._timeout_s = timeout_s
        self.failures: dict[int, str] = {}

    def replies(self) -> Iterator[Message]:
        """Yield each reply with content once, in order of arrival, until the deadline."""
        waiting = self._push()
        deadline = time.monotonic() + self._timeout_s
        pause = _FIRST_PAUSE_S
        while waiting and time.monotonic() < deadline:
            for message in self._grid.pull_messages(list(waiting)):
                node_id = waiting.pop(message.metadata.reply_to_message_id, None)
                if node_id is None:
                    continue  # a duplicate
                if message.has_error():
                    # Its reason may quote a site's exception: it is neither kept nor logged.
                    self.failures[node_id] = f"error {message.error.code}"
                else:
                    yield message
            if waiting:
                pause = self._wait(pause)
        for node_id in waiting.values():
            self.failures[node_id] = "late"

    def _push(self) -> dict[str, int]:
        # A list: the real grid answers a generator with HTTP 500.
        accepted = set(self._grid.push_messages(self._outgoing))
        waiting: dict[str, int] = {}
        for message in self._outgoing:
            # Grids number the messages they are given; one that they could not take is left out.
            if message.metadata.message_id in accepted:
                waiting[message.metadata.message_id] = message.metadata.dst_node_id
            else:
                self.failures[message.metadata.dst_node_id] = "unreachable"
        self._outgoing = []
        return waiting

    def _wait(self, pause: float) -> float:
        """Pause before the next poll, unless pulling from this grid itself waits for replies."""
        if getattr(self._grid, "pull_waits", False):
            return pause
        time.sleep(pause)
        return min(pause * 1.5, _LONGEST_PAUSE_S)
