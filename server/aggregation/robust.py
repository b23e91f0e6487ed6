"""What the robust rules share: all updates of a round, and a walk through them in float64.

Unlike the mean they need every update at once: memory grows with the number of sites, by one update
each. What a rule adds to that is bounded by `CHUNK` values a site and one result.

A rule is a function of the updates, in the order of their sites' names, so that the order of
arrival shows nowhere, not even in the last bit.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from medfed.common.errors import UpdateError
from medfed.common.state_dicts import StateDict
from medfed.server.aggregation.exact import check_magnitude
from medfed.server.aggregation.kept import KeepingRule
from medfed.server.aggregation.rule import moved

CHUNK = 2**16
"""Values of one array that are looked at together."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Combined:
    """What a rule made of the updates.

    Attributes:
        update: The combined update, each array in its own type.
        notes: By position of the update, what happened to it.
    """

    update: StateDict
    notes: Mapping[int, str] = field(default_factory=dict)


Combine = Callable[[Sequence[StateDict]], Combined]


class RobustRule(KeepingRule):
    """One round: keeps each update, then combines all of them.

    Args:
        weights: Global weights before the round.
        combine: The rule.
        min_updates: Updates without which the rule's guarantee does not hold.
    """

    def __init__(self, weights: StateDict, combine: Combine, min_updates: int) -> None:
        super().__init__(weights)
        self._combine = combine
        self._min_updates = min_updates

    def add(self, update: StateDict, weight: int, site: str) -> None:
        """Keep one screened update; the order does not matter.

        Raises:
            UpdateError: A weight other than one, a second update of the site, or a value beyond
                what the mean would take. It is not kept.
        """
        if weight != 1:
            raise UpdateError(f"Expected weight 1 under a robust rule, got {weight}.")
        check_magnitude(update)
        self._keep(update, weight, site)

    def apply(self) -> StateDict:
        """Return the new global weights, each in its own type.

        Raises:
            UpdateError: Too few updates for the rule's guarantee.
        """
        if self.num_updates < self._min_updates:
            raise UpdateError(
                f"Expected at least {self._min_updates} updates, got {self.num_updates}: with "
                "fewer the rule does not hold against aggregation.num_byzantine sites."
            )
        combined = self._combine([update for update, _ in self._in_order()])
        self._note(combined.notes)
        return moved(self._weights, combined.update)


def is_counter(array: npt.NDArray[np.generic]) -> bool:
    """Whether an array counts something, as BatchNorm does its steps: it has no direction."""
    return not np.issubdtype(array.dtype, np.floating)


def weights_of(update: StateDict) -> list[str]:
    """Return the names of an update's arrays but for its counters."""
    return [name for name, array in update.items() if not is_counter(array)]


def counters_of(update: StateDict) -> list[str]:
    """Return the names of an update's counters."""
    return [name for name, array in update.items() if is_counter(array)]


def stacks(
    updates: Sequence[StateDict], names: Iterable[str]
) -> Iterator[tuple[str, slice, Floats]]:
    """Yield (array's name, which of its values, those values [updates, values]), piece by piece."""
    for name in names:
        # A site may have sent another memory order: sums would differ in the last bit.
        flat = [np.asarray(update[name], order="C").reshape(-1) for update in updates]
        for start in range(0, flat[0].size, CHUNK):
            part = slice(start, start + CHUNK)
            yield name, part, np.stack([values[part] for values in flat]).astype(np.float64)


def by_value(
    updates: Sequence[StateDict], names: Iterable[str], combine: Callable[[Floats], Floats]
) -> StateDict:
    """Combine each value on its own, and return the named arrays, each in its own type.

    Args:
        updates: Of equal names, shapes and types.
        names: Which arrays.
        combine: From [updates, values] to [values]. Whole numbers are rounded afterwards.
    """
    names = list(names)
    flat = {n: np.empty(updates[0][n].size, updates[0][n].dtype) for n in names}
    for name, part, values in stacks(updates, names):
        combined = combine(values)
        flat[name][part] = np.rint(combined) if is_counter(flat[name]) else combined
    return {name: flat[name].reshape(updates[0][name].shape) for name in names}
