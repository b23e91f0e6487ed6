"""FedNova: sites that take different numbers of steps; each counts by its mean step.

    d_i = (x - y_i) / (eta ||a_i||_1)                       a site's mean direction
    x   = x - tau_eff sum_i p_i eta d_i                     (section 5)
    ||a_i||_1 = tau_i                                       for sgd without momentum
              = (tau_i - rho (1 - rho^tau_i) / (1 - rho)) / (1 - rho)     with momentum rho
    tau_eff = sum_i p_i ||a_i||_1                           as in the authors' code: with equal
                                                            numbers of steps this is FedAvg

tau_i follows from the number of images, which sites without DP state, the batch size and the
passes. Where all sites take training.local_steps, under DP always, it is FedAvg to the bit
(`choice.rule_for`). What has no gradient (counters, statistics) is averaged as ever.

Reference: Wang et al. 2020, https://arxiv.org/abs/2007.07481
"""

import math
from collections.abc import Collection, Mapping

import numpy as np

from medfed.common.errors import UpdateError
from medfed.common.state_dicts import StateDict
from medfed.server.aggregation.rule import MeanRule, moved


def effective_steps(num_steps: int, momentum: float) -> float:
    """Return ||a_i||_1: how many times each of a site's gradients counts in its update, added up.

    With sgd's momentum rho a gradient with k steps to go counts (1 - rho**k) / (1 - rho) times.
    """
    if not momentum:
        return float(num_steps)
    lost = momentum * (1 - momentum**num_steps) / (1 - momentum)
    return (num_steps - lost) / (1 - momentum)


class FedNova(MeanRule):
    """One round of FedNova.

    Args:
        weights: Global weights before the round.
        parameters: Names of what has gradients.
        steps: By site, its `effective_steps`; there before its update is added.
    """

    def __init__(
        self, weights: StateDict, parameters: Collection[str], steps: Mapping[str, float]
    ) -> None:
        super().__init__(weights)
        self._parameters = frozenset(parameters)
        self._steps = steps
        self._weighted_steps: list[float] = []

    def add(self, update: StateDict, weight: int, site: str) -> None:
        """Fold one screened update in; the order does not matter.

        Raises:
            UpdateError: See `WeightedMean.add`; nothing was added.
        """
        steps = self._steps[site]
        scaled = {
            name: array.astype(np.float64) / steps if name in self._parameters else array
            for name, array in update.items()
        }
        self._mean.add(scaled, weight)
        self._weighted_steps.append(weight * steps)

    def apply(self) -> StateDict:
        """Return the new global weights, each in its own type.

        Raises:
            UpdateError: If no update was added.
        """
        if not self.num_updates:
            raise UpdateError("Expected at least one update to average, got none.")
        mean, total = self._mean.result(), self._mean.total()
        # Rounded once: the sum does not depend on the order.
        weighted_steps = math.fsum(self._weighted_steps)
        weight = self._mean.total_weight
        for name in self._parameters & set(mean):
            step = total[name] / weight * (weighted_steps / weight)
            mean[name] = np.asarray(step, dtype=mean[name].dtype)
        return moved(self._weights, mean)
