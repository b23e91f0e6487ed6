"""Updates made small: what comes back, how far off it is, and what is refused on the way."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from medfed.common import compression, messages
from medfed.common.compression import INDICES, LARGEST, SCALES, VALUES, decode, encode, template
from medfed.common.errors import UpdateError
from medfed.common.messages import TrainReply
from medfed.common.state_dicts import StateDict
from medfed.common.study import CompressionSection
from medfed.server.screening import screen_size, screen_update

FLOATS = arrays.arrays(
    np.float32,
    arrays.array_shapes(max_dims=3, max_side=6),
    elements=st.floats(-1e6, 1e6, width=32),
)
PARAMETERS = ("first.weight", "last.bias")


def section(update: str, **settings: Any) -> CompressionSection:
    return CompressionSection.model_validate({"update": update, **settings})


def state(first: Any, last: Any) -> StateDict:
    """An update with two parameters, statistics of a BatchNorm and its counter."""
    return {
        "first.weight": np.asarray(first, np.float32),
        "norm.running_var": np.array([1.5, -0.25], np.float32),
        "norm.num_batches_tracked": np.array(7),
        "last.bias": np.asarray(last, np.float32),
    }


def arrived(update: StateDict, how: CompressionSection) -> StateDict:
    """What the server has of it: packed, unpacked, screened and decoded."""
    sent = encode(update, PARAMETERS, how)
    return received(messages.unpack_arrays(messages.pack_arrays(sent)), update, how)


def received(sent: StateDict, weights: StateDict, how: CompressionSection) -> StateDict:
    """As the server's strategy does it."""
    screen_update(sent, template(weights, PARAMETERS, how))
    return decode(sent, weights, PARAMETERS, how)


@pytest.mark.parametrize("update", ["none", "fp16", "int8", "top_k"])
@settings(deadline=None)
@given(first=FLOATS, last=FLOATS)
def test_what_arrives_has_the_model_s_names_types_and_shapes_and_no_buffer_is_touched(
    update: str, first: Any, last: Any
) -> None:
    whole = state(np.clip(first, -6e4, 6e4), np.clip(last, -6e4, 6e4))
    found = arrived(whole, section(update))
    assert list(found) == list(whole)
    for name, array in whole.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        if name not in PARAMETERS:
            np.testing.assert_array_equal(found[name], array)


@settings(deadline=None)
@given(first=FLOATS, last=FLOATS)
def test_int8_is_off_by_half_a_level_of_its_array_at_most(first: Any, last: Any) -> None:
    whole = state(first, last)
    found = arrived(whole, section("int8"))
    for name in PARAMETERS:
        level = float(np.abs(whole[name]).max(initial=0)) / 127
        # A level of numbers near float32's least is rounded itself.
        assert np.abs(found[name] - whole[name]).max() <= level * 0.5 * (1 + 1e-4) + 1e-40


