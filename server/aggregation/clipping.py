"""Clipping of whole updates: bounds what one site can do to the sum.

Unlike Flower's own DP: parameters of dimension 0 are clipped with the others, a NaN is an error of
its own update alone, and an update of zeros stays as it is.

References: McMahan et al. 2018, https://arxiv.org/abs/1710.06963 (flat clipping);
Andrew et al. 2021, https://arxiv.org/abs/1905.03871 (adaptive clipping).
"""

import math

import numpy as np

from medfed.common.errors import UpdateError
from medfed.common.state_dicts import StateDict

MIN_BOUND = 2.0**-30
MAX_BOUND = 2.0**20
"""Where an adaptive bound stops. Public constants: they cost no privacy."""

_LONGEST_STEP = math.log(MAX_BOUND / MIN_BOUND)

# More than float64 loses on a norm of 2**28 values, so that the bound holds exactly.
_ROUNDING = 1 + 2.0**-20


def update_norm(update: StateDict) -> float:
    """Return the L2 norm over all arrays together, at most a millionth above the exact one.

    Raises:
        UpdateError: NaN or infinite values.
    """
    peak = max((float(np.max(np.abs(a), initial=0)) for a in update.values()), default=0.0)
    if not all(np.isfinite(array).all() for array in update.values()):
        raise UpdateError("Expected an update of finite values to clip, got NaN or infinity.")
    if peak == 0:
        return 0.0
    # Divided by the largest value first: squares of float64 could overflow.
    squares = [float(np.sum(np.square(a.astype(np.float64) / peak))) for a in update.values()]
    return peak * math.sqrt(math.fsum(squares)) * _ROUNDING


def clip_update(update: StateDict, max_norm: float) -> tuple[StateDict, bool]:
    """Scale `update` so that its L2 norm over all arrays together is at most `max_norm`.

    Noise is calibrated to this bound, so nothing may rescale the result afterwards.

    Args:
        update: New minus global weights, any shapes and types.
        max_norm: L2 bound (unitless).

    Returns:
        The update in float64 (a whole-number array cannot be scaled in its own type), and whether
        it was within the bound as it came.

    Raises:
        UpdateError: NaN or infinite values.
    """
    norm = update_norm(update)
    within = norm <= max_norm
    scale = 1.0 if within else max_norm / norm
    return {name: array.astype(np.float64) * scale for name, array in update.items()}, within


def next_bound(
    bound: float, noisy_balance: float, *, expected_sites: float, quantile: float, rate: float
) -> float:
    """Return the next round's bound: a step, in log, towards the quantile of the norms.

    Args:
        bound: This round's.
        noisy_balance: Sites within the bound, each as +1/2, less those above it, each as +1/2;
            with noise.
        expected_sites: Public divisor.
        quantile: Share of the sites that shall be within the bound.
        rate: Learning rate.
    """
    share = noisy_balance / expected_sites + 0.5
    # Cut to more than the whole range: the noise of few sites must not overflow.
    step = min(_LONGEST_STEP, max(-_LONGEST_STEP, -rate * (share - quantile)))
    return min(MAX_BOUND, max(MIN_BOUND, bound * math.exp(step)))
