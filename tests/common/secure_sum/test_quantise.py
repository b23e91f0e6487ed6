"""The grid: sums cannot overflow, rounding is as small as stated, counters are exact."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.common.errors import UpdateError
from medfed.common.secure_sum.quantise import LARGEST_SUM, Grid, num_values, power_of_two_from
from medfed.common.state_dicts import StateDict


def updates(num: int, seed: int = 0, scale: float = 1.0) -> list[StateDict]:
    rng = np.random.default_rng(seed)
    return [
        {
            "w": (scale * rng.normal(size=(5, 4))).astype(np.float32),
            "scalar": np.asarray(scale * rng.normal(), dtype=np.float32),
            "double": scale * rng.normal(size=3),
            "count": rng.integers(-50, 50, size=2),
        }
        for _ in range(num)
    ]


def summed(grid: Grid, terms: list[StateDict], weights: list[int]) -> np.ndarray:
    total = np.zeros(num_values(terms[0]), dtype=np.uint32)
    for term, weight in zip(terms, weights, strict=True):
        total += grid.encode(term, weight)[0]
    return total


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 1_000_000), min_size=1, max_size=12),
    st.floats(0.01, 100),
    st.integers(0, 1000),
)
def test_mean_is_within_the_stated_rounding_of_the_exact_one(
    weights: list[int], max_value: float, seed: int
) -> None:
    grid = Grid(max_value=max_value, total_weight=sum(weights), num_sites=len(weights))
    terms = updates(len(weights), seed, max_value / 3)
    small = [
        {n: a for n, a in term.items() if n != "count"} if grid.max_whole < 50 else term
        for term in terms
    ]
    mean = grid.decode(summed(grid, small, weights), sum(weights), small[0])
    bound = len(weights) * max_value * 2.0**-31
    for name in small[0]:
        values = [term[name].astype(np.float64) for term in small]
        if name != "count":
            values = [np.clip(v, -max_value, max_value) for v in values]
        exact = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
        if name == "count":
            np.testing.assert_array_equal(mean[name], np.rint(exact))
        else:
            # float32 itself rounds by 2**-24.
            limit = 1.01 * bound + 2.0**-24 * np.abs(exact)
            assert (np.abs(mean[name] - exact) <= limit).all()


@pytest.mark.parametrize("weights", [[1], [1] * 64, [1, LARGEST_SUM // 2 - 1], [70_000] * 7])
@pytest.mark.parametrize("sign", [-1, 1])
def test_largest_possible_sum_does_not_overflow(weights: list[int], sign: int) -> None:
    grid = Grid(max_value=4.0, total_weight=sum(weights), num_sites=len(weights))
    most = {"w": np.full(2, sign * np.inf), "n": np.full(1, sign * grid.max_whole)}
    most["w"] = np.full(2, sign * 1e30)
    exact = [0, 0]
    for weight in weights:
        vector, num_cut = grid.encode(most, weight)
        assert num_cut == 2
        exact = [e + int(v) for e, v in zip(exact, vector.view(np.int32)[[0, 2]], strict=True)]
    assert all(abs(e) <= LARGEST_SUM for e in exact)
    mean = grid.decode(summed(grid, [most] * len(weights), weights), sum(weights), most)
    np.testing.assert_allclose(mean["w"], sign * 4.0, rtol=1e-6)
    np.testing.assert_array_equal(mean["n"], most["n"])


def test_sum_does_not_depend_on_the_order_and_repeats_bit_for_bit() -> None:
    weights = [3, 1, 4, 1, 5]
    grid = Grid(max_value=2.0, total_weight=14, num_sites=5)
    terms = updates(5, seed=3)
    forward = summed(grid, terms, weights)
    np.testing.assert_array_equal(forward, summed(grid, terms[::-1], weights[::-1]))
    np.testing.assert_array_equal(forward, summed(grid, terms, weights))


def test_mean_over_those_that_stayed_divides_by_their_weight() -> None:
    grid = Grid(max_value=2.0, total_weight=10, num_sites=3)
    stayed = [{"w": np.asarray([0.5])}, {"w": np.asarray([1.0])}]
    mean = grid.decode(summed(grid, stayed, [2, 6]), 8, stayed[0])
    assert mean["w"][0] == pytest.approx((2 * 0.5 + 6 * 1.0) / 8, abs=1e-8)


def test_values_at_a_chunk_border_keep_their_places() -> None:
    values = np.linspace(-1, 1, (1 << 20) + 3, dtype=np.float32)
    grid = Grid(max_value=1.0, total_weight=1, num_sites=1)
    mean = grid.decode(grid.encode({"w": values}, 1)[0], 1, {"w": values})
    np.testing.assert_allclose(mean["w"], values, atol=2e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_update_that_is_not_finite_is_refused(value: float) -> None:
    grid = Grid(max_value=1.0, total_weight=2, num_sites=2)
    with pytest.raises(UpdateError, match="NaN"):
        grid.encode({"ok": np.zeros(3), "bad": np.asarray([0.0, value])}, 1)


def test_counter_that_would_overflow_is_refused() -> None:
    grid = Grid(max_value=1.0, total_weight=1000, num_sites=2)
    assert grid.encode({"n": np.asarray([-grid.max_whole])}, 999)
    with pytest.raises(UpdateError, match="whole numbers"):
        grid.encode({"n": np.asarray([grid.max_whole + 1])}, 1)


@pytest.mark.parametrize(
    ("max_value", "total_weight", "num_sites"),
    [(0, 2, 2), (math.inf, 2, 2), (math.nan, 2, 2), (1, 1, 2), (1, 2**30, 2), (1, 2, 0)],
)
def test_grids_that_cannot_hold_the_sum_are_refused(
    max_value: float, total_weight: int, num_sites: int
) -> None:
    with pytest.raises(UpdateError, match="Expected"):
        Grid(max_value=max_value, total_weight=total_weight, num_sites=num_sites)


@pytest.mark.parametrize("weight", [0, -1, 10])
def test_weight_outside_the_total_is_refused(weight: int) -> None:
    with pytest.raises(UpdateError, match="weight of 1 to 9"):
        Grid(max_value=1.0, total_weight=10, num_sites=2).encode({"w": np.zeros(1)}, weight)


@pytest.mark.parametrize(
    ("value", "expected"), [(1.0, 1.0), (1.001, 2.0), (0.75, 1.0), (0.5, 0.5), (3e-9, 2.0**-28)]
)
def test_power_of_two_from_a_value(value: float, expected: float) -> None:
    assert power_of_two_from(value) == expected
