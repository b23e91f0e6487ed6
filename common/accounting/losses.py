"""Privacy loss distributions of Gaussian releases over a Poisson sample, on a grid.

One release is a pair of distributions, with the unit and without it. With noise s and rate q these
are (1 - q) N(0, s^2) + q N(1, s^2) and N(0, s^2). If the unit has K records, each drawn alone, the
first is the mixture of N(j, s^2) over the binomial number j of them in the sample: their gradients
may all point the same way. "remove" looks from the first to the second, "add" back. The loss at an
outcome is the log of their ratio. An interval of outcomes whose losses
lie between two points of the grid is replaced by these two points, with both distributions' masses
kept ("connect the dots"): no such exchange lowers the delta of any epsilon, so what is computed on
the grid is never below the truth, and it stays so under composition. Masses are differences of
normal distribution functions, taken in the tail that is small: there are digits where it counts.

References: Koskela et al. 2020, https://arxiv.org/abs/1906.03049;
Doroshenko et al. 2022, https://arxiv.org/abs/2207.04380; mixtures: Choquette-Choo et al. 2023,
https://arxiv.org/abs/2310.15526.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp, ndtr

Floats = npt.NDArray[np.float64]
Direction = Literal["remove", "add"]

COARSEST = 1e-3
"""Interval of the grid, unless one step's losses need a finer one."""
MAX_POINTS = 2**18
"""Most points of a grid: what a decision of the gate has time for."""
_POINTS_A_SPREAD = 16  # the spread of one step's loss grows by a thousandth at this many points
_REACH = 10.0  # standard deviations of noise that are looked at: 1e-23 lies beyond
ORDERS: Floats = np.concatenate([-np.geomspace(0.1, 2000, 24), np.geomspace(0.1, 2000, 24)])
"""Where log moments are taken, for Chernoff bounds of both tails."""


@dataclass(frozen=True)
class Losses:
    """Masses at the losses `interval * (lowest + i)`; `infinite` is the mass of no finite loss."""

    interval: float
    lowest: int
    masses: Floats
    infinite: float


class Release(NamedTuple):
    """One release: noise over a record's bound, Poisson rate of a record, records of the unit."""

    noise_multiplier: float
    sample_rate: float
    records_per_unit: int = 1


def interval_of(release: Release) -> float:
    """Return the interval of the grid that `release` needs.

    COARSEST, halved until a step's loss spreads over several points: losses are moved by up to an
    interval, which adds up over thousands of steps. Intervals nest, so that a coarser grid never
    states less than a finer one.
    """
    noise, rate, records = release
    spread = min(1.0, records * rate) * min(1.0, 1 / noise)
    lowest, highest = _ends(release)
    # As coarse as it must be for MAX_POINTS, and otherwise as fine as it should be.
    finest = math.ceil(math.log2((highest - lowest) / COARSEST / MAX_POINTS))
    needed = math.floor(math.log2(spread / COARSEST / _POINTS_A_SPREAD))
    return COARSEST * 2.0 ** max(finest, min(0, needed))


def highest_loss(release: Release) -> float:
    """Return the highest loss of `release` that is looked at."""
    return _ends(release)[1]


@lru_cache(maxsize=64)
def one_release(release: Release, direction: Direction, interval: float) -> Losses:
    """Return the losses of `release` on a grid of `interval`."""
    ends = _ends(release)
    if direction == "add":
        ends = (-ends[1], -ends[0])
    lowest = math.floor(ends[0] / interval)
    points = np.arange(lowest, math.ceil(ends[1] / interval) + 1, dtype=np.float64)
    return _connect_the_dots(points * interval, lowest, interval, release, direction)


def _ends(release: Release) -> tuple[float, float]:
    """Return the lowest and highest loss that is looked at."""
    reach = _REACH * release.noise_multiplier
    outcomes = np.array([-reach, release.records_per_unit + reach])
    lowest, highest = np.logaddexp(_log_weights(release)[0], _log_present(outcomes, release)[0])
    return float(lowest), float(highest)


def _log_weights(release: Release) -> Floats:
    """Return the log probabilities of 0, 1, ... of the unit's records in the sample."""
    _, rate, records = release
    from scipy.stats import binom  # takes half a second to import, and few need it

    return np.asarray(binom.logpmf(np.arange(records + 1), records, rate), dtype=np.float64)


def _log_present(outcomes: Floats, release: Release) -> tuple[Floats, Floats]:
    """Return the log of sum_{j >= 1} p_j N(j) / N(0) at `outcomes`, and its slope."""
    count = np.arange(1, release.records_per_unit + 1)[:, None]
    variance = release.noise_multiplier**2
    logs = _log_weights(release)[1:, None] + count * (outcomes - count / 2) / variance
    total = np.asarray(logsumexp(logs, axis=0), dtype=np.float64)
    slope: Floats = np.sum(count / variance * np.exp(logs - total), axis=0)
    return total, slope