@settings(deadline=None)
@given(first=FLOATS, last=FLOATS, share=st.sampled_from([0.01, 0.1, 0.5, 1.0]))
def test_top_k_sends_the_largest_and_nothing_else(first: Any, last: Any, share: float) -> None:
    whole = state(first, last)
    found = arrived(whole, section("top_k", top_k_fraction=share))
    flat, sent = (np.concatenate([s[n].reshape(-1) for n in PARAMETERS]) for s in (whole, found))
    exact = Fraction(share).limit_denominator(1000) * len(flat)
    kept = max(1, -(-exact.numerator // exact.denominator))
    order = np.lexsort((np.arange(len(flat)), -np.abs(flat)))[:kept]
    expected = np.zeros_like(flat)
    expected[order] = flat[order]
    np.testing.assert_array_equal(sent, expected)


def test_rounding_to_the_nearest_is_the_contraction_that_error_feedback_needs() -> None:
    # Karimireddy et al. 2019, assumption A. One large value among many small ones: rounding by
    # chance is off by more than there is, so what is owed would grow from round to round.
    values = np.full(1_000_000, 1e-3, np.float32)
    values[0] = 1.0
    whole = state(values, [0.0])

    def error(sent: StateDict, how: CompressionSection) -> float:
        found = decode(sent, whole, PARAMETERS, how)["first.weight"]
        return float(np.linalg.norm(found - values) / np.linalg.norm(values))

    for how in (section("int8"), section("top_k", top_k_fraction=0.001)):
        assert error(encode(whole, PARAMETERS, how), how) < 1
    by_chance = encode(whole, PARAMETERS, section("int8"), np.random.default_rng(1))
    assert error(by_chance, section("int8")) > 1.5


def test_rounding_by_chance_is_right_on_average_and_to_the_nearest_is_not() -> None:
    # Half of the array at 0.3 of a level: to the nearest all of it is lost.
    values = np.full(40_000, 0.3, np.float32)
    values[0] = 127.0
    whole = state(values, [0.0])
    how = section("int8", error_feedback=False)
    sent = encode(whole, PARAMETERS, how, np.random.default_rng(4))
    by_chance = decode(sent, whole, PARAMETERS, how)["first.weight"][1:]
    # Standard error of the mean of Bernoulli(0.3) over 40,000: 0.0023.
    assert abs(float(by_chance.mean()) - 0.3) < 0.01
    assert float(arrived(whole, how)["first.weight"][1:].mean()) == 0.0
    again = encode(whole, PARAMETERS, how, np.random.default_rng(4))
    np.testing.assert_array_equal(again["first.weight"], sent["first.weight"])


def test_error_feedback_delivers_in_the_end_what_was_not_sent_at_first() -> None:
    # Stich's memory: what arrived and what is owed add up to all updates.
    rng = np.random.default_rng(2)
    for how in (section("top_k", top_k_fraction=0.05), section("int8")):
        owed = np.zeros(200, np.float64)
        sums, delivered = np.zeros(200), np.zeros(200)
        for _ in range(60):
            update = rng.normal(size=200).astype(np.float32)
            sums += update
            whole = state(update + owed.astype(np.float32), [0.0])
            found = arrived(whole, how)["first.weight"]
            owed = whole["first.weight"].astype(np.float64) - found
            delivered += found
        np.testing.assert_allclose(delivered + owed, sums, atol=1e-3)
        assert np.abs(owed).max() < np.abs(sums).max() + 20


@pytest.mark.parametrize(
    ("update", "most"), [("none", 4.2), ("fp16", 2.2), ("int8", 1.2), ("top_k", 0.2)]
)
def test_a_packed_update_is_as_small_as_it_says(update: str, most: float) -> None:
    whole = state(np.random.default_rng(0).normal(size=(100, 100)), np.zeros(10))
    how = section(update)
    sent = encode(whole, PARAMETERS, how)
    reply = TrainReply(
        site="site-1", update=sent, num_examples=1, loss=0.0, epsilon=None, noise="none",
        ledger_head="",
    )  # fmt: skip
    num_bytes = messages.num_bytes(messages.pack_train_reply(reply))
    assert num_bytes < most * 10_010 + 700
    screen_size(num_bytes, template(whole, PARAMETERS, how))
    if update == "top_k":
        with pytest.raises(UpdateError, match="at most"):
            screen_size(200_000, template(whole, PARAMETERS, how))


def test_a_template_takes_no_memory_and_has_the_sizes_of_what_travels() -> None:
    huge = {"first.weight": np.broadcast_to(np.zeros((), np.float32), (2**20, 2**10))}
    found = template(huge, PARAMETERS, section("int8"))
    assert found["first.weight"].nbytes == 2**30
    assert found["first.weight"].strides == (0, 0)


WHOLE = state([[1.0, -2.0], [0.5, 0.0]], [3.0, 0.1])


@pytest.mark.parametrize(
    ("update", "change", "fragment"),
    [
        ("fp16", {"first.weight": np.zeros((2, 2), np.float32)}, "expected float16"),
        ("fp16", {"first.weight": np.full((2, 2), np.inf, np.float16)}, "NaN or infinite"),
        ("int8", {"first.weight": np.zeros((2, 3), np.int8)}, "shape"),
        ("int8", {"first.weight": np.zeros((2, 2), np.uint8)}, "expected int8"),
        ("int8", {"first.weight": np.full((2, 2), -128, np.int8)}, "-128"),
        ("int8", {SCALES: np.array([np.nan, 1], np.float32)}, "NaN or infinite"),
        ("int8", {SCALES: np.array([-1, 1], np.float32)}, "scales from 0"),
        ("int8", {SCALES: np.array([1e38, 1], np.float32)}, "scales from 0"),
        ("int8", {SCALES: np.ones(3, np.float32)}, "shape"),
        ("int8", {SCALES: None}, "missing"),
        ("top_k", {INDICES: np.array([1, 1, 2], np.uint32)}, "each once"),
        ("top_k", {INDICES: np.array([2, 1, 0], np.uint32)}, "rising"),
        ("top_k", {INDICES: np.array([0, 1, 6], np.uint32)}, "below 6"),
        ("top_k", {INDICES: np.array([0, 1, 2**32 - 1], np.uint32)}, "below 6"),
        ("top_k", {INDICES: np.array([-1, 0, 1], np.int64)}, "expected uint32"),
        ("top_k", {INDICES: np.zeros(2, np.uint32)}, "shape"),
        ("top_k", {VALUES: np.array([1, np.nan, 2], np.float32)}, "NaN or infinite"),
        ("top_k", {VALUES: np.ones(2**20, np.float32)}, "shape"),
        ("top_k", {"first.weight": np.zeros((2, 2), np.float32)}, "unknown"),
        ("none", {SCALES: np.ones(2, np.float32)}, "unknown"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_what_no_site_would_send_is_rejected_with_a_reason(
    update: str, change: dict[str, Any], fragment: str
) -> None:
    how = section(update, top_k_fraction=0.5)
    sent = encode(WHOLE, PARAMETERS, how)
    assert decode(sent, WHOLE, PARAMETERS, how).keys() == WHOLE.keys()
    wrong = {name: array for name, array in {**sent, **change}.items() if array is not None}
    with pytest.raises(UpdateError, match=fragment):
        received(wrong, WHOLE, how)


@pytest.mark.parametrize("update", ["fp16", "int8", "top_k"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_a_diverged_update_is_rejected_as_one_and_not_hidden(update: str, value: float) -> None:
    how = section(update, top_k_fraction=0.1)
    first = np.ones((8, 8), np.float32)
    first[5, 5] = value
    sent = encode(state(first, [0.0]), PARAMETERS, how)
    try:
        found = received(sent, state(first, [0.0]), how)
    except UpdateError:
        return
    # Finite but absurd: the rules refuse it, as they do without compression.
    assert value == 3e38
    assert np.abs(found["first.weight"]).max() > LARGEST


def test_equal_values_are_chosen_by_position_wherever_a_partition_leaves_them() -> None:
    whole = state(np.tile([2.0, -2.0, 1.0], 50), [2.0])
    sent = encode(whole, PARAMETERS, section("top_k", top_k_fraction=0.1))
    assert sent[INDICES].tolist() == [i for i in range(150) if i % 3 < 2][:16]


def test_names_of_what_was_compressed_show_in_what_travels() -> None:
    for update in ("fp16", "int8", "top_k"):
        sent = encode(WHOLE, PARAMETERS, section(update))
        assert compression.compressed_names(sent, WHOLE) == set(PARAMETERS)
    assert compression.compressed_names(WHOLE, WHOLE) == set()
