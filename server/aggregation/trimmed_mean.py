"""Mean of each value over the sites without its largest and smallest ones.

Reference: Yin et al. 2018, https://arxiv.org/abs/1803.01498 (definition 2)
"""

from collections.abc import Sequence

import numpy as np

from medfed.common.state_dicts import StateDict
from medfed.server.aggregation.robust import Combined, Floats, by_value


def trimmed_mean(updates: Sequence[StateDict], num_trimmed: int) -> Combined:
    """Return the mean of each value without the `num_trimmed` largest and smallest.

    Args:
        updates: More than twice `num_trimmed`.
        num_trimmed: As many as sites may lie: then each value is within those of honest sites.
    """

    def combine(values: Floats) -> Floats:
        kept = np.sort(values, axis=0)[num_trimmed : len(values) - num_trimmed]
        # Rounding must not carry it past the values that it is the mean of.
        return np.asarray(np.clip(kept.mean(axis=0), kept[0], kept[-1]), dtype=np.float64)

    return Combined(by_value(updates, updates[0], combine))
