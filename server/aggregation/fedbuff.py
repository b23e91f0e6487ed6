"""FedBuff: updates are taken in as they come, and one that started long ago counts for less.

    x = x + eta / K * sum over the K updates of  u_i / sqrt(1 + tau_i)

tau_i is the update's staleness: how often the global weights have changed since site i got them.
The sum is divided by K, not by the sum of the factors: a buffer of old updates moves less.

Folded in float64 in the order of arrival: the same order gives the same bits.

Reference: Nguyen et al. 2021, algorithm 1 and its scaling of stale updates,
https://arxiv.org/abs/2106.06639
"""

import math
from collections.abc import Mapping

import numpy as np

from medfed.common.errors import UpdateError
from medfed.common.state_dicts import StateDict
from medfed.server.aggregation.exact import check_magnitude


class FedBuff:
    """One buffer: `add` each update as it arrives, then `apply` once.

    Args:
        weights: Global weights now, which may be newer than those that sites started from.
        learning_rate: The server's, eta.
        staleness: By site, the updates of the global weights since it was asked.
    """

    def __init__(
        self, weights: StateDict, learning_rate: float, staleness: Mapping[str, int]
    ) -> None:
        self._weights = weights
        self._learning_rate = learning_rate
        self._staleness = staleness
        self._sum = {name: np.zeros(a.shape, dtype=np.float64) for name, a in weights.items()}
        self._num_updates = 0

    @property
    def num_updates(self) -> int:
        """How many updates were folded in."""
        return self._num_updates

    @property
    def notes(self) -> Mapping[str, str]:
        """None: what an update counts for follows from the round in which its site was asked."""
        return {}

    def add(self, update: StateDict, weight: int, site: str) -> None:
        """Fold one screened update in; every site counts once, whatever its `weight`.

        Raises:
            UpdateError: A value that is not finite or too large; nothing was added.
        """
        check_magnitude(update)
        factor = 1 / math.sqrt(1 + self._staleness[site])
        for name, array in update.items():
            self._sum[name] += factor * array.astype(np.float64)
        self._num_updates += 1

    def apply(self) -> StateDict:
        """Return the new global weights, each in its own type; whole numbers are rounded.

        Raises:
            UpdateError: If no update was added.
        """
        if not self._num_updates:
            raise UpdateError("Expected at least one update in the buffer, got none.")
        new: StateDict = {}
        for name, array in self._weights.items():
            step = self._learning_rate * self._sum[name] / self._num_updates
            moved = np.add(array, step, dtype=np.float64)
            if not np.issubdtype(array.dtype, np.floating):
                moved = np.rint(moved)
            new[name] = np.asarray(moved, dtype=array.dtype)
        return new
