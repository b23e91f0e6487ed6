"""Robust rules: what f hostile sites of n can do to the result is bounded, whatever they send."""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medfed.common.errors import UpdateError
from medfed.common.state_dicts import StateDict
from medfed.common.study.aggregation import AggregationSection
from medfed.server.aggregation.choice import make_rule
from medfed.server.aggregation.exact import MAX_MAGNITUDE
from medfed.server.aggregation.geometric_median import geometric_median
from medfed.server.aggregation.krum import krum, multi_krum, scores, squared_distances
from medfed.server.aggregation.median import coordinate_median
from medfed.server.aggregation.norm_bound import NormBounded
from medfed.server.aggregation.robust import CHUNK
from medfed.server.aggregation.rule import Rule
from medfed.server.aggregation.trimmed_mean import trimmed_mean

SECTIONS = {
    "mean": AggregationSection(),
    "median": AggregationSection(rule="median", num_byzantine=1),
    "trimmed_mean": AggregationSection(rule="trimmed_mean", num_byzantine=1),
    "krum": AggregationSection(rule="krum", num_byzantine=1),
    "multi_krum": AggregationSection(rule="multi_krum", num_byzantine=1),
    "multi_krum of two": AggregationSection(rule="multi_krum", num_byzantine=1, num_selected=2),
    "geometric_median": AggregationSection(rule="geometric_median", num_byzantine=1),
    "mean, bounded": AggregationSection(max_norm=1.5),
    "krum, bounded": AggregationSection(rule="krum", num_byzantine=1, max_norm=1.5),
}
ROBUST = [name for name, section in SECTIONS.items() if section.robust]
BY_VALUE = ["median", "trimmed_mean"]
LENGTH = 4
RESOLUTION = 2.0**-68
"""Of the exact mean, in which values next to nothing become nothing."""

FLOATS = st.floats(-100, 100, width=32, allow_subnormal=False)
VECTORS = st.lists(hnp.arrays(np.float32, LENGTH, elements=FLOATS), min_size=5, max_size=7)


def state(vector: np.ndarray) -> StateDict:
    """An update of two arrays, one of them a scalar, and a counter."""
    return {
        "w": vector[1:].reshape(-1, 1),
        "b": vector[0].reshape(()),
        "steps": np.array(int(abs(vector[0])), np.int64),
    }


def vector_of(update: StateDict) -> np.ndarray:
    return np.concatenate([update["b"].reshape(-1), update["w"].reshape(-1)]).astype(np.float64)


def zeros(dtype: type = np.float32) -> StateDict:
    return state(np.zeros(LENGTH, dtype))


def aggregated(section: AggregationSection, updates: Sequence[StateDict]) -> StateDict:
    """What the rule makes of updates of site-0, site-1, ..., from weights of zero."""
    rule = folded(section, {f"site-{i}": update for i, update in enumerate(updates)})
    return rule.apply()


def folded(section: AggregationSection, updates: dict[str, StateDict]) -> Rule:
    first = next(iter(updates.values()))
    rule = make_rule(section, {name: np.zeros_like(array) for name, array in first.items()})
    for site, update in updates.items():
        rule.add(update, 1, site)
    return rule


def bits(update: StateDict) -> bytes:
    return b"".join(update[name].tobytes() for name in sorted(update))


