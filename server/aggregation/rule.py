"""What every aggregation rule of a round can do."""

from typing import Protocol

from medfed.common.state_dicts import StateDict


class Rule(Protocol):
    """One round: `add` each update as it arrives, then `apply` once."""

    @property
    def num_updates(self) -> int:
        """How many updates were folded in."""
        ...

    def add(self, update: StateDict, weight: int) -> None:
        """Fold one screened update in; the order does not matter.

        Raises:
            UpdateError: The update cannot be used; nothing was added.
        """
        ...

    def apply(self) -> StateDict:
        """Return the new global weights, each in its own type."""
        ...
