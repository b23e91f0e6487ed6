"""Krum and Multi-Krum: the updates that lie closest to their neighbours, and none of the others.

Of n updates, f of which may be anything, each is scored by its squared distances to the n - f - 2
nearest; krum takes the one with the lowest score, multi_krum the mean of several. With n - f or
fewer selected, each of them scores no higher than some honest one.

Counters say nothing of a distance; they are combined by their median.

Reference: Blanchard et al. 2017, https://papers.nips.cc/paper/6617
"""

import math
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


def krum(updates: Sequence[StateDict], num_byzantine: int) -> Combined:
    """Return the update with the lowest score.

    Args:
        updates: 2 * `num_byzantine` + 3 or more.
        num_byzantine: Updates that may be anything.
    """
    return _selected(updates, num_byzantine, 1, "krum")


def multi_krum(
    updates: Sequence[StateDict], num_byzantine: int, num_selected: int | None = None
) -> Combined:
    """Return the mean of the `num_selected` updates with the lowest scores.

    Args:
        updates: 2 * `num_byzantine` + 3 or more.
        num_byzantine: Updates that may be anything.
        num_selected: At most all but `num_byzantine`, which is what None stands for.
    """
    return _selected(
        updates, num_byzantine, num_selected or len(updates) - num_byzantine, "multi_krum"
    )


def scores(updates: Sequence[StateDict], num_byzantine: int) -> list[float]:
    """Return, for each update, the sum of squared distances to its n - f - 2 nearest others."""
    distances = squared_distances(updates)
    count = len(updates)
    nearest = count - num_byzantine - 2
    return [
        math.fsum(sorted(distances[i, j] for j in range(count) if j != i)[:nearest])
        for i in range(count)
    ]


def squared_distances(updates: Sequence[StateDict]) -> Floats:
    """Return the squared L2 distances of all pairs, over all arrays but counters."""
    count = len(updates)
    total = np.zeros((count, count))
    for _, _, values in stacks(updates, weights_of(updates[0])):
        for i in range(count - 1):
            total[i, i + 1 :] += np.square(values[i + 1 :] - values[i]).sum(axis=1)
    return total + total.T


def _selected(
    updates: Sequence[StateDict], num_byzantine: int, num_selected: int, rule: str
) -> Combined:
    found = scores(updates, num_byzantine)
    # Of equal scores the first by name: Python's sort keeps their order.
    best = sorted(sorted(range(len(updates)), key=found.__getitem__)[:num_selected])
    chosen = [updates[i] for i in best]
    mean = by_value(chosen, weights_of(updates[0]), lambda values: values.mean(axis=0))
    counters = by_value(updates, counters_of(updates[0]), middle)
    notes = {i: f"not selected by {rule}" for i in range(len(updates)) if i not in best}
    return Combined(mean | counters, notes)
