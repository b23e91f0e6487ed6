"""FedAvg: the new model is the old one plus the weighted mean of the sites' updates.

Reference: McMahan et al. 2017, https://arxiv.org/abs/1602.05629
"""

import numpy as np

from medfed.common.state_dicts import StateDict
from medfed.server.aggregation.exact import WeightedMean


class FedAvg:
    """One round of FedAvg: `add` each update as it arrives, then `apply` the mean."""

    def __init__(self, weights: StateDict) -> None:
        self._weights = weights
        self._mean = WeightedMean(weights)

    @property
    def num_updates(self) -> int:
        """How many updates were folded in."""
        return self._mean.num_terms

    def add(self, update: StateDict, weight: int) -> None:
        """Fold one screened update in; the order does not matter.

        Raises:
            UpdateError: See `WeightedMean.add`; nothing was added.
        """
        self._mean.add(update, weight)

    def apply(self) -> StateDict:
        """Return the new global weights, each in its own type.

        Raises:
            UpdateError: If no update was added.
        """
        mean = self._mean.result()
        return {
            name: np.asarray(np.add(array, mean[name]), dtype=array.dtype)
            for name, array in self._weights.items()
        }
