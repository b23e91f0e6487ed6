"""A rule written as a function of a table: a row an update, a column a number of the model.

Shapes: S sites that answered, D numbers of the model.
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from medfed.common.errors import UpdateError
from medfed.common.state_dicts import StateDict
from medfed.server.aggregation.kept import KeepingRule
from medfed.server.aggregation.rule import moved

Floats = npt.NDArray[np.float64]

CombineRows = Callable[[Floats, Floats], tuple[Floats, Mapping[int, str]]]
"""From the updates [S, D] and their weights [S], in the order of the sites' names, to the combined
update [D], and by row what to say of an update that was not taken as it is."""


class RowRule(KeepingRule):
    """One round: keeps each update, then combines all of them at once, as float64.

    Args:
        weights: Global weights before the round.
        combine: The rule.
    """

    def __init__(self, weights: StateDict, combine: CombineRows) -> None:
        super().__init__(weights)
        self._combine = combine

    def add(self, update: StateDict, weight: int, site: str) -> None:
        """Keep one screened update.

        Raises:
            UpdateError: A second update of the site. It is not kept.
        """
        self._keep(update, weight, site)

    def apply(self) -> StateDict:
        """Return the new global weights, each in its own type; counters are rounded.

        Raises:
            UpdateError: If no update was added.
            ValueError: The rule gave another number of values.
        """
        if not self.num_updates:
            raise UpdateError("Expected at least one update to combine, got none.")
        kept, weights = zip(*self._in_order(), strict=True)
        rows_SD = np.stack([self._row(update) for update in kept])
        row_D, notes = self._combine(rows_SD, np.array(weights, dtype=np.float64))
        if np.shape(row_D) != rows_SD.shape[1:]:
            raise ValueError(f"expected {rows_SD.shape[1]} numbers, got {np.shape(row_D)}")
        self._note(notes)
        return moved(self._weights, self._update(row_D))

    def _row(self, update: StateDict) -> Floats:
        arrays = (np.asarray(update[name], np.float64, order="C") for name in self._weights)
        return np.concatenate([array.reshape(-1) for array in arrays])

    def _update(self, row_D: Floats) -> StateDict:
        update: StateDict = {}
        start = 0
        for name, array in self._weights.items():
            values = row_D[start : start + array.size].reshape(array.shape)
            floating = np.issubdtype(array.dtype, np.floating)
            update[name] = values if floating else np.rint(values)
            start += array.size
        return update
