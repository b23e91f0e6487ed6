"""Exponential moving average of the global weights over rounds.

The average of what was released already: post-processing, which costs no privacy.
"""

import numpy as np

from medfed.common.state_dicts import StateDict


def moving_average(
    average: StateDict | None, weights: StateDict, decay: float, round_number: int
) -> StateDict:
    """Return the bias-corrected average after `round_number`.

    Equal to Adam's correction, m_t / (1 - decay**t) with m_t = decay m_{t-1} + (1 - decay) w_t:
    the weights of all rounds add up to one from the first round on, so the initial weights never
    count.

    Args:
        average: The average after the round before, in float64; None before the first.
        weights: The global weights after this round.
        decay: In [0, 1).
        round_number: 1-based.
    """
    if average is None:
        return {name: array.astype(np.float64) for name, array in weights.items()}
    step = (1 - decay) / (1 - decay**round_number)
    return {
        name: np.add(average[name], step * np.subtract(array, average[name], dtype=np.float64))
        for name, array in weights.items()
    }


def as_weights(average: StateDict, weights: StateDict) -> StateDict:
    """Return `average` in the types of `weights`; arrays of whole numbers are those of `weights`.

    A counter has no average.
    """
    return {
        name: average[name].astype(array.dtype)
        if np.issubdtype(array.dtype, np.floating)
        else array
        for name, array in weights.items()
    }
