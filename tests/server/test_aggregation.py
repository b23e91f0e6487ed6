"""Exact averaging: the order of arrival never shows, and the mean is the mean."""

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medfed.common.errors import RunError, UpdateError
from medfed.common.study_file import load_study
from medfed.server.aggregation.choice import check_number
from medfed.server.aggregation.exact import MAX_MAGNITUDE, MAX_TERMS, WeightedMean
from medfed.server.aggregation.fedavg import FedAvg

DEMO = Path(__file__).parents[2] / "studies" / "demo.toml"
FLOATS = st.floats(-100, 100, width=32, allow_subnormal=False)
UPDATES = st.lists(
    st.tuples(hnp.arrays(np.float32, 5, elements=FLOATS), st.integers(1, 10_000)),
    min_size=1,
    max_size=4,
)


def mean_of(terms: list[tuple[np.ndarray, int]]) -> np.ndarray:
    mean = WeightedMean({"w": terms[0][0]})
    for update, weight in terms:
        mean.add({"w": update}, weight)
    return mean.result()["w"]


@given(UPDATES)
@settings(max_examples=60, deadline=None)
def test_weighted_mean_does_not_depend_on_order(terms: list[tuple[np.ndarray, int]]) -> None:
    expected = mean_of(terms).tobytes()
    for order in itertools.permutations(terms):
        assert mean_of(list(order)).tobytes() == expected


@given(UPDATES)
@settings(max_examples=60, deadline=None)
def test_weighted_mean_equals_exact_fractions(terms: list[tuple[np.ndarray, int]]) -> None:
    total = sum(weight for _, weight in terms)
    got = mean_of(terms)
    for i in range(5):
        exact = sum((Fraction(float(u[i])) * w for u, w in terms), Fraction(0)) / total
        # Half a unit in the last place of float32, or the accumulator's 2**-70 resolution.
        assert abs(Fraction(float(got[i])) - exact) <= Fraction(
            float(np.spacing(np.float32(abs(float(exact)))))
        ) * Fraction(51, 100) + Fraction(1, 2**68)


def test_a_large_array_is_its_parts_one_after_the_other() -> None:
    rng = np.random.default_rng(0)
    large = rng.standard_normal((3, 40_001)).astype(np.float32)
    whole = WeightedMean({"w": large, "turned": large.T})
    parts = [WeightedMean({"w": part}) for part in np.array_split(large.reshape(-1), 1000)]
    for weight in (3, 201):
        whole.add({"w": large, "turned": large.T}, weight)
        for mean, part in zip(parts, np.array_split(large.reshape(-1), 1000), strict=True):
            mean.add({"w": part}, weight)
    expected = np.concatenate([mean.result()["w"] for mean in parts]).reshape(large.shape)
    assert np.array_equal(whole.result()["w"], expected)
    assert np.array_equal(whole.result()["turned"], expected.T)


@given(UPDATES)
@settings(max_examples=40, deadline=None)
def test_weighted_mean_stays_within_min_and_max(terms: list[tuple[np.ndarray, int]]) -> None:
    stacked = np.stack([update for update, _ in terms])
    got = mean_of(terms)
    # Up to the accumulator's resolution, which matters for values next to zero only.
    assert (got >= stacked.min(axis=0) - 2.0**-69).all()
    assert (got <= stacked.max(axis=0) + 2.0**-69).all()


def test_plain_float_sum_depends_on_order_where_weighted_mean_does_not() -> None:
    # The case that the accumulator exists for: were it a float sum, this would differ.
    terms = [np.float32(1e8), np.float32(1), np.float32(-1e8)]
    assert np.float32(terms[0] + terms[1]) + terms[2] != terms[0] + terms[2] + terms[1]
    updates = [(np.full(5, value), 1) for value in terms]
    results = {mean_of(list(p)).tobytes() for p in itertools.permutations(updates)}
    assert results == {np.full(5, 1 / 3, np.float32).tobytes()}


def test_weighted_mean_keeps_types_and_scalars() -> None:
    template = {"w": np.zeros((), np.float32), "steps": np.array(0, np.int64)}
    mean = WeightedMean(template)
    mean.add({"w": np.array(2.0, np.float32), "steps": np.array(10, np.int64)}, 1)
    mean.add({"w": np.array(4.0, np.float32), "steps": np.array(13, np.int64)}, 3)
    result = mean.result()
    assert (result["w"].dtype, result["w"].shape, float(result["w"])) == (np.float32, (), 3.5)
    assert (result["steps"].dtype, int(result["steps"])) == (np.int64, 12)


@pytest.mark.parametrize("weight", [0, -1])
def test_weighted_mean_refuses_weight_below_one(weight: int) -> None:
    with pytest.raises(UpdateError, match="weight"):
        WeightedMean({"w": np.zeros(1)}).add({"w": np.ones(1)}, weight)


def test_weighted_mean_refuses_what_would_overflow_and_keeps_what_it_had() -> None:
    mean = WeightedMean({"a": np.zeros(1), "w": np.zeros(1)})
    mean.add({"a": np.ones(1), "w": np.ones(1)}, 1)
    with pytest.raises(UpdateError, match="exceeds"):
        mean.add({"a": np.ones(1), "w": np.full(1, MAX_MAGNITUDE * 2)}, 1)
    with pytest.raises(UpdateError, match="exceeds"):
        mean.add({"a": np.ones(1), "w": np.full(1, np.nan)}, 1)
    assert float(mean.result()["a"][0]) == 1.0


def test_weighted_mean_survives_its_own_limits() -> None:
    mean = WeightedMean({"w": np.zeros(1)})
    for _ in range(MAX_TERMS):
        mean.add({"w": np.full(1, MAX_MAGNITUDE)}, 1)
    assert float(mean.result()["w"][0]) == MAX_MAGNITUDE
    with pytest.raises(UpdateError, match=str(MAX_TERMS)):
        mean.add({"w": np.ones(1)}, 1)


@pytest.mark.parametrize(
    ("overrides", "any_number"),
    [
        (["federation.fraction=1.0"], False),
        (["federation.algorithm=qfedavg"], False),
        (["federation.algorithm=fedbuff"], True),
        (["aggregation.rule=median", "aggregation.num_byzantine=1"], True),
    ],
)
def test_more_participants_than_a_mean_holds_are_refused_before_they_train(
    overrides: list[str], any_number: bool
) -> None:
    study = load_study(DEMO, ["privacy.unit=none", "federation.min_sites=3", *overrides])
    check_number(study, MAX_TERMS)
    if any_number:
        check_number(study, MAX_TERMS + 1)
        return
    with pytest.raises(RunError, match=r"fraction = 0\.9995 or less"):
        check_number(study, MAX_TERMS + 1)


def test_fedavg_of_equal_updates_is_old_plus_update() -> None:
    old = {"w": np.array([1.0, 2.0], np.float32)}
    rule = FedAvg(old)
    for weight in (1, 7):
        rule.add({"w": np.array([0.5, -1.0], np.float32)}, weight)
    np.testing.assert_array_equal(rule.apply()["w"], np.array([1.5, 1.0], np.float32))


def test_fedavg_without_updates_is_refused() -> None:
    with pytest.raises(UpdateError, match="at least one"):
        FedAvg({"w": np.zeros(1)}).apply()
