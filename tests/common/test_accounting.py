"""Epsilon: bounds from both sides, and the laws of composition. Values: tests/golden."""

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

from medfed.common.accounting import GaussianEvent, compose, epsilon, renyi_epsilon
from medfed.common.accounting.composition import loss_epsilon
from medfed.common.accounting.losses import Release, coarser, epsilon_of, one_release

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
        # log of exp(value) * cdf: their product stays in range where the factors do not.
        below = math.exp(value + norm.logcdf(-mu / 2 - value / mu))
        return float(norm.cdf(mu / 2 - value / mu) - below - delta)

    return 0.0 if excess(0.0) <= 0 else float(brentq(excess, 0.0, mu**2 / 2 + 40 * mu, xtol=1e-10))


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


# Laws that hold for every training

NOISE = st.floats(0.3, 20.0)
RATE = st.floats(1e-3, 1.0)
STEPS = st.integers(1, 3000)
DELTA = st.floats(1e-7, 1e-2)
MORE = st.floats(1.02, 3.0)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(NOISE, RATE, STEPS, DELTA, MORE)
def test_epsilon_is_monotone_in_all_that_defines_it(
    noise: float, rate: float, steps: int, delta: float, more: float
) -> None:
    stated = epsilon([GaussianEvent(noise, rate, steps)], delta)
    slack = 1e-9 * (1 + stated)  # round-off of Fourier transforms
    assert epsilon([GaussianEvent(noise * more, rate, steps)], delta) <= stated + slack
    assert epsilon([GaussianEvent(noise, rate / more, steps)], delta) <= stated + slack
    assert epsilon([GaussianEvent(noise, rate, math.ceil(steps / more))], delta) <= stated + slack
    assert epsilon([GaussianEvent(noise, rate, steps)], min(0.5, delta * more)) <= stated + slack
    assert stated <= renyi_epsilon([GaussianEvent(noise, rate, steps)], delta) + slack


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.floats(0.8, 5.0), st.floats(0.01, 0.3), st.integers(1, 300), st.integers(2, 4))
def test_a_patient_with_more_images_is_never_stated_less(
    noise: float, rate: float, steps: int, images: int
) -> None:
    def stated(records: int) -> float:
        return epsilon([GaussianEvent(noise, rate, steps, records_per_unit=records)], 1e-5)

    assert stated(images) <= stated(images + 1) * (1 + 1e-9)
    # As though all of a patient's images entered as soon as one does: more than happens.
    any_of_them = 1 - (1 - rate) ** images
    together = epsilon([GaussianEvent(noise / images, any_of_them, steps)], 1e-5)
    assert stated(images) <= together * (1 + 1e-9)


def test_epsilon_of_all_images_at_once_is_the_closed_form() -> None:
    event = GaussianEvent(6.0, 1.0, 10, records_per_unit=3)
    exact = analytic_gaussian_epsilon(math.sqrt(10) * 3 / 6, 1e-5)
    assert epsilon([event], 1e-5) == pytest.approx(exact, abs=1e-4)


def test_epsilon_of_steps_that_cost_little_is_not_rounded_up_to_the_grid() -> None:
    # A grid of 1e-3 would state 0.742: each of these steps' losses is around 5e-4.
    stated = epsilon([GaussianEvent(20.0, 0.01, 100_000)], 1e-5)
    assert stated == pytest.approx(0.5617, abs=1e-3)


@pytest.mark.parametrize("small", [(20.0, 0.01), (5.0, 0.002), (0.8, 0.0005)])
def test_epsilon_composes_trainings_that_need_different_grids(small: tuple[float, float]) -> None:
    large = GaussianEvent(1.0, 0.05, 100)
    little = GaussianEvent(*small, 1000)
    stated = epsilon([large, little], 1e-5)
    assert stated == pytest.approx(reference_epsilon([large, little], 1e-5, 1e-4), rel=2e-3)
    assert stated > epsilon([large], 1e-5)


def test_epsilon_never_falls_while_a_ledger_grows() -> None:
    kinds = [GaussianEvent(1.0, 0.05, 20), GaussianEvent(4.0, 0.01, 50), GaussianEvent(9.0, 1.0, 1)]
    held: list[GaussianEvent] = []
    before = 0.0
    for round_number in range(45):
        held.append(kinds[round_number % 7 % 3])
        after = epsilon(held, 1e-6)
        assert after >= before - 1e-9
        before = after


