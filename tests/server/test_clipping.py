"""Clipping of whole updates: the bound holds for everything that a site can send."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medfed.common.errors import UpdateError
from medfed.common.state_dicts import StateDict
from medfed.server.aggregation.clipping import (
    MAX_BOUND,
    MIN_BOUND,
    clip_update,
    next_bound,
    update_norm,
)

ANY_FLOAT = st.floats(allow_nan=False, allow_infinity=False, width=32)
ARRAYS = st.fixed_dictionaries(
    {
        "w": hnp.arrays(np.float32, (2, 3), elements=ANY_FLOAT),
        "scale": hnp.arrays(np.float32, (), elements=ANY_FLOAT),
        "d": hnp.arrays(np.float64, 2, elements=st.floats(allow_nan=False, allow_infinity=False)),
    }
)


def square_norm(update: StateDict) -> Fraction:
    """The exact square of the L2 norm."""
    return sum((Fraction(float(v)) ** 2 for a in update.values() for v in a.ravel()), Fraction(0))


@given(ARRAYS, st.floats(1e-6, 1e6))
@settings(max_examples=200, deadline=None)
def test_clipped_update_is_within_the_bound_exactly(update: StateDict, bound: float) -> None:
    clipped, within = clip_update(update, bound)
    assert square_norm(clipped) <= Fraction(bound) ** 2
    if within:
        assert {n: a.tolist() for n, a in clipped.items()} == {
            n: a.astype(np.float64).tolist() for n, a in update.items()
        }
    else:
        assert square_norm(update) > Fraction(bound) ** 2 * Fraction(999_998, 1_000_000)


def test_clipping_keeps_the_direction_and_uses_the_whole_bound() -> None:
    update = {"a": np.array([3.0, 0.0], np.float32), "b": np.array(4.0, np.float32)}
    assert update_norm(update) == pytest.approx(5.0, rel=2e-6)
    clipped, within = clip_update(update, 1.0)
    assert not within
    np.testing.assert_allclose(clipped["a"], [0.6, 0.0], rtol=2e-6)
    np.testing.assert_allclose(clipped["b"], 0.8, rtol=2e-6)


def test_parameter_of_dimension_zero_does_not_escape() -> None:
    # Flower's own clipping leaves it as it is.
    clipped, _ = clip_update({"temperature": np.array(1e6, np.float32)}, 0.5)
    assert float(clipped["temperature"]) == pytest.approx(0.5, rel=2e-6)


def test_zero_update_stays_zero() -> None:
    # Flower's own clipping divides by its norm.
    clipped, within = clip_update({"w": np.zeros(3, np.float32), "n": np.array(0)}, 1.0)
    assert within
    assert [a.tolist() for a in clipped.values()] == [[0, 0, 0], 0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_update_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(UpdateError, match="finite"):
        clip_update({"w": np.ones(3, np.float32), "x": np.array(value, np.float32)}, 1.0)


def test_largest_float64_is_clipped_without_overflow() -> None:
    huge = {"w": np.full(4, np.finfo(np.float64).max)}
    clipped, within = clip_update(huge, 1.0)
    assert not within
    assert np.isfinite(clipped["w"]).all()
    assert square_norm(clipped) <= 1


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
def test_bound_follows_the_quantile_of_known_norms(quantile: float) -> None:
    # Andrew et al. 2021, figure 1: log-normal norms; here without noise.
    norms = np.exp(np.random.default_rng(1).normal(0.5, 0.6, 400))
    bound = 20.0
    for _ in range(200):
        balance = float(np.where(norms <= bound, 0.5, -0.5).sum())
        bound = next_bound(bound, balance, expected_sites=400, quantile=quantile, rate=0.2)
    assert bound == pytest.approx(np.quantile(norms, quantile), rel=0.03)
    assert bound != pytest.approx(np.quantile(norms, min(0.99, quantile + 0.09)), rel=0.03)


def test_bound_moves_by_the_papers_step() -> None:
    # All 10 within the bound: share 1, so C exp(-rate (1 - quantile)).
    step = next_bound(2.0, 5.0, expected_sites=10, quantile=0.5, rate=0.2)
    assert step == 2.0 * math.exp(-0.2 * 0.5)
    # Nobody answered: the share counts as one half.
    assert next_bound(2.0, 0.0, expected_sites=10, quantile=0.5, rate=0.2) == 2.0


def test_bound_stops_at_public_limits() -> None:
    assert next_bound(1.0, -1e9, expected_sites=1, quantile=0.5, rate=1e-6) == MAX_BOUND
    assert next_bound(1.0, 1e9, expected_sites=1, quantile=0.5, rate=1e-6) == MIN_BOUND
