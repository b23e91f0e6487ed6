"""Geometric median (RFA): the point with the smallest sum of distances to the updates.

An update pulls by its direction only, however long it is. With a share a of hostile updates, below
one half, the result is within (1 - a) / sqrt(1 - 2 a) times the honest updates' radius of their
centre, whichever point that is (Minsker 2015, lemma 2.1).

Found by Weiszfeld's iteration: the mean of the updates, each weighted by one over its distance
from the point before. Smoothed: no distance counts as less than a millionth of the middle one, so
that none is divided by zero. Two differences from the paper: it starts from the median of each
value, because from the mean an update of length 1e9 takes tens of steps to be forgotten; and the
smoothing is relative, so that the scale of the updates does not matter.

Counters say nothing of a distance; they are combined by their median.

References: Pillutla et al. 2022, https://arxiv.org/abs/1912.13445;
Minsker 2015, https://arxiv.org/abs/1308.1334
"""

from collections.abc import Sequence

import numpy as np

from medfed.common.state_dicts import StateDict
from medfed.server.aggregation.median import middle
from medfed.server.aggregation.robust import (
    Combined,
    Floats,
    by_value,
    counters_of,
    stacks,
    weights_of,
)

MAX_STEPS = 50
TOLERANCE = 1e-5
"""It stops at a step shorter than this, relative to the middle one of the first distances."""
_SMOOTHING = 1e-6
_NOTED_SHARE = 0.5


def geometric_median(updates: Sequence[StateDict]) -> Combined:
    """Return the point with the smallest sum of distances; notes updates that hardly count."""
    floats, counters = weights_of(updates[0]), counters_of(updates[0])
    search = _Search(updates, floats)
    search.run()
    found = {
        name: search.point[name].reshape(array.shape).astype(array.dtype)
        for name, array in updates[0].items()
        if name in floats
    }
    equal = 1 / len(updates)
    notes = {
        position: f"share {share:.2g} in the geometric median, an equal one is {equal:.2g}"
        for position, share in enumerate(search.shares)
        if share < _NOTED_SHARE * equal
    }
    return Combined(found | by_value(updates, counters, middle), notes)


class _Search:
    """A point, flat arrays in float64 by name, and each update's share in it."""

    def __init__(self, updates: Sequence[StateDict], names: Sequence[str]) -> None:
        self._updates, self._names = updates, names
        self.point = {name: np.zeros(updates[0][name].size) for name in names}
        self.shares: Floats = np.full(len(updates), 1 / len(updates))

    def run(self) -> None:
        """Search until the point hardly moves."""
        distances, _ = self._move(None)
        scale = float(np.sort(distances)[(len(distances) - 1) // 2])
        if scale == 0:
            return  # half of the updates are one point, which then is the median
        for _ in range(MAX_STEPS):
            pulls = 1 / np.maximum(distances, _SMOOTHING * scale)
            self.shares = pulls / pulls.sum()
            distances, step = self._move(self.shares)
            if step <= TOLERANCE * scale:
                return

    def _move(self, shares: Floats | None) -> tuple[Floats, float]:
        """Move to the mean with `shares`, or to the start; return distances and the step's length.

        One walk through the updates: the distances are those from the new point.
        """
        squares, step = np.zeros(len(self._updates)), 0.0
        for name, part, values in stacks(self._updates, self._names):
            # Row by row: a matrix product may add up in another order on another machine.
            new = middle(values) if shares is None else (values * shares[:, None]).sum(axis=0)
            step += float(np.square(new - self.point[name][part]).sum())
            self.point[name][part] = new
            squares += np.square(values - new).sum(axis=1)
        return np.sqrt(squares), float(np.sqrt(step))
