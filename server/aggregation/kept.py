"""What rules have in common that need every update of a round at once.

Unlike the mean they hold them all: memory grows with the number of sites, by one update each.
"""

from collections.abc import Mapping

from medfed.common.errors import UpdateError
from medfed.common.state_dicts import StateDict


class KeepingRule:
    """Keeps each update of a round. The order of arrival shows nowhere: `_in_order` is by name.

    Args:
        weights: Global weights before the round.
    """

    def __init__(self, weights: StateDict) -> None:
        self._weights = weights
        self._updates: dict[str, tuple[StateDict, int]] = {}
        self._notes: dict[str, str] = {}

    @property
    def num_updates(self) -> int:
        """How many updates were kept."""
        return len(self._updates)

    @property
    def notes(self) -> Mapping[str, str]:
        """After `apply`: by site, why its update was not taken as it is."""
        return self._notes

    def _keep(self, update: StateDict, weight: int, site: str) -> None:
        if site in self._updates:
            raise UpdateError("Expected one update of a site, got another.")
        self._updates[site] = update, weight

    def _in_order(self) -> list[tuple[StateDict, int]]:
        return [self._updates[site] for site in sorted(self._updates)]

    def _note(self, notes: Mapping[int, str]) -> None:
        """Keep what is said of updates by their place in `_in_order`."""
        sites = sorted(self._updates)
        self._notes = {sites[place]: note for place, note in notes.items()}