@pytest.mark.parametrize("name", SECTIONS)
class TestEveryRule:
    """The contract: what has to hold for whatever `make_rule` gives."""

    @given(VECTORS)
    @settings(max_examples=25, deadline=None)
    def test_rule_does_not_depend_on_order_of_arrival(
        self, name: str, vectors: list[np.ndarray]
    ) -> None:
        updates = {f"site-{i}": state(vector) for i, vector in enumerate(vectors)}
        expected = folded(SECTIONS[name], updates)
        result = bits(expected.apply())
        for order in itertools.islice(itertools.permutations(updates), 0, None, 97):
            other = folded(SECTIONS[name], {site: updates[site] for site in order})
            assert bits(other.apply()) == result
            assert other.notes == expected.notes

    @given(hnp.arrays(np.float32, LENGTH, elements=FLOATS), st.integers(5, 7))
    @settings(max_examples=25, deadline=None)
    def test_rule_of_equal_updates_is_that_update(
        self, name: str, vector: np.ndarray, count: int
    ) -> None:
        got = aggregated(SECTIONS[name], [state(vector)] * count)
        expected = vector.astype(np.float64)
        if SECTIONS[name].max_norm:
            expected *= min(1, 1.5 / max(float(np.linalg.norm(expected)), 1e-9))
        np.testing.assert_allclose(vector_of(got), expected, rtol=2e-6, atol=RESOLUTION)
        assert int(got["steps"]) == int(abs(vector[0]))

    def test_rule_keeps_types_shapes_and_memory_order_does_not_show(self, name: str) -> None:
        rng = np.random.default_rng(1)
        updates = []
        for _ in range(5):
            update = {
                "half": rng.normal(size=(2, 3)).astype(np.float16),
                "single": rng.normal(size=(3, 4)).astype(np.float32),
                "double": rng.normal(size=()),
                "empty": np.zeros((0, 3), np.float32),
                "count": np.array(int(rng.integers(9)), np.int64),
            }
            updates.append(update)
        got = aggregated(SECTIONS[name], updates)
        for key, array in updates[0].items():
            assert (got[key].dtype, got[key].shape) == (array.dtype, array.shape)
        # BatchNorm's counters are np.int64 of dimension 0; Fortran order may come off the wire.
        fortran = [{k: np.asarray(a, order="F") for k, a in u.items()} for u in updates]
        assert bits(aggregated(SECTIONS[name], fortran)) == bits(got)

    def test_rule_adds_to_the_weights(self, name: str) -> None:
        weights = state(np.array([10, 20, 30, 40], np.float32))
        rule = make_rule(SECTIONS[name], weights)
        for i in range(5):
            rule.add(state(np.array([1, 0, 0, 0], np.float32)), 1, f"site-{i}")
        got = rule.apply()
        assert vector_of(got).tolist() == pytest.approx([11, 20, 30, 40])
        assert int(got["steps"]) == 11

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.5 * MAX_MAGNITUDE])
    def test_rule_refuses_what_is_no_number_or_too_large(self, name: str, value: float) -> None:
        rule = make_rule(SECTIONS[name], zeros())
        bad = state(np.array([0, 0, value, 0], np.float32))
        bad["steps"] = np.array(0, np.int64)
        if SECTIONS[name].max_norm and np.isfinite(value):
            rule.add(bad, 1, "site")  # it is scaled down first
            return
        with pytest.raises(UpdateError):
            rule.add(bad, 1, "site")
        assert rule.num_updates == 0

    def test_rule_refuses_to_combine_too_few(self, name: str) -> None:
        section = SECTIONS[name]
        rule = make_rule(section, zeros())
        for i in range(section.min_updates - 1):
            rule.add(zeros(), 1, f"site-{i}")
        with pytest.raises(UpdateError, match=r"at least"):
            rule.apply()
        rule.add(zeros(), 1, "one more")
        rule.apply()


@pytest.mark.parametrize("name", ROBUST)
class TestEveryRobustRule:
    """What has to hold for each but the mean."""

    @pytest.mark.parametrize("evil", [1e9, -1e9, 1e4])
    def test_one_site_of_five_moves_the_result_within_a_bound(self, name: str, evil: float) -> None:
        rng = np.random.default_rng(3)
        honest = [rng.normal(size=LENGTH).astype(np.float32) for _ in range(4)]
        radius = max(float(np.linalg.norm(v)) for v in honest)
        hostile = np.full(LENGTH, evil, np.float32)
        clean = vector_of(aggregated(SECTIONS["mean"], [state(v) for v in honest]))
        for place in range(5):
            vectors = [*honest[:place], hostile, *honest[place:]]
            got = vector_of(aggregated(SECTIONS[name], [state(v) for v in vectors]))
            assert float(np.linalg.norm(got - clean)) <= 2 * radius
            moved = vector_of(aggregated(SECTIONS["mean"], [state(v) for v in vectors]))
            assert float(np.linalg.norm(moved - clean)) > 100 * radius

    def test_counters_follow_no_single_site(self, name: str) -> None:
        # The update itself is the most ordinary of all: only its counter is not.
        updates = [state(np.full(LENGTH, i, np.float32)) for i in (-2, -1, 0, 1, 2)]
        for update in updates:
            update["steps"] = np.array(7, np.int64)
        updates[2]["steps"] = np.array(2**31, np.int64)
        assert int(aggregated(SECTIONS[name], updates)["steps"]) == 7

    @given(VECTORS, hnp.arrays(np.float32, LENGTH, elements=st.integers(-50, 50)))
    @settings(max_examples=25, deadline=None)
    def test_rule_moves_with_its_updates(
        self, name: str, vectors: list[np.ndarray], shift: np.ndarray
    ) -> None:
        # In float64 and on a grid, so that shifting loses no bits and changes no order.
        exact = [np.rint(v.astype(np.float64) * 64) / 64 for v in vectors]
        section = SECTIONS[name].model_copy(update={"max_norm": 0.0})
        got = vector_of(aggregated(section, [state(v) for v in exact]))
        moved = vector_of(aggregated(section, [state(v + shift) for v in exact]))
        np.testing.assert_allclose(moved, got + shift, atol=0.01, rtol=0)

    def test_rule_takes_every_site_once(self, name: str) -> None:
        rule = make_rule(SECTIONS[name], zeros())
        with pytest.raises(UpdateError, match="weight 1"):
            rule.add(zeros(), 2, "site")
        rule.add(zeros(), 1, "site")
        with pytest.raises(UpdateError, match="one update of a site"):
            rule.add(zeros(), 1, "site")
        assert rule.num_updates == 1

    def test_rule_equals_its_slow_twin_on_arrays_longer_than_a_chunk(self, name: str) -> None:
        rng = np.random.default_rng(5)
        stack = rng.normal(size=(7, CHUNK + 1000)).astype(np.float32)
        section = SECTIONS[name].model_copy(update={"max_norm": 0.0})
        got = aggregated(section, [{"w": row.reshape(2, -1)} for row in stack])["w"].reshape(-1)
        twin = TWINS[name](stack.astype(np.float64))
        np.testing.assert_allclose(got, twin.astype(np.float32), rtol=1e-6, atol=1e-5)


