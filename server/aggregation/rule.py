"""What every aggregation rule of a round can do."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from medfed.common.state_dicts import StateDict
from medfed.server.aggregation.exact import WeightedMean


class Rule(Protocol):
    """One round: `add` each update as it arrives, then `apply` once."""

    @property
    def num_updates(self) -> int:
        """How many updates were folded in."""
        ...

    @property
    def notes(self) -> Mapping[str, str]:
        """After `apply`: by site, where its update was not taken as it is, what was done."""
        ...

    def add(self, update: StateDict, weight: int, site: str) -> None:
        """Fold one screened update in; the order does not matter.

        Raises:
            UpdateError: The update cannot be used; nothing was added.
        """
        ...

    def apply(self) -> StateDict:
        """Return the new global weights, each in its own type."""
        ...


class MeanRule:
    """What rules have in common that fold every update into one weighted mean.

    Args:
        weights: Global weights before the round.
    """

    def __init__(self, weights: StateDict) -> None:
        self._weights = weights
        self._mean = WeightedMean(weights)

    @property
    def num_updates(self) -> int:
        """How many updates were folded in."""
        return self._mean.num_terms

    @property
    def notes(self) -> Mapping[str, str]:
        """None: every update is taken, by what its rule counts it for."""
        return {}


def moved(weights: StateDict, update: StateDict) -> StateDict:
    """Return `weights` plus `update`, each in the type of the weights."""
    return {
        name: np.asarray(np.add(array, update[name]), dtype=array.dtype)
        for name, array in weights.items()
    }
