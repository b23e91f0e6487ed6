"""Median of each value over the sites. One value of a half less one cannot move it out of the rest.

Reference: Yin et al. 2018, https://arxiv.org/abs/1803.01498 (definition 1)
"""

from collections.abc import Sequence

import numpy as np

from medfed.common.state_dicts import StateDict
from medfed.server.aggregation.robust import Combined, Floats, by_value


def coordinate_median(updates: Sequence[StateDict]) -> Combined:
    """Return the median of each value; of an even number, the mean of the two in the middle."""
    return Combined(by_value(updates, updates[0], middle))


def middle(values: Floats) -> Floats:
    """Return the median over the first axis."""
    ordered = np.sort(values, axis=0)
    count = len(ordered)
    lower, upper = ordered[(count - 1) // 2], ordered[count // 2]
    return np.asarray(0.5 * lower + 0.5 * upper, dtype=np.float64)
