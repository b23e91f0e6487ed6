"""Fetches replies from a grid, at a pace that leaves a busy one time for others."""

import time
from collections.abc import Callable, Iterable

from flwr.app import Message
from flwr.serverapp import Grid

_MOST_BYTES = 64e6
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 1.0


class Puller:
    """What fetches from one grid.

    Args:
        grid: Flower's.
        most_bytes: Most memory that a reply may take, besides 64 MB.

    Attributes:
        waits: Whether pulling itself waits for replies.
    """

    def __init__(self, grid: Grid, most_bytes: float) -> None:
        self.waits = bool(getattr(grid, "pull_waits", False))
        self._pull_messages = _puller(grid, _MOST_BYTES + most_bytes, waits=self.waits)
        self._pause_s = _FIRST_PAUSE_S
        self._pulling_s = 0.0

    def pull(self, identifiers: list[str]) -> list[Message]:
        """Return the replies that have come to messages."""
        began = time.monotonic()
        found = list(self._pull_messages(identifiers))
        self._pulling_s += time.monotonic() - began
        return found

    def hurry(self) -> None:
        """Pause for short times again: an answer may come at once."""
        self._pause_s = _FIRST_PAUSE_S

    def rest(self) -> None:
        """Pause before the next pull."""
        # A request for each node took a while: rest as long, so that others get something done.
        time.sleep(max(self._pause_s, min(self._pulling_s, _LONGEST_PAUSE_S)))
        self._pulling_s = 0.0
        self._pause_s = min(self._pause_s * 1.5, _LONGEST_PAUSE_S)


def _puller(
    grid: Grid, most_bytes: float, *, waits: bool
) -> Callable[[Iterable[str]], Iterable[Message]]:
    """Return what pulls replies from `grid`: through a `Reader` where sites are other machines."""
    if waits:
        return grid.pull_messages  # in this process: none of what a SuperLink needs is imported
    from flwr.superlink.grid.http_grid import HttpGrid

    from medfed.server.reading import Reader

    return Reader(grid, most_bytes).pull if isinstance(grid, HttpGrid) else grid.pull_messages
