"""Lower bounds on epsilon from what an attacker gets right. A low bound proves nothing.

References: Steinke, Nasr and Jagielski 2023, Privacy Auditing with One (1) Training Run,
https://arxiv.org/abs/2305.08846; Nasr et al. 2023, Tight Auditing of Differentially Private Machine
Learning, https://arxiv.org/abs/2302.07956.
"""

import math

import numpy as np
from scipy import stats
from scipy.optimize import brentq

_HIGHEST = 50.0  # no bound of this kind comes near


def one_run_p(*, canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Return the most probable that so many right guesses can be under (epsilon, delta)-DP.

    Each canary is in with probability one half; which are guessed is up to the attacker.

        min(1, P[X >= v] + 2 m delta max_{1 <= i <= v} P[v - i <= X < v] / i),
        X ~ Binomial(r, e^epsilon / (1 + e^epsilon))

    Args:
        canaries: m.
        guesses: r, fixed in advance.
        right: v.
        epsilon: Claimed.
        delta: Claimed.
    """
    if right == 0:
        return 1.0
    rate = 1 / (1 + math.exp(-epsilon))
    binomial = stats.binom(guesses, rate)
    steps = np.arange(1, right + 1)
    # P[v - i <= X < v] for all i at once.
    mass = np.cumsum(binomial.pmf(np.arange(right - 1, -1, -1)))
    tail = float(binomial.sf(right - 1))
    return min(1.0, tail + 2 * canaries * delta * float((mass / steps).max()))


def one_run_epsilon(
    *, canaries: int, guesses: int, right: int, delta: float, confidence: float = 0.95
) -> float:
    """Return the largest epsilon that the guesses contradict; 0.0 if they contradict none."""

    def excess(epsilon: float) -> float:
        p = one_run_p(canaries=canaries, guesses=guesses, right=right, epsilon=epsilon, delta=delta)
        return p - (1 - confidence)

    if excess(0.0) >= 0:
        return 0.0
    return float(brentq(excess, 0.0, _HIGHEST, xtol=1e-6)) if excess(_HIGHEST) > 0 else _HIGHEST


def gaussian_mu(
    *, false_alarms: int, outs: int, misses: int, ins: int, confidence: float = 0.95
) -> float:
    """Return a lower bound on mu, for a mechanism that is Gaussian: mu-GDP.

    Each rate is bounded above by Clopper-Pearson, at half of what confidence leaves.
    mu >= Phi^-1(1 - false alarm rate) - Phi^-1(miss rate).
    """
    tail = (1 - confidence) / 2
    alarm, miss = _above(false_alarms, outs, tail), _above(misses, ins, tail)
    return max(0.0, float(stats.norm.isf(alarm) - stats.norm.ppf(miss)))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the epsilon of a mu-GDP mechanism at `delta`, exactly.

    Balle and Wang 2018, https://arxiv.org/abs/1805.06530, theorem 8.
    """

    def excess(epsilon: float) -> float:
        near, far = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
        # In logarithms: e^epsilon overflows where its factor vanishes.
        return float(stats.norm.cdf(near) - math.exp(epsilon + stats.norm.logcdf(far))) - delta

    if mu <= 0 or excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
    return float(brentq(excess, 0.0, high, xtol=1e-9))


def _above(successes: int, trials: int, tail: float) -> float:
    """Clopper-Pearson's upper bound of a rate."""
    if successes >= trials:
        return 1.0
    return float(stats.beta.ppf(1 - tail, successes + 1, trials - successes))
