"""FedAvg: the new model is the old one plus the weighted mean of the sites' updates.

Reference: McMahan et al. 2017, https://arxiv.org/abs/1602.05629
"""

from collections.abc import Mapping

from medfed.common.state_dicts import StateDict
from medfed.server.aggregation.exact import WeightedMean
from medfed.server.aggregation.rule import moved


class FedAvg:
    """One round of FedAvg: `add` each update as it arrives, then `apply` the mean."""

    def __init__(self, weights: StateDict) -> None:
        self._weights = weights
        self._mean = WeightedMean(weights)

    @property
    def num_updates(self) -> int:
        """How many updates were folded in."""
        return self._mean.num_terms

    @property
    def notes(self) -> Mapping[str, str]:
        """None: every update is taken as it is."""
        return {}

    def add(self, update: StateDict, weight: int, site: str = "") -> None:
        """Fold one screened update in; the order does not matter, nor whose it is.

        Raises:
            UpdateError: See `WeightedMean.add`; nothing was added.
        """
        self._mean.add(update, weight)

    def apply(self) -> StateDict:
        """Return the new global weights, each in its own type.

        Raises:
            UpdateError: If no update was added.
        """
        return moved(self._weights, self._mean.result())
