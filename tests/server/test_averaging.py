"""The moving average of weights is the one that its formula says, from the first round on."""

import numpy as np
import pytest

from medfed.common.state_dicts import StateDict
from medfed.server.aggregation.averaging import as_weights, moving_average


def rounds(count: int) -> list[StateDict]:
    rng = np.random.default_rng(0)
    return [
        {"w": rng.normal(size=(2, 2)).astype(np.float32), "n": np.array(number)}
        for number in range(count)
    ]


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_average_is_the_bias_corrected_sum(decay: float) -> None:
    average = None
    history = rounds(12)
    for number, weights in enumerate(history, start=1):
        average = moving_average(average, weights, decay, number)
        # In its closed form: shares of past rounds fall off by `decay`, and add up to one.
        shares = np.array([decay**age for age in reversed(range(number))])
        shares /= shares.sum()
        expected = sum(s * w["w"].astype(np.float64) for s, w in zip(shares, history, strict=False))
        np.testing.assert_allclose(average["w"], expected, rtol=1e-12, atol=1e-15)


def test_average_of_equal_weights_is_these_weights() -> None:
    weights = rounds(1)[0]
    average = None
    for number in range(1, 6):
        average = moving_average(average, weights, 0.9, number)
        published = as_weights(average, weights)
        assert published["w"].tobytes() == weights["w"].tobytes()


def test_published_average_keeps_types_and_counters() -> None:
    first, last = rounds(2)
    average = moving_average(moving_average(None, first, 0.5, 1), last, 0.5, 2)
    published = as_weights(average, last)
    assert published["w"].dtype == np.float32
    assert (published["n"].dtype, int(published["n"])) == (last["n"].dtype, 1)
