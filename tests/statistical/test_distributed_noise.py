"""Distributed noise: what the sites add together is as large as stated, and no smaller.

Sites' noise is seeded here, so the bounds are met or missed for good; secure noise is drawn from
the same code with a key of the operating system, and its bounds are 6 standard deviations.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2

from medfed.common.secure_sum.discrete_gaussian import secure_words, seeded_words
from medfed.common.secure_sum.noisy_grid import NoisyGrid
from medfed.common.state_dicts import StateDict

NUM_VALUES = 40_000
GRID = NoisyGrid(
    max_update_norm=0.5,
    noise_multiplier=1.2,
    num_sites=6,
    threshold=5,
    honest_sites=0.8,
    num_values=NUM_VALUES,
)
ALPHA = 0.01


def update_of(site: int, norm: float = 0.5) -> StateDict:
    values = np.random.default_rng(site).normal(size=NUM_VALUES)
    return {"w": (norm * values / np.linalg.norm(values)).astype(np.float32)}


def noise_of(grid: NoisyGrid, sites: int, *, secure: bool = False) -> np.ndarray:
    """The noise in the sum over `sites`, in units of the update: the sum less the true one."""
    total = np.zeros(NUM_VALUES, dtype=np.uint32)
    exact = np.zeros(NUM_VALUES)
    for site in range(sites):
        source = secure_words() if secure else seeded_words(site)
        total += grid.encode(update_of(site), source)
        exact += update_of(site)["w"]
    mean = grid.decode(total, 1.0, {"w": np.zeros(NUM_VALUES)})
    return np.asarray(mean["w"] - exact)


def variance_is(noise: np.ndarray, deviation: float) -> bool:
    """Whether the noise's variance is that of `deviation`, at the 1 % level (chi-square)."""
    statistic = float(np.sum(np.square(noise / deviation)))
    low, high = chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], noise.size)
    return bool(low < statistic < high)


@pytest.mark.parametrize("sites", [6, 5])
def test_variance_of_the_sum_is_that_of_all_who_stayed(sites: int) -> None:
    noise = noise_of(GRID, sites)
    deviation = math.sqrt(sites) * GRID.scale * GRID.step
    assert variance_is(noise, deviation)
    for factor in (0.9, 0.97, 1.03, 1.1):
        assert not variance_is(factor * noise, deviation)


def test_honest_sites_that_are_left_alone_reach_the_stated_multiplier() -> None:
    # Of 6 sites 5 are honest (0.8, rounded up) and 5 must stay: 4 honest ones are left for sure.
    assert GRID.num_honest_left == 4
    stated = GRID.noise_multiplier * GRID.max_update_norm
    noise = noise_of(GRID, 4)
    assert variance_is(noise, stated)
    assert not variance_is(0.9 * noise, stated)
    # One fewer, and the stated noise would be a lie.
    assert not variance_is(noise_of(GRID, 3), stated)


def test_noise_of_nine_tenths_is_found() -> None:
    weak = replace(GRID, noise_multiplier=0.9 * GRID.noise_multiplier)
    assert weak.step == GRID.step
    deviation = math.sqrt(6) * GRID.scale * GRID.step
    assert not variance_is(noise_of(weak, 6), deviation)
    assert variance_is(noise_of(weak, 6), 0.9 * deviation)


def test_secure_noise_is_as_large_and_never_the_same() -> None:
    noise = noise_of(GRID, 6, secure=True)
    deviation = math.sqrt(6) * GRID.scale * GRID.step
    spread = math.sqrt(2 / NUM_VALUES)
    share = float(np.mean(np.square(noise / deviation)))
    assert abs(share - 1) < 6 * spread
    assert abs(0.81 * share - 1) > 6 * spread
    assert not np.array_equal(noise, noise_of(GRID, 6, secure=True))


def test_noise_of_neighbouring_values_and_of_sites_is_independent() -> None:
    one = {"w": np.zeros(NUM_VALUES)}
    draws = [
        GRID.encode(one, seeded_words(site)).view(np.int32).astype(float) / GRID.scale
        for site in range(2)
    ]
    bound = 4 / math.sqrt(NUM_VALUES)
    assert abs(float(np.mean(draws[0][:-1] * draws[0][1:]))) < bound
    assert abs(float(np.mean(draws[0] * draws[1]))) < bound
    # The same seed at two sites, or a stream that starts again, is seen at once.
    assert float(np.mean(draws[0] * draws[0])) > 10 * bound


def test_noise_is_the_same_again_from_the_same_seeds() -> None:
    np.testing.assert_array_equal(noise_of(GRID, 3), noise_of(GRID, 3))
