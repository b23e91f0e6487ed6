"""q-FedAvg: a site with a higher loss counts for more, so that sites end up more alike.

    u_k = w_k - w                                               site k's update
    w   = w + sum_k p_k F_k^q u_k / sum_k p_k h_k               (algorithm 2, with L taken out of
    h_k = q L F_k^(q-1) ||u_k||^2 + F_k^q                        the fraction)
    L   = 1 / training.learning_rate

F_k is the loss of the global weights over site k's training images, which it states; as in the
authors' code 1e-10 is added to it, so that q < 1 can take a loss of zero. p_k is the site's weight:
the paper draws sites by it instead. With q = 0 this is FedAvg, but for rounding. What has no
gradient (counters, statistics) is averaged as ever.

Reference: Li et al. 2019, https://arxiv.org/abs/1905.10497
"""

import math
from collections.abc import Collection, Mapping

import numpy as np

from medfed.common.errors import UpdateError
from medfed.common.state_dicts import StateDict
from medfed.server.aggregation.rule import MeanRule, moved

_ABOVE_ZERO = 1e-10


class QFedAvg(MeanRule):
    """One round of q-FedAvg.

    Args:
        weights: Global weights before the round.
        parameters: Names of what has gradients.
        losses: F_k by site, >= 0; there before its update is added.
        q: How much a loss counts.
        learning_rate: Of the sites' steps.
    """

    def __init__(
        self,
        weights: StateDict,
        parameters: Collection[str],
        losses: Mapping[str, float],
        *,
        q: float,
        learning_rate: float,
    ) -> None:
        super().__init__(weights)
        self._parameters = [name for name in weights if name in frozenset(parameters)]
        self._losses = losses
        self._q = q
        self._smoothness = 1.0 / learning_rate
        self._divisors: list[float] = []

    def add(self, update: StateDict, weight: int, site: str) -> None:
        """Fold one screened update in; the order does not matter.

        Raises:
            UpdateError: See `WeightedMean.add`, or a loss too large to count; nothing was added.
        """
        loss = self._losses[site] + _ABOVE_ZERO
        wide = {name: update[name].astype(np.float64) for name in self._parameters}
        squared_norm = math.fsum(float(np.square(array).sum()) for array in wide.values())
        try:
            factor = loss**self._q
            divisor = self._q * self._smoothness * loss ** (self._q - 1) * squared_norm + factor
        except OverflowError:
            factor = divisor = math.inf
        if not math.isfinite(weight * divisor):
            raise UpdateError(f"Expected a loss that can be counted by, got {loss:g}.")
        self._mean.add({**update, **{n: a * factor for n, a in wide.items()}}, weight)
        self._divisors.append(weight * divisor)

    def apply(self) -> StateDict:
        """Return the new global weights, each in its own type.

        Raises:
            UpdateError: If no update was added.
        """
        if not self.num_updates:
            raise UpdateError("Expected at least one update to average, got none.")
        step, total = self._mean.result(), self._mean.total()
        # Rounded once: the sum does not depend on the order.
        divisor = math.fsum(self._divisors)
        for name in self._parameters:
            step[name] = np.asarray(total[name] / divisor, dtype=step[name].dtype)
        return moved(self._weights, step)
