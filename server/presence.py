"""Which nodes are connected, since when and under which names: what Flower says of them.

A SuperLink notices a lost connection after up to a minute, and lists the connected nodes only. In
one process all are always there.
"""

import math
import time
from dataclasses import dataclass

from flwr.serverapp import Grid

# Asking a SuperLink takes some milliseconds of it.
_EVERY_S = 1.0
# Ten thousand nodes take it a tenth of a second: a fiftieth of the time goes into that at most.
_LOOKS_TO_REST = 50


@dataclass(frozen=True)
class _Node:
    name: str
    start: str


class Presence:
    """The nodes of a grid, as of the last look.

    Args:
        grid: Flower's.

    Attributes:
        changes: How often a look found other nodes, or one connected anew.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._known: dict[int, _Node] = {}
        self._missing: dict[int, float] = {}
        self._looked = -math.inf
        self._rest_s = _EVERY_S
        self._found: dict[int, _Node] = {}
        self.changes = 0

    def look(self) -> None:
        """Ask the grid, unless that was a moment ago."""
        clock = time.monotonic()
        if clock - self._looked < self._rest_s:
            return
        found = {
            int(node.node_id): _Node(node.name, node.last_activated_at)
            for node in self._grid.get_nodes()
        }
        # The grid may have been unreachable for long: what it now lists is of now.
        self._looked = time.monotonic()
        self._rest_s = max(_EVERY_S, _LOOKS_TO_REST * (self._looked - clock))
        clock = self._looked
        if found == self._found:
            return
        self._found = found
        self.changes += 1
        self._known |= found
        self._missing = {
            node: self._missing.get(node, clock) for node in self._known if node not in found
        }

    @property
    def online(self) -> list[int]:
        """The connected nodes, in the grid's order."""
        return list(self._found)

    def is_online(self, node: int) -> bool:
        """Whether a node is connected."""
        return node in self._found

    def offline_s(self, node: int) -> float:
        """Return for how many seconds a node has been seen missing; 0 if it is connected."""
        return time.monotonic() - self._missing[node] if node in self._missing else 0.0

    def name_of(self, node: int) -> str:
        """Return the name that the coordinator registered a node's key under; empty if none."""
        return self._known[node].name if node in self._known else ""

    def start_of(self, node: int) -> str:
        """Return what changes whenever a node is connected anew: after a restart, or a cut."""
        return self._known[node].start if node in self._known else ""