# The grid never states less than the truth


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.floats(0.4, 5.0), st.floats(0.01, 1.0), st.integers(1, 3), st.sampled_from([2, 8, 64]), DELTA
)
def test_a_coarser_grid_never_states_less(
    noise: float, rate: float, images: int, factor: int, delta: float
) -> None:
    release = Release(noise, rate, images) if rate < 1 else Release(noise, 1.0)
    for direction in ("remove", "add"):
        fine = one_release(release, direction, 1e-3)
        moved = coarser(fine, 1e-3 * factor)
        built = one_release(release, direction, 1e-3 * factor)
        assert moved.masses.sum() == pytest.approx(fine.masses.sum(), rel=1e-12)
        assert epsilon_of(moved, delta) >= epsilon_of(fine, delta) - 1e-9
        # Two ways to the same distribution.
        assert epsilon_of(moved, delta) == pytest.approx(epsilon_of(built, delta), abs=1e-7)


@pytest.mark.parametrize("delta", [1e-11, 1e-12, 1e-14, 1e-18, 1e-40])
def test_epsilon_at_a_delta_below_round_off_is_a_bound_all_the_same(delta: float) -> None:
    event = GaussianEvent(1.0, 1 / 32, 960)
    stated = epsilon([event], delta)
    assert epsilon([event], 1e-10) < stated <= renyi_epsilon([event], delta)
    # Without sampling the truth is known.
    unsampled = GaussianEvent(8.0, 1.0, 40)
    assert epsilon([unsampled], delta) >= analytic_gaussian_epsilon(math.sqrt(40) / 8, delta)


@pytest.mark.parametrize(
    "event",
    [
        GaussianEvent(0.1, 1.0, 1_000_000),
        GaussianEvent(0.1, 0.5, 100_000),
        GaussianEvent(0.01, 0.1, 10),
        GaussianEvent(1.0, 0.9, 100_000),
        GaussianEvent(0.3, 0.3, 10_000, records_per_unit=8),
    ],
)
def test_epsilon_of_what_nobody_should_run_is_a_large_bound_and_takes_no_memory(
    event: GaussianEvent,
) -> None:
    # A study that a site is sent may ask for this; to refuse it must not exhaust the machine.
    stated = epsilon([event], 1e-5)
    assert 500 < stated < math.inf
    assert loss_epsilon((event,), 1e-5)[0] == math.inf


def test_epsilon_of_tiny_rates_is_tight() -> None:
    stated = epsilon([GaussianEvent(0.7, 6.4e-5, 100_000)], 1e-7)
    mixed = epsilon([GaussianEvent(0.7, 6.4e-5, 50_000), GaussianEvent(0.7, 6.5e-5, 50_000)], 1e-7)
    assert stated < renyi_epsilon([GaussianEvent(0.7, 6.4e-5, 100_000)], 1e-7)
    assert stated < mixed < 1.05 * stated


# Noise on integers


def zcdp_epsilon(rho: float, delta: float) -> float:
    """The simple conversion of concentrated privacy, which is not the tightest.

    Bun and Steinke 2016, proposition 1.3, https://arxiv.org/abs/1605.02065.
    """
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.floats(1.0, 20.0), st.integers(1, 500), DELTA)
def test_discrete_gaussian_costs_a_little_more_than_gaussian(
    noise: float, steps: int, delta: float
) -> None:
    discrete = epsilon([GaussianEvent(noise, 1.0, steps, mechanism="discrete_gaussian")], delta)
    exact = analytic_gaussian_epsilon(math.sqrt(steps) / noise, delta)
    assert discrete >= exact
    rho = steps / (2 * noise**2)
    # Tighter than the simple conversion, but for the orders that are not looked at.
    assert discrete <= 1.02 * zcdp_epsilon(rho, delta) + 0.02


def test_discrete_gaussian_is_accounted_by_renyi_with_all_that_it_is_composed_with() -> None:
    gaussian = GaussianEvent(1.0, 0.05, 100)
    discrete = GaussianEvent(5.0, 1.0, 4, mechanism="discrete_gaussian")
    as_gaussian = GaussianEvent(5.0, 1.0, 4)
    stated = epsilon([gaussian, discrete], 1e-5)
    assert stated == epsilon([discrete, gaussian], 1e-5)
    assert stated == renyi_epsilon([gaussian, as_gaussian], 1e-5)
    assert stated > epsilon([gaussian, as_gaussian], 1e-5)
    assert compose([discrete, as_gaussian, discrete]) == (
        GaussianEvent(5.0, 1.0, 8, mechanism="discrete_gaussian"),
        as_gaussian,
    )
    failing = GaussianEvent(5.0, 1.0, 4, 1e-6, mechanism="discrete_gaussian")
    assert epsilon([failing], 1e-5) == epsilon([discrete], 1e-5 - 1e-6)


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
        (1.0, 0.1, 0.5),
        (1.0, 0.1, -5),
        (1.0, 1.0, 1, 0.0, "laplace"),
        (1.0, 0.9, 1, 0.0, "discrete_gaussian"),
        (1.0, 0.1, 1, 0.0, "gaussian", 0),
    ],
)
def test_event_refuses_what_no_mechanism_can_be(values: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        GaussianEvent(*values)
