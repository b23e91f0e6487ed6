"""Tests of hypotheses: each returns the probability of data at least as odd if all is as claimed.

All but one are two-sided. `ALPHA` is small because an audit makes some dozens of tests: a correct
run fails one of them with a probability of less than 1e-4 in all.
"""

import math

import numpy as np
import numpy.typing as npt
from scipy import stats

ALPHA = 1e-6
"""A check fails if its probability is below this."""

Values = npt.NDArray[np.float64]


def variance_p(values: Values, std: float) -> float:
    """Probability of the values' mean square if they are normal, mean 0, of deviation `std`."""
    return _two_sided(stats.chi2(values.size), float(np.square(values / std).sum()))


def too_small_p(values: Values, std: float) -> float:
    """Probability of so small a mean square, one-sided, if the values' deviation is `std`."""
    return float(stats.chi2(values.size).cdf(float(np.square(values / std).sum())))


def std_interval(values: Values, confidence: float = 0.99) -> tuple[float, float]:
    """Return the confidence interval of the standard deviation of normals of mean 0."""
    square, tail = float(np.square(values).sum()), (1 - confidence) / 2
    chi2 = stats.chi2(values.size)
    return math.sqrt(square / chi2.isf(tail)), math.sqrt(square / chi2.ppf(tail))


def normality_p(values: Values, std: float) -> float:
    """Kolmogorov-Smirnov against the normal distribution of mean 0 and deviation `std`."""
    return float(stats.kstest(values / std, "norm").pvalue)


def correlation_p(left: Values, right: Values) -> tuple[float, float]:
    """Return the correlation of two series of mean 0, and its probability if they are independent.

    A series without any variation has correlation 1 with all others: that is what it looks like.
    """
    scale = math.sqrt(float(np.square(left).sum()) * float(np.square(right).sum()))
    if scale == 0:
        return 1.0, 0.0
    correlation = float((left * right).sum()) / scale
    # Fisher's transform; rounding can leave a correlation just above 1.
    size = math.atanh(min(abs(correlation), 1 - 1e-15)) * math.sqrt(max(left.size - 3, 1))
    return correlation, float(2 * stats.norm.sf(size))


def binomial_p(successes: int, trials: int, rate: float) -> float:
    """Exact probability of so many successes of `trials`."""
    return float(stats.binomtest(successes, trials, rate).pvalue)


def rate_interval(successes: int, trials: int, confidence: float = 0.99) -> tuple[float, float]:
    """Return the Clopper-Pearson interval of a rate."""
    interval = stats.binomtest(successes, trials).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


def dispersion_p(counts: Values, trials: int, rate: float) -> tuple[float, float]:
    """Return how the counts' variance compares with a binomial's (1 = equal), and its probability.

    The sum of squared deviations is compared with the gamma distribution of equal mean and
    variance; a binomial's fourth moment is taken into account.
    """
    variance = trials * rate * (1 - rate)
    if variance == 0:  # everyone, always
        spread = float(np.square(counts - trials * rate).sum())
        return (1.0, 1.0) if spread == 0 else (math.inf, 0.0)
    total = float(np.square(counts - trials * rate).sum()) / variance
    spread = 2 + (1 - 6 * rate * (1 - rate)) / variance
    shape = counts.size / spread
    return total / counts.size, _two_sided(stats.gamma(shape, scale=spread), total)


def _two_sided(distribution: object, value: float) -> float:
    low, high = distribution.cdf(value), distribution.sf(value)  # type: ignore[attr-defined]
    return float(min(1.0, 2 * min(low, high)))