def slow_krum(stack: np.ndarray, num_selected: int) -> np.ndarray:
    """With one hostile site: straight from the paper's definition."""
    found = []
    for i, row in enumerate(stack):
        squares = sorted(
            float(((row - other) ** 2).sum()) for j, other in enumerate(stack) if j != i
        )
        found.append(sum(squares[: len(stack) - 3]))
    best = np.argsort(found, kind="stable")[:num_selected]
    return np.asarray(stack[best].mean(axis=0))


def slow_geometric_median(stack: np.ndarray) -> np.ndarray:
    """Plain Weiszfeld from the mean, for long."""
    point = stack.mean(axis=0)
    for _ in range(200):
        pulls = 1 / np.linalg.norm(stack - point, axis=1)
        point = (pulls[:, None] * stack).sum(axis=0) / pulls.sum()
    return np.asarray(point)


TWINS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "median": lambda stack: np.median(stack, axis=0),
    "trimmed_mean": lambda stack: np.sort(stack, axis=0)[1:-1].mean(axis=0),
    "krum": lambda stack: slow_krum(stack, 1),
    "krum, bounded": lambda stack: slow_krum(stack, 1),
    "multi_krum": lambda stack: slow_krum(stack, len(stack) - 1),
    "multi_krum of two": lambda stack: slow_krum(stack, 2),
    "geometric_median": slow_geometric_median,
}


# What is particular to a rule.


@pytest.mark.parametrize("name", [*BY_VALUE, "mean"])
@given(vectors=VECTORS)
@settings(max_examples=50, deadline=None)
def test_rule_by_value_stays_within_min_and_max(name: str, vectors: list[np.ndarray]) -> None:
    got = vector_of(aggregated(SECTIONS[name], [state(v) for v in vectors]))
    stack = np.stack(vectors).astype(np.float64)
    assert (got >= stack.min(axis=0) - RESOLUTION).all()
    assert (got <= stack.max(axis=0) + RESOLUTION).all()


@pytest.mark.parametrize("name", BY_VALUE)
@given(
    honest=st.lists(hnp.arrays(np.float32, LENGTH, elements=FLOATS), min_size=4, max_size=6),
    hostile=hnp.arrays(np.float32, LENGTH, elements=st.floats(-(2.0**31), 2.0**31, width=32)),
)
@settings(max_examples=100, deadline=None)
def test_no_single_site_moves_a_value_beyond_the_honest_ones(
    name: str, honest: list[np.ndarray], hostile: np.ndarray
) -> None:
    updates = [{"w": vector} for vector in [*honest, hostile]]
    got = aggregated(SECTIONS[name], updates)["w"]
    assert (got >= np.min(honest, axis=0)).all()
    assert (got <= np.max(honest, axis=0)).all()


