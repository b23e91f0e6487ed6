"""q-FedAvg: algorithm 2 by a plain loop, any order, and what a site may state."""

import itertools

import numpy as np
import pytest

from medfed.common.errors import UpdateError
from medfed.common.state_dicts import StateDict
from medfed.server.aggregation.fedavg import FedAvg
from medfed.server.aggregation.qfedavg import QFedAvg
from medfed.server.screening import screen_loss

RATE = 0.05
LOSSES = {"a": 0.3, "b": 2.0, "c": 1.1}


def weights() -> StateDict:
    rng = np.random.default_rng(1)
    return {
        "w": rng.normal(size=(3, 4)),
        "bias": rng.normal(size=3),
        "running_mean": rng.normal(size=3),
        "count": np.array(5, dtype=np.int64),
    }


def updates() -> dict[str, StateDict]:
    rng = np.random.default_rng(2)
    return {
        site: {
            "w": rng.normal(size=(3, 4)),
            "bias": rng.normal(size=3),
            "running_mean": rng.normal(size=3),
            "count": np.array(number, dtype=np.int64),
        }
        for number, site in enumerate("abc")
    }


def combined(q: float, counts: dict[str, int], order: str = "abc") -> StateDict:
    rule = QFedAvg(weights(), {"w", "bias"}, LOSSES, q=q, learning_rate=RATE)
    for site in order:
        rule.add(updates()[site], counts[site], site)
    assert rule.num_updates == 3
    return rule.apply()


@pytest.mark.parametrize("q", [0.0, 0.1, 1.0, 5.0])
def test_a_round_is_algorithm_2_by_a_plain_loop(q: float) -> None:
    start, big_l = weights(), 1 / RATE
    names = ("w", "bias")
    numerator = {name: np.zeros(start[name].shape) for name in names}
    denominator = 0.0
    for site, update in updates().items():
        f = LOSSES[site] + 1e-10
        # Delta w_k = L (w - w_k), with w_k the site's weights after its steps.
        delta = {name: big_l * np.subtract(0, update[name]) for name in names}
        norm = sum(float((part**2).sum()) for part in delta.values())
        for name in names:
            numerator[name] += f**q * delta[name]
        denominator += q * f ** (q - 1) * norm + big_l * f**q
    found = combined(q, dict.fromkeys("abc", 1))
    for name in names:
        expected = start[name] - numerator[name] / denominator
        np.testing.assert_allclose(found[name], expected, rtol=1e-12)


def test_q_of_zero_is_fedavg_and_what_has_no_gradient_always_is() -> None:
    counts = {"a": 20, "b": 7, "c": 300}
    plain = FedAvg(weights())
    for site, update in updates().items():
        plain.add(update, counts[site], site)
    expected = plain.apply()
    for q in (0.0, 2.0):
        found = combined(q, counts)
        for name in ("running_mean", "count"):
            assert found[name].tobytes() == expected[name].tobytes()
            assert found[name].dtype == expected[name].dtype
    np.testing.assert_allclose(combined(0.0, counts)["w"], expected["w"], rtol=1e-12)


def test_order_does_not_show() -> None:
    counts = {"a": 20, "b": 7, "c": 300}
    results = [combined(1.5, counts, "".join(order)) for order in itertools.permutations("abc")]
    for result in results:
        assert {n: a.tobytes() for n, a in result.items()} == {
            n: a.tobytes() for n, a in results[0].items()
        }


def test_the_site_with_the_highest_loss_is_followed_most() -> None:
    def shares(q: float) -> list[float]:
        start: StateDict = {"w": np.zeros(3)}
        rule = QFedAvg(start, {"w"}, LOSSES, q=q, learning_rate=RATE)
        for number, site in enumerate("abc"):
            rule.add({"w": np.eye(3)[number]}, 1, site)
        moved = np.asarray(rule.apply()["w"], dtype=np.float64)
        return [float(share) for share in moved / moved.sum()]

    assert shares(0) == pytest.approx([1 / 3] * 3)
    assert shares(1) == pytest.approx([0.3 / 3.4, 2.0 / 3.4, 1.1 / 3.4])
    assert shares(4)[1] > shares(1)[1]


def test_a_loss_of_zero_counts_for_nothing_and_breaks_nothing() -> None:
    start: StateDict = {"w": np.ones(2)}
    rule = QFedAvg(start, {"w"}, {"a": 0.0, "b": 1.0}, q=0.5, learning_rate=1.0)
    rule.add({"w": np.array([1.0, 0.0])}, 1, "a")
    rule.add({"w": np.array([0.0, 1.0])}, 1, "b")
    found = rule.apply()["w"]
    assert np.isfinite(found).all()
    assert found[0] == pytest.approx(1.0, abs=1e-4)


def test_a_loss_that_cannot_be_counted_by_adds_nothing() -> None:
    rule = QFedAvg({"w": np.ones(2)}, {"w"}, {"a": 1e300, "b": 1.0}, q=2.0, learning_rate=0.1)
    with pytest.raises(UpdateError, match="counted by"):
        rule.add({"w": np.ones(2)}, 1, "a")
    assert rule.num_updates == 0
    with pytest.raises(UpdateError, match="at least one"):
        rule.apply()


@pytest.mark.parametrize("loss", [None, -0.1, float("nan"), float("inf")])
def test_a_site_must_state_a_loss(loss: float | None) -> None:
    with pytest.raises(UpdateError, match="Expected a loss >= 0"):
        screen_loss(loss)
    assert screen_loss(0.0) == 0.0
