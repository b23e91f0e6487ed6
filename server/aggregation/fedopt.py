"""FedOpt: the combined update is a pseudo-gradient, by which an optimiser of the server steps.

Whatever rule combined the updates (mean, robust, masked, with noise of any unit), this comes after
it and sees two consecutive global models alone: under DP it is post-processing and costs nothing.

    delta = combined - x
    fedavgm     m = beta1 m + delta                   x = x + eta m
    the others  m = beta1 m + (1 - beta1) delta       x = x + eta m / (sqrt(v) + tau)
    fedadagrad  v = v + delta**2
    fedyogi     v = v - (1 - beta2) delta**2 sign(v - delta**2)
    fedadam     v = beta2 v + (1 - beta2) delta**2

with m = 0 and v = tau**2 before the first round, and no correction of bias, as in the paper.

What has no gradient (counters, BatchNorm's statistics) is averaged as ever: an optimiser could make
a variance negative.

References: Reddi et al. 2020, algorithm 2, https://arxiv.org/abs/2003.00295; server momentum: Hsu
et al. 2019, https://arxiv.org/abs/1909.06335.
"""

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from medfed.common.state_dicts import StateDict
from medfed.common.study import FederationSection

Floats = npt.NDArray[np.float64]
Moments = dict[str, StateDict]
"""`first` and, but for fedavgm, `second`: by parameter, in float64. Empty before round 1."""


def server_step(
    section: FederationSection,
    weights: StateDict,
    combined: StateDict,
    moments: Mapping[str, StateDict],
    parameters: Collection[str],
) -> tuple[StateDict, Moments]:
    """Return the new global weights, each in its own type, and the new moments.

    Args:
        section: Its algorithm is one of the four; their numbers.
        weights: Global weights before the round.
        combined: What the aggregation rule made of them.
        moments: After the round before.
        parameters: Names of what has gradients; the rest is as in `combined`.
    """
    rate, beta1 = section.server_learning_rate, section.server_momentum
    assert rate is not None  # FederationSection writes them out
    assert beta1 is not None
    new = dict(combined)
    first: StateDict = {}
    second: StateDict = {}
    for name in (name for name in weights if name in parameters):
        before = weights[name].astype(np.float64)
        delta = np.asarray(np.subtract(combined[name], before), dtype=np.float64)
        last = _floats(moments["first"][name]) if moments else np.zeros_like(delta)
        if section.algorithm == "fedavgm":
            mean = np.asarray(beta1 * last + delta)
            step = rate * mean
        else:
            tau = section.server_tau
            assert tau is not None
            mean = np.asarray(beta1 * last + (1 - beta1) * delta)
            squares = _floats(moments["second"][name]) if moments else np.full_like(delta, tau**2)
            squares = np.asarray(_second_moment(section, squares, delta**2))
            step = rate * mean / (np.sqrt(squares) + tau)
            second[name] = squares
        first[name] = mean
        new[name] = np.asarray(before + step, dtype=weights[name].dtype)
    return new, {"first": first} | ({"second": second} if second else {})


def _second_moment(section: FederationSection, last: Floats, squares: Floats) -> Floats:
    if section.algorithm == "fedadagrad":
        return last + squares
    beta2 = section.server_beta2
    assert beta2 is not None
    if section.algorithm == "fedyogi":
        return last - (1 - beta2) * squares * np.sign(last - squares)
    return beta2 * last + (1 - beta2) * squares


def _floats(array: npt.NDArray[np.generic]) -> Floats:
    return np.asarray(array, dtype=np.float64)
