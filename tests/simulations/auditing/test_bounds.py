"""Lower bounds: published values, closed forms, and that they do bound."""

import math

import numpy as np
import pytest

from medfed.simulations.auditing.bounds import (
    gaussian_epsilon,
    gaussian_mu,
    one_run_epsilon,
    one_run_p,
)


def test_one_run_p_is_the_value_of_the_design():
    p = one_run_p(canaries=1000, guesses=100, right=90, epsilon=1, delta=1e-5)
    assert p == pytest.approx(8.41289e-4, rel=1e-5)


def test_one_run_epsilon_is_the_value_of_the_design():
    bound = one_run_epsilon(canaries=1000, guesses=100, right=100, delta=1e-5)
    assert bound == pytest.approx(3.4654, abs=1e-4)


def test_one_run_epsilon_is_zero_for_guesses_at_chance():
    assert one_run_epsilon(canaries=1000, guesses=100, right=50, delta=1e-5) == 0.0


def test_one_run_p_without_delta_is_the_binomial_tail():
    # r = v = 3: all three right has probability (e / (1 + e))^3.
    p = one_run_p(canaries=10, guesses=3, right=3, epsilon=1.0, delta=0.0)
    assert p == pytest.approx((math.e / (1 + math.e)) ** 3, rel=1e-12)


def test_one_run_p_grows_with_epsilon():
    values = [
        one_run_p(canaries=500, guesses=100, right=80, epsilon=e, delta=1e-5)
        for e in np.linspace(0, 5, 21)
    ]
    assert values == sorted(values)


def test_gaussian_epsilon_is_the_closed_form_value():
    # 40 releases at sigma 8, delta 1e-3 (DESIGN section 4).
    assert gaussian_epsilon(math.sqrt(40) / 8, 1e-3) == pytest.approx(2.3518, abs=1e-4)


def test_gaussian_epsilon_is_zero_of_no_information():
    assert gaussian_epsilon(0.0, 1e-5) == 0.0


@pytest.mark.parametrize("mu", [0.5, 2.0])
def test_gaussian_mu_bounds_the_truth_and_comes_near_it(mu: float):
    rng, number = np.random.default_rng(4), 100_000
    out, inside = rng.standard_normal(number), rng.standard_normal(number) + mu
    bound = gaussian_mu(
        false_alarms=int((out > mu / 2).sum()),
        outs=number,
        misses=int((inside <= mu / 2).sum()),
        ins=number,
    )
    assert 0.95 * mu < bound < mu
