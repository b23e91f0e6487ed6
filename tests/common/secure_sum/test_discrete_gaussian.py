"""The sampler: repeatable from a seed, the same distribution when exact arithmetic decides."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import chi2

from medfed.common.secure_sum import discrete_gaussian as dg
from medfed.common.secure_sum.discrete_gaussian import (
    discrete_gaussian,
    secure_words,
    seeded_words,
)


def chi_square(samples: np.ndarray, scale: float, *, rounded: bool = False) -> float:
    """p-value of the samples against the exact law, or against a rounded continuous Gaussian."""
    edge = math.ceil(4 * scale)
    inside = np.arange(-edge, edge + 1)
    if rounded:
        law = [
            0.5 * (math.erf((k + 0.5) / scale / 2**0.5) - math.erf((k - 0.5) / scale / 2**0.5))
            for k in inside
        ]
    else:
        everywhere = np.arange(-40 * edge, 40 * edge + 1)
        total = math.fsum(np.exp(-(everywhere**2) / (2 * scale**2)))
        law = list(np.exp(-(inside**2) / (2 * scale**2)) / total)
    law.append(1 - math.fsum(law))
    counts = [int(np.sum(samples == k)) for k in inside]
    counts.append(len(samples) - sum(counts))
    expected = np.asarray(law) * len(samples)
    statistic = float(np.sum((np.asarray(counts) - expected) ** 2 / expected))
    return float(chi2.sf(statistic, len(law) - 1))


@pytest.mark.parametrize("scale", [1, 2, 5])
def test_samples_follow_the_exact_law(scale: int) -> None:
    samples = discrete_gaussian(300_000, scale, seeded_words(11))
    assert chi_square(samples, scale) > 1e-3
    assert chi_square(samples, scale * 0.98) < 1e-6
    assert chi_square(samples, scale * 1.02) < 1e-6


def test_rounded_gaussian_is_told_apart_at_small_scale() -> None:
    # At scale 1, rounding a continuous Gaussian adds 1/12 to the variance.
    rounded = np.rint(np.random.default_rng(2).normal(size=300_000)).astype(np.int64)
    assert chi_square(rounded, 1, rounded=True) > 1e-3
    assert chi_square(rounded, 1) < 1e-9
    assert chi_square(discrete_gaussian(300_000, 1, seeded_words(3)), 1, rounded=True) < 1e-9


def test_exact_arithmetic_alone_gives_the_same_law() -> None:
    # A margin of 1: every coin and every geometric number is decided by fractions.
    samples = discrete_gaussian(6000, 2, seeded_words(5), margin=1.0)
    assert chi_square(samples, 2) > 1e-3
    assert chi_square(samples, 1.8) < 1e-3


@pytest.mark.parametrize("scale", [1, 3, 1000, 10_000_019, 1 << 31])
def test_floats_and_fractions_decide_alike(scale: int) -> None:
    # The same words through both: what the float bounds decide is what exact arithmetic decides.
    count = 400
    source = seeded_words(scale)
    uniform, kept = dg._uniform_below(scale, source.words(count))
    uniform = uniform[kept]
    words = source.words(uniform.size)
    fast = dg._geometric(words, seeded_words(1), dg._MARGIN)
    slow = dg._geometric(words, seeded_words(1), 1.0)
    np.testing.assert_array_equal(fast, slow)
    coins = source.words(uniform.size)
    fast_coins = dg._coins_below(coins, uniform, fast, scale, seeded_words(1), dg._MARGIN)
    slow_coins = dg._coins_below(coins, uniform, fast, scale, seeded_words(1), 1.0)
    np.testing.assert_array_equal(fast_coins, slow_coins)
    assert 0.2 < fast_coins.mean() < 0.8


def test_bounds_of_the_exponential_hold_and_tighten() -> None:
    for exponent, num_bits in itertools.product(
        (Fraction(0), Fraction(1), Fraction(1, 3), Fraction(10**18 + 1, 10**17), Fraction(700)),
        (53, 117, 181),
    ):
        low, high = dg._exp_bounds(exponent, num_bits)
        assert low <= high
        assert high - low < Fraction(1, 2**num_bits)
        # exp(-q) of twice the precision lies between.
        finer = dg._exp_bounds(exponent, 2 * num_bits)
        assert low <= finer[0] <= finer[1] <= high
        assert math.isclose(float(low), math.exp(-exponent), rel_tol=1e-14)


def test_uniform_numbers_below_a_limit_are_even() -> None:
    # A limit for which a bare remainder would lean low by a half.
    limit = 3 << 62
    words = seeded_words(4).words(200_000)
    values, kept = dg._uniform_below(3, words)
    assert kept.all()
    np.testing.assert_allclose(np.bincount(values) / values.size, 1 / 3, atol=0.005)
    assert dg._uniform_below(limit, words)[1].mean() == pytest.approx(0.75, abs=0.01)


def test_seeded_words_repeat_and_secure_ones_do_not() -> None:
    again = [discrete_gaussian(1000, 77, seeded_words(9)) for _ in range(2)]
    np.testing.assert_array_equal(*again)
    assert not np.array_equal(again[0], discrete_gaussian(1000, 77, seeded_words(10)))
    fresh = [discrete_gaussian(1000, 77, secure_words()) for _ in range(2)]
    assert not np.array_equal(*fresh)


def test_seeded_samples_are_the_same_on_every_machine() -> None:
    # Integers of AES and correctly rounded operations decide; float64 only where it is sure.
    samples = discrete_gaussian(8, 1000, seeded_words(1))
    assert samples.tolist() == [161, -1034, 166, 130, -946, -1509, 755, -84]


@pytest.mark.parametrize("count", [0, 1, 70_000])
def test_as_many_samples_come_as_were_asked_for(count: int) -> None:
    assert discrete_gaussian(count, 3, seeded_words(0)).shape == (count,)


@pytest.mark.parametrize("scale", [0, -1, (1 << 31) + 1])
def test_scale_out_of_range_is_refused(scale: int) -> None:
    with pytest.raises(ValueError, match="scale"):
        discrete_gaussian(1, scale, seeded_words(0))