def _outcomes_at(log_present: Floats, release: Release) -> Floats:
    """Invert `_log_present`, which is convex and rises."""
    noise = release.noise_multiplier
    # Where one term alone, of one record, would be as large: never below the root.
    outcomes: Floats = noise**2 * (log_present - _log_weights(release)[1]) + 0.5
    if release.records_per_unit == 1:
        return outcomes
    for _ in range(200):  # Newton's steps from above fall towards the root
        value, slope = _log_present(outcomes, release)
        step = (value - log_present) / slope
        outcomes = outcomes - step
        if np.max(np.abs(step)) < 1e-12 * noise:
            break
    return outcomes


def _connect_the_dots(
    grid: Floats, lowest: int, interval: float, release: Release, direction: Direction
) -> Losses:
    weights = np.exp(_log_weights(release))
    signed = grid if direction == "remove" else -grid
    # exp(loss) - p_0: what sum_{j >= 1} p_j N(j) / N(0) is where the loss is so; nowhere if <= 0.
    excess = np.expm1(signed) - np.expm1(_log_weights(release)[0])
    outcomes = np.full_like(grid, -np.inf)
    outcomes[excess > 0] = _outcomes_at(np.log(excess[excess > 0]), release)
    # What is beyond the last points of the grid: infinite above, and below moved up to the first.
    outcomes[0] = -np.inf if direction == "remove" else np.inf
    centres = range(release.records_per_unit + 1)
    noise = release.noise_multiplier
    without, *present = (_between(outcomes, centre, noise) for centre in centres)
    with_unit: Floats = np.tensordot(weights[1:], np.array(present), axes=1)
    gain = with_unit - excess[:-1] * without
    end = outcomes[-1]
    if direction == "remove":
        upper = weights[0] * without + with_unit
        beyond = float(weights @ ndtr((np.array(centres) - end) / noise))
    else:
        upper, gain = without, -np.exp(grid[:-1]) * gain
        beyond = float(ndtr(end / noise))
    to_next = np.clip(gain / -math.expm1(-interval), 0.0, upper)
    masses = np.append(upper - to_next, 0.0)
    masses[1:] += to_next
    return Losses(interval, lowest, masses, beyond)


def _between(outcomes: Floats, centre: float, noise: float) -> Floats:
    """Mass of N(centre, noise^2) between neighbours, which all rise or all fall."""
    z = (outcomes - centre) / noise
    low, high = np.minimum(z[:-1], z[1:]), np.maximum(z[:-1], z[1:])
    # In the upper half through the complement: a difference of numbers near 1 has no digits left.
    mass = np.where(low > 0, ndtr(-low) - ndtr(-high), ndtr(high) - ndtr(low))
    return np.asarray(mass, dtype=np.float64)


@lru_cache(maxsize=256)
def log_moments(release: Release, direction: Direction, interval: float) -> Floats:
    """Return log E exp(order * loss) of `release` on a grid, at each of ORDERS."""
    losses = one_release(release, direction, interval)
    held = losses.masses > 0
    logs = np.log(losses.masses[held])
    values = (losses.lowest + np.flatnonzero(held)) * losses.interval
    return np.array([logsumexp(order * values + logs) for order in ORDERS])


def coarser(losses: Losses, interval: float) -> Losses:
    """Move `losses` to a grid of `interval`, a power of 2 times theirs; never lowers any delta."""
    factor = round(interval / losses.interval)
    if factor == 1:
        return losses
    start = losses.lowest % factor
    indices = start + np.arange(len(losses.masses))
    # Both distributions' masses are kept, as in one release.
    part = (indices % factor) * losses.interval
    to_next = losses.masses * np.expm1(-part) / math.expm1(-interval)
    cells = indices // factor
    masses = np.bincount(cells, losses.masses - to_next, minlength=cells[-1] + 2).astype(np.float64)
    masses[1:] += np.bincount(cells, to_next, minlength=cells[-1] + 1)
    return Losses(interval, (losses.lowest - start) // factor, masses, losses.infinite)


def epsilon_of(losses: Losses, delta: float) -> float:
    """Return the smallest epsilon >= 0 whose hockey-stick divergence is at most `delta`."""
    if losses.infinite > delta:
        return math.inf
    start = max(0, -losses.lowest)  # losses below 0 add to no epsilon that is asked for
    masses = losses.masses[start:]
    if len(masses) == 0:
        return 0.0
    lowest = (losses.lowest + start) * losses.interval
    # Relative to the first loss: sums, and quotients of them, stay in the range of floats.
    decay = np.exp(-np.arange(len(masses)) * losses.interval)
    above = losses.infinite + np.cumsum(masses[::-1])[::-1]
    below = np.cumsum((masses * decay)[::-1])[::-1]
    # The delta at each point counts the losses above it; the last one's is `infinite`.
    deltas = np.append(above[1:], losses.infinite) - np.append(below[1:], 0.0) / decay
    point = int(np.argmax(deltas <= delta))
    if above[point] <= delta:
        return 0.0
    return max(0.0, lowest + math.log((above[point] - delta) / below[point]))
