"""Grey levels of several scanners brought together by histogram matching, from histograms alone.

A *quantile function* says which grey level (0 to 256: the edges of the values 0..255) the darkest
share u of the pixels stays below; here at 257 shares u = 0, 1/256, ..., 1. The *reference* is the
mean of the sites' quantile functions: of all distributions it has the least sum of squared
Wasserstein-2 distances to them. A site's table sends the value at its own share u to the
reference's level at u, so it never turns the order of two values round.

Histograms may be noisy, with negative bins: their sums from the left are replaced by the nearest
sums that never fall (isotonic regression). That is post-processing and costs no privacy.

Reference: Agueh and Carlier 2011, Barycenters in the Wasserstein space, section 6.1,
https://doi.org/10.1137/100805741.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

NUM_LEVELS = 256
NUM_SHARES = 257
SHARES: Floats = np.linspace(0.0, 1.0, NUM_SHARES)
# Keeps shares apart where no pixel lies between two levels: interpolation needs them to rise.
_SLOPE = 1e-9


def quantiles(histogram_B: Floats) -> Floats | None:
    """Return the quantile function [257] of a histogram over 0..255 with equal bins.

    Args:
        histogram_B: Counts or shares, exact or noisy; NaN where nothing is known.

    Returns:
        None where the histogram says nothing: unknown, or no more than noise in all.
    """
    found = _distribution(histogram_B)
    if found is None:
        return None
    edges, shares = found
    function: Floats = np.interp(SHARES, shares, edges)
    return function


def reference_of(functions: Sequence[Floats]) -> Floats:
    """Return the mean of quantile functions, each counted once; in the order given."""
    # What travels and is kept is a short number; a ten-thousandth of a grey level moves no value.
    mean: Floats = np.array(functions, dtype=np.float64).mean(axis=0)
    return np.round(mean, 4)


def matching_table(histogram_B: Floats, reference: Floats) -> npt.NDArray[np.uint8]:
    """Return the 256 values that bring a site's grey levels to the reference; they never fall.

    The table that changes nothing where the histogram says nothing.
    """
    levels = np.arange(NUM_LEVELS, dtype=np.float64)
    found = _distribution(histogram_B)
    if found is None:
        return levels.astype(np.uint8)
    edges, shares = found
    own = np.interp(levels + 0.5, edges, shares)
    matched = np.interp(own, SHARES, reference) - 0.5
    return np.clip(np.rint(matched), 0, NUM_LEVELS - 1).astype(np.uint8)


def distance(one: Floats, other: Floats) -> float:
    """Return the Wasserstein-1 distance of two quantile functions, in grey levels."""
    return float(np.trapezoid(np.abs(one - other), SHARES))


def is_reference(reference: Floats, num_channels: int) -> bool:
    """Whether `reference` is a quantile function [257] for each channel."""
    return (
        reference.shape == (num_channels, NUM_SHARES)
        and bool(np.isfinite(reference).all())
        and bool((reference >= 0).all() and (reference <= NUM_LEVELS).all())
        and bool((np.diff(reference, axis=1) >= 0).all())
    )


def _distribution(histogram_B: Floats) -> tuple[Floats, Floats] | None:
    """Return edges of bins and the share of pixels below each, strictly rising from 0 to 1.

    Empty bins at both ends are left out: no pixel is that dark, or that bright.
    """
    from scipy.optimize import isotonic_regression

    if not np.isfinite(histogram_B).all():
        return None
    sums = np.clip(isotonic_regression(np.cumsum(histogram_B)).x, 0.0, None)
    if not sums[-1] > 0:
        return None
    shares = np.concatenate([[0.0], sums / sums[-1]])
    first, last = np.flatnonzero(shares <= 0)[-1], np.flatnonzero(shares >= 1)[0]
    edges = np.linspace(0.0, NUM_LEVELS, len(shares))[first : last + 1]
    shares = shares[first : last + 1]
    return edges, (1 - _SLOPE) * shares + _SLOPE * np.linspace(0.0, 1.0, len(shares))
