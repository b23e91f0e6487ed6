"""Tests of hypotheses accept what is as claimed and reject what is slightly off."""

import numpy as np
import pytest

from medfed.simulations.auditing.statistics import (
    ALPHA,
    binomial_p,
    correlation_p,
    dispersion_p,
    normality_p,
    rate_interval,
    std_interval,
    variance_p,
)


def _normals(number: int = 50_000) -> np.ndarray:
    return np.random.default_rng(2).standard_normal(number)


def test_variance_accepts_the_claimed_deviation():
    assert variance_p(1.6 * _normals(), 1.6) > 0.01


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.9, 0.97, 1.03])
def test_variance_rejects_another_deviation(factor: float):
    assert variance_p(factor * _normals(), 1.0) < ALPHA


def test_std_interval_holds_the_truth():
    low, high = std_interval(2.5 * _normals())
    assert low < 2.5 < high
    assert high / low < 1.03


def test_normality_rejects_uniforms_of_the_same_deviation():
    uniforms = np.random.default_rng(1).uniform(-np.sqrt(3), np.sqrt(3), 20_000)
    assert normality_p(_normals(20_000), 1.0) > 0.01
    assert normality_p(uniforms, 1.0) < ALPHA


def test_correlation_rejects_a_shared_part_and_a_copy():
    left, right = np.random.default_rng(3).standard_normal((2, 20_000))
    assert correlation_p(left, right)[1] > 0.01
    assert correlation_p(left, right + 0.1 * left)[1] < ALPHA
    assert correlation_p(left, left)[1] < ALPHA
    assert correlation_p(np.zeros(10), np.zeros(10)) == (1.0, 0.0)


def test_binomial_rejects_a_higher_rate():
    assert binomial_p(2500, 10_000, 0.25) > 0.5
    assert binomial_p(2800, 10_000, 0.25) < ALPHA
    low, high = rate_interval(2500, 10_000)
    assert low < 0.25 < high


@pytest.mark.parametrize("rate", [0.01, 0.25, 0.9])
def test_dispersion_accepts_binomials_and_rejects_fixed_sizes(rate: float):
    counts = np.random.default_rng(6).binomial(200, rate, 400).astype(float)
    assert dispersion_p(counts, 200, rate)[1] > 0.001
    assert dispersion_p(np.full(400, 200 * rate), 200, rate)[1] < ALPHA


def test_dispersion_false_alarms_stay_rare_when_few_are_drawn():
    # Skewed counts are where an approximation of the tail would go wrong.
    rng = np.random.default_rng(7)
    odd = [
        dispersion_p(rng.binomial(200, 0.005, 250).astype(float), 200, 0.005)[1]
        for _ in range(4000)
    ]
    assert np.mean(np.array(odd) < 1e-3) < 4e-3
