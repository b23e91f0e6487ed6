"""Epsilon: closed forms, known values, bounds from both sides, and the laws of composition."""

import math
import random
from itertools import pairwise
from typing import Any

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from medfed.common.accounting import GaussianEvent, compose, epsilon

# (noise_multiplier, sample_rate, steps, delta): what hospitals of 50 to 100,000 patients would run.
HOSPITALS = [
    (1.0, 1 / 32, 960, 1e-4),
    (0.8, 0.05, 200, 1e-5),
    (1.5, 0.1, 400, 1e-5),
    (4.0, 0.3, 300, 1e-3),
    (0.7, 0.005, 2000, 1e-6),
]


def analytic_gaussian_epsilon(mu: float, delta: float) -> float:
    """Invert the exact delta of a Gaussian release of sensitivity over noise `mu`.

    Balle and Wang 2018, theorem 8, https://arxiv.org/abs/1805.06530; n releases of noise s compose
    to one with mu^2 = n / s^2.
    """

    def excess(value: float) -> float:
        above = norm.cdf(mu / 2 - value / mu)
        return float(above - math.exp(value) * norm.cdf(-mu / 2 - value / mu) - delta)

    return float(brentq(excess, 0.0, 200.0, xtol=1e-10))


def reference_epsilon(events: list[GaussianEvent], delta: float, interval: float) -> float:
    """Compose one by one, in the order given, on a privacy loss grid of `interval`."""
    accountant = PLDAccountant(
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=interval
    )
    for event in events:
        accountant.compose(
            dp_accounting.PoissonSampledDpEvent(
                event.sample_rate, dp_accounting.GaussianDpEvent(event.noise_multiplier)
            ),
            event.steps,
        )
    return float(accountant.get_epsilon(delta))


@pytest.mark.parametrize(
    ("noise_multiplier", "steps", "delta"),
    [(8.0, 40, 1e-3), (1.0, 1, 1e-5), (5.0, 10, 1e-6), (20.0, 500, 1e-5), (0.8, 2, 1e-4)],
)
def test_epsilon_is_the_closed_form_without_sampling(
    noise_multiplier: float, steps: int, delta: float
) -> None:
    exact = analytic_gaussian_epsilon(math.sqrt(steps) / noise_multiplier, delta)
    assert epsilon([GaussianEvent(noise_multiplier, 1.0, steps)], delta) == pytest.approx(
        exact, abs=1e-3
    )


def test_epsilon_is_the_closed_form_over_releases_of_different_noise() -> None:
    events = [GaussianEvent(8.0, 1.0, 30), GaussianEvent(3.0, 1.0, 5), GaussianEvent(20.0, 1.0, 7)]
    exact = analytic_gaussian_epsilon(math.sqrt(30 / 64 + 5 / 9 + 7 / 400), 1e-5)
    assert epsilon(events, 1e-5) == pytest.approx(exact, abs=1e-3)


def test_epsilon_has_the_design_documents_values() -> None:
    assert epsilon([GaussianEvent(1.0, 1 / 32, 960)], 1e-4) == pytest.approx(5.400, abs=1e-3)
    assert epsilon([GaussianEvent(8.0, 1.0, 40)], 1e-3) == pytest.approx(2.3518, abs=1e-4)


@pytest.mark.parametrize(("noise_multiplier", "sample_rate", "steps", "delta"), HOSPITALS)
def test_epsilon_lies_just_above_a_finer_grid_and_below_renyi(
    noise_multiplier: float, sample_rate: float, steps: int, delta: float
) -> None:
    event = GaussianEvent(noise_multiplier, sample_rate, steps)
    stated = epsilon([event], delta)
    finer = reference_epsilon([event], delta, interval=1e-4)
    assert finer - 1e-3 <= stated <= 1.01 * finer
    renyi = RdpAccountant()
    renyi.compose(
        dp_accounting.PoissonSampledDpEvent(
            sample_rate, dp_accounting.GaussianDpEvent(noise_multiplier)
        ),
        steps,
    )
    assert stated <= renyi.get_epsilon(delta)


