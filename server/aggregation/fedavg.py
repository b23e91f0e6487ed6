"""FedAvg: the new model is the old one plus the weighted mean of the sites' updates.

Reference: McMahan et al. 2017, https://arxiv.org/abs/1602.05629
"""

from medfed.common.state_dicts import StateDict
from medfed.server.aggregation.rule import MeanRule, moved


class FedAvg(MeanRule):
    """One round of FedAvg: `add` each update as it arrives, then `apply` the mean."""

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