@given(st.integers(1, 3), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_rules_by_value_hold_against_as_many_as_they_say_and_no_more(
    num_hostile: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    honest = [{"w": rng.normal(size=3)} for _ in range(num_hostile + 1)]
    hostile = [{"w": rng.choice([-1e9, 1e9], size=3)} for _ in range(num_hostile)]
    low = np.min([update["w"] for update in honest], axis=0)
    high = np.max([update["w"] for update in honest], axis=0)
    for combine in (coordinate_median, lambda u: trimmed_mean(u, num_hostile)):
        got = combine([*hostile, *honest]).update["w"]
        assert ((got >= low) & (got <= high)).all()
        # One more of them, all on one side: the guarantee ends where it says.
        one_side = [{"w": np.full(3, 1e9)}] * (num_hostile + 1)
        assert (combine([*one_side, *honest[:num_hostile]]).update["w"] > high).all()


def test_median_and_trimmed_mean_by_hand() -> None:
    five = [{"w": np.array([x], np.float32)} for x in (3, -1, 10, 4, 5)]
    assert coordinate_median(five).update["w"].tolist() == [4]
    assert coordinate_median(five[:4]).update["w"].tolist() == [3.5]
    assert trimmed_mean(five, 1).update["w"].tolist() == [4]
    assert trimmed_mean(five, 2).update["w"].tolist() == [4]
    assert trimmed_mean(five[:4], 1).update["w"].tolist() == [3.5]
    counts = [{"n": np.array(x, np.int64)} for x in (1, 2, 2**31, 4, 7)]
    assert int(coordinate_median(counts).update["n"]) == 4
    assert int(trimmed_mean(counts, 1).update["n"]) == 4  # 13 / 3


def test_trimmed_mean_is_not_carried_out_of_its_values_by_rounding() -> None:
    # 0.1 + 0.1 + 0.1 is more than 0.3 in float64, and a third of it could be more than 0.1.
    for value in np.random.default_rng(0).normal(size=300):
        same = [{"w": np.array([value])}] * 5
        assert trimmed_mean(same, 1).update["w"][0] == value


def test_krum_by_hand() -> None:
    # On a line: squared distances 1 1 4 ..., n = 5, f = 1, the two nearest count.
    updates = [{"w": np.array([x], np.float32)} for x in (0, 1, 2, 4, 100)]
    assert squared_distances(updates)[0].tolist() == [0, 1, 4, 16, 10_000]
    assert scores(updates, 1) == [5, 2, 5, 13, 96**2 + 98**2]
    chosen = krum(updates, 1)
    assert chosen.update["w"].tolist() == [1]
    assert chosen.notes == {i: "not selected by krum" for i in (0, 2, 3, 4)}
    several = multi_krum(updates, 1)
    assert several.update["w"].tolist() == [1.75]
    assert several.notes == {4: "not selected by multi_krum"}
    assert multi_krum(updates, 1, 3).update["w"].tolist() == [1]


def test_krum_takes_the_first_by_name_of_equal_scores() -> None:
    values = {"d": 1.0, "a": 2.0, "c": 1.0, "b": 2.0, "e": 1.5}
    for order in itertools.permutations(values):
        updates = {site: {"w": np.array([values[site]])} for site in order}
        rule = folded(SECTIONS["krum"], updates)
        # a and b, c and d: each has one twin and e at the same distance.
        assert rule.apply()["w"].tolist() == [2.0]
        assert set(rule.notes) == {"b", "c", "d", "e"}


def test_multi_krum_leaves_out_an_update_that_is_far_from_all() -> None:
    rng = np.random.default_rng(11)
    for _ in range(50):
        updates = [{"w": rng.normal(size=8)} for _ in range(6)]
        updates.append({"w": rng.normal(size=8) * 50})
        assert 6 in multi_krum(updates, 1).notes


def test_geometric_median_by_hand() -> None:
    triangle = [
        {"w": np.array([math.cos(angle), math.sin(angle)]) + 5}
        for angle in (0, 2 * math.pi / 3, 4 * math.pi / 3)
    ]
    np.testing.assert_allclose(geometric_median(triangle).update["w"], [5, 5], atol=1e-4)
    # On a line it is the median, and the point of an obtuse angle (here 180 degrees) is its own.
    line = [{"w": np.array([x, 0.0])} for x in (0.0, 1.0, 10.0)]
    np.testing.assert_allclose(geometric_median(line).update["w"], [1, 0], atol=1e-3)
    # Of a square, the crossing of the diagonals; not the mean of three corners and a far one.
    kite = [{"w": np.array(p)} for p in ((0.0, 0.0), (1e6, 1e6), (1.0, 0.0), (0.0, 1.0))]
    np.testing.assert_allclose(geometric_median(kite).update["w"], [0.5, 0.5], atol=1e-3)


def test_geometric_median_of_a_majority_of_equal_updates_is_that_update() -> None:
    updates = [{"w": np.array([x, x], np.float32)} for x in (0.3, 0.3, 0.3, 7, -1e6)]
    assert geometric_median(updates).update["w"].tolist() == [np.float32(0.3)] * 2


@given(st.integers(0, 2**32 - 1), st.floats(1, 1e9), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_geometric_median_is_within_the_bound_of_its_breakdown(
    seed: int, length: float, num_hostile: int
) -> None:
    rng = np.random.default_rng(seed)
    count = 2 * num_hostile + 2
    honest = [rng.normal(size=5) for _ in range(count - num_hostile)]
    center = np.mean(honest, axis=0)
    radius = max(float(np.linalg.norm(vector - center)) for vector in honest)
    direction = rng.normal(size=5)
    hostile = [center + length * direction / np.linalg.norm(direction)] * num_hostile
    found = geometric_median([{"w": v} for v in [*honest, *hostile]]).update["w"]
    share = num_hostile / count
    bound = (1 - share) / math.sqrt(1 - 2 * share) * radius
    assert float(np.linalg.norm(found - center)) <= bound * 1.001


def test_geometric_median_notes_an_update_that_hardly_counts() -> None:
    rng = np.random.default_rng(2)
    updates = [{"w": rng.normal(size=20)} for _ in range(4)]
    updates.append({"w": np.full(20, 1e3)})
    notes = geometric_median(updates).notes
    assert list(notes) == [4]
    assert notes[4].endswith("in the geometric median, an equal one is 0.2")


@given(VECTORS, st.floats(0.01, 1e3))
@settings(max_examples=50, deadline=None)
def test_norm_bound_limits_length_and_keeps_direction(
    vectors: list[np.ndarray], max_norm: float
) -> None:
    for vector in vectors:
        rule = NormBounded(make_rule(SECTIONS["mean"], zeros()), max_norm)
        rule.add(state(vector), 1, "site")
        got = vector_of(rule.apply())
        norm = float(np.linalg.norm(vector.astype(np.float64)))
        assert float(np.linalg.norm(got)) <= max_norm * 1.00001
        expected = vector.astype(np.float64) * min(1, max_norm / max(norm, 1e-9))
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=RESOLUTION)
        if norm <= max_norm * 0.99999:
            assert rule.notes == {}
        elif norm > max_norm * 1.00001:
            assert rule.notes["site"].startswith("scaled from norm ")
            assert rule.notes["site"].endswith(f" to {max_norm:.4g}")


def test_norm_bound_and_rule_both_say_what_they_did() -> None:
    values = (0.0, 0.1, 0.2, 0.3, 50.0)
    updates = {f"site-{i}": {"w": np.array([x])} for i, x in enumerate(values)}
    rule = folded(SECTIONS["krum, bounded"], updates)
    rule.apply()
    assert rule.notes["site-4"] == "scaled from norm 50 to 1.5; not selected by krum"
    assert rule.notes["site-0"] == "not selected by krum"


def test_norm_bound_leaves_counters_and_zeros_alone() -> None:
    rule = NormBounded(make_rule(SECTIONS["mean"], zeros()), 0.5)
    update = {**zeros(), "steps": np.array(1_000, np.int64)}
    rule.add(update, 1, "site")
    assert rule.notes == {}
    assert int(rule.apply()["steps"]) == 1_000


def test_mean_weighs_its_updates() -> None:
    rule = make_rule(SECTIONS["mean"], {"w": np.zeros(1)})
    for site, weight, value in (("a", 1, 0.0), ("b", 3, 4.0)):
        rule.add({"w": np.array([value])}, weight, site)
    assert rule.apply()["w"].tolist() == [3]


@pytest.mark.parametrize(
    ("section", "least"),
    [
        (AggregationSection(), 1),
        (AggregationSection(rule="median", num_byzantine=2), 5),
        (AggregationSection(rule="trimmed_mean", num_byzantine=2), 5),
        (AggregationSection(rule="geometric_median", num_byzantine=3), 7),
        (AggregationSection(rule="krum", num_byzantine=1), 5),
        (AggregationSection(rule="multi_krum", num_byzantine=2), 7),
        (AggregationSection(rule="multi_krum", num_byzantine=1, num_selected=6), 7),
    ],
)
def test_min_updates_is_what_the_guarantee_needs(section: AggregationSection, least: int) -> None:
    assert section.min_updates == least