EVENTS = st.lists(
    st.builds(
        GaussianEvent, st.sampled_from([0.9, 2.0]), st.sampled_from([0.02, 0.2]), st.integers(1, 30)
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(EVENTS, st.randoms(use_true_random=False))
def test_epsilon_is_that_of_composing_one_by_one_in_any_order(
    events: list[GaussianEvent], order: random.Random
) -> None:
    stated = epsilon(events, 1e-5)
    assert stated == pytest.approx(
        max(0.0, reference_epsilon(events, 1e-5, interval=1e-3)), abs=2e-3
    )
    shuffled = list(events)
    order.shuffle(shuffled)
    assert epsilon(shuffled, 1e-5) == stated


@settings(max_examples=200, deadline=None, derandomize=True)
@given(EVENTS, EVENTS)
def test_compose_merges_and_keeps_every_step(
    some: list[GaussianEvent], others: list[GaussianEvent]
) -> None:
    merged = compose([*some, *others])
    assert merged == compose([*others, *some]) == compose([*compose(some), *compose(others)])
    assert sum(e.steps for e in merged) == sum(e.steps for e in [*some, *others])
    kinds = [(e.noise_multiplier, e.sample_rate) for e in merged]
    assert set(kinds) == {(e.noise_multiplier, e.sample_rate) for e in [*some, *others]}
    assert len(set(kinds)) == len(kinds)


def test_epsilon_of_rounds_is_that_of_all_their_steps() -> None:
    # The trap: rounds accounted one by one with a fresh accountant each (DESIGN section 4).
    rounds = [GaussianEvent(1.0, 0.1, 5)] * 10
    together = epsilon(rounds, 1e-5)
    assert together == epsilon([GaussianEvent(1.0, 0.1, 50)], 1e-5)
    assert together > 1.5 * epsilon(rounds[:1], 1e-5)


def test_epsilon_grows_with_steps_and_rate_and_falls_with_noise_and_delta() -> None:
    by_steps = [epsilon([GaussianEvent(1.0, 0.1, n)], 1e-5) for n in (1, 2, 5, 10, 50, 200)]
    by_rate = [epsilon([GaussianEvent(1.0, q, 20)], 1e-5) for q in (0.01, 0.05, 0.2, 0.9, 1.0)]
    by_noise = [epsilon([GaussianEvent(s, 0.1, 20)], 1e-5) for s in (4.0, 2.0, 1.0, 0.6)]
    by_delta = [epsilon([GaussianEvent(1.0, 0.1, 20)], delta) for delta in (1e-2, 1e-4, 1e-8)]
    for values in (by_steps, by_rate, by_noise, by_delta):
        assert all(low < high for low, high in pairwise(values)), values


def test_epsilon_is_never_negative() -> None:
    assert epsilon([], 1e-5) == 0.0
    tiny = epsilon([GaussianEvent(200.0, 0.001, 1)], 1e-3)
    assert tiny == 0.0
    assert math.copysign(1.0, tiny) == 1.0


# What fails with some probability, whatever the noise


def epsilon_with_a_coin(mu: float, failure: float, delta: float) -> float:
    """Invert failure + (1 - failure) delta_noise(epsilon): all is lost if the coin falls so."""
    return analytic_gaussian_epsilon(mu, (delta - failure) / (1 - failure))


@pytest.mark.parametrize(
    ("noise_multiplier", "extra", "delta"),
    [(3.75, 1e-6, 1e-5), (1.4, 1e-6, 1e-5), (1.0, 9e-4, 1e-3), (8.0, 1e-7, 1e-3)],
)
def test_epsilon_with_extra_delta_is_the_closed_form(
    noise_multiplier: float, extra: float, delta: float
) -> None:
    exact = epsilon_with_a_coin(1 / noise_multiplier, extra, delta)
    stated = epsilon([GaussianEvent(noise_multiplier, 1.0, 1, extra)], delta)
    assert stated == pytest.approx(exact, abs=2e-3)
    assert stated >= exact - 1e-6
    assert stated == epsilon([GaussianEvent(noise_multiplier, 1.0, 1)], delta - extra)
    # It is not for free, and not counted in steps.
    assert stated > epsilon([GaussianEvent(noise_multiplier, 1.0, 1)], delta)


def test_epsilon_adds_up_extra_delta_over_releases_in_any_order() -> None:
    # Two coins and 30 steps of noise: the coins' failure is 1 - (1 - p)(1 - q).
    events = [
        GaussianEvent(8.0, 1.0, 30),
        GaussianEvent(3.0, 1.0, 1, 1e-6),
        GaussianEvent(3.0, 1.0, 1, 3e-6),
        GaussianEvent(5.0, 1.0, 1, 2e-6),
    ]
    mu = math.sqrt(30 / 64 + 2 / 9 + 1 / 25)
    exact = epsilon_with_a_coin(mu, 1 - (1 - 1e-6) * (1 - 3e-6) * (1 - 2e-6), 1e-5)
    stated = epsilon(events, 1e-5)
    assert stated == pytest.approx(exact, abs=1e-3)
    for seed in range(5):
        shuffled = list(events)
        random.Random(seed).shuffle(shuffled)
        assert epsilon(shuffled, 1e-5) == stated
    merged = compose(events)
    assert [event.extra_delta for event in merged] == [4e-6, 2e-6, 0.0]
    assert [event.steps for event in merged] == [2, 1, 30]


@pytest.mark.parametrize("extra", [1e-5, 1.1e-5, 0.5, 1.0, 3.0])
def test_epsilon_is_infinite_when_no_delta_is_left(extra: float) -> None:
    event = GaussianEvent(50.0, 1.0, 1, extra)
    assert epsilon([event], 1e-5) == math.inf
    assert epsilon([GaussianEvent(50.0, 1.0, 1), event], 1e-5) == math.inf


@pytest.mark.parametrize(
    "values",
    [
        (1.0, 0.1, 1, -1e-9),
        (1.0, 0.1, 1, math.nan),
        (0.0, 0.1, 1),
        (-1.0, 0.1, 1),
        (math.nan, 0.1, 1),
        (1.0, 0.0, 1),
        (1.0, 1.1, 1),
        (1.0, math.nan, 1),
        (1.0, 0.1, 0),
        (1.0, 0.1, -5),
    ],
)
def test_event_refuses_what_no_mechanism_can_be(values: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        GaussianEvent(*values)
