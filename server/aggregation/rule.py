"""What every aggregation rule of a round can do."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from medfed.common.state_dicts import StateDict


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


def moved(weights: StateDict, update: StateDict) -> StateDict:
    """Return `weights` plus `update`, each in the type of the weights."""
    return {
        name: np.asarray(np.add(array, update[name]), dtype=array.dtype)
        for name, array in weights.items()
    }
