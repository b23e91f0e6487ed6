"""FedNova: effective steps as the paper counts them, the fixed point on quadratics, any order."""

import itertools

import numpy as np
import pytest
import torch

from medfed.common.errors import UpdateError
from medfed.common.state_dicts import StateDict
from medfed.server.aggregation.fedavg import FedAvg
from medfed.server.aggregation.fednova import FedNova, effective_steps


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10])
def test_effective_steps_are_how_far_torch_goes_by_gradients_of_one(
    num_steps: int, momentum: float
) -> None:
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=1.0, momentum=momentum)
    for _ in range(num_steps):
        w.grad = torch.ones_like(w)
        optimizer.step()
    assert effective_steps(num_steps, momentum) == pytest.approx(-w.item(), rel=1e-12)


# Two sites of a weighted sum of quadratics a_i / 2 (x - t_i)^2, 3 : 1, with 7 and 2 steps.
CURVES, TARGETS, WEIGHTS, STEPS = (0.5, 2.0), (1.0, -3.0), (3, 1), (7, 2)


def local_update(x: float, site: int, eta: float) -> float:
    y = x
    for _ in range(STEPS[site]):
        y -= eta * CURVES[site] * (y - TARGETS[site])
    return y - x


def rounds(kind: str, eta: float, number: int) -> float:
    weights: StateDict = {"w": np.array([5.0])}
    steps = {str(site): effective_steps(count, 0.0) for site, count in enumerate(STEPS)}
    for _ in range(number):
        rule = FedNova(weights, {"w"}, steps) if kind == "fednova" else FedAvg(weights)
        for site in (0, 1):
            update: StateDict = {"w": np.array([local_update(float(weights["w"][0]), site, eta)])}
            rule.add(update, WEIGHTS[site], str(site))
        weights = rule.apply()
    return float(weights["w"][0])


def test_one_round_is_the_paper_s_equation_by_hand() -> None:
    x, eta = 5.0, 0.1
    directions = [local_update(x, site, eta) / STEPS[site] for site in (0, 1)]
    tau_eff = (3 * 7 + 1 * 2) / 4
    expected = x + tau_eff * (3 * directions[0] + directions[1]) / 4
    assert rounds("fednova", eta, 1) == pytest.approx(expected, rel=1e-14)


def test_unequal_steps_reach_the_objective_s_minimum_where_fedavg_does_not() -> None:
    # The minimum of sum p_i a_i / 2 (x - t_i)^2; FedAvg's fixed point has p_i tau_i for p_i.
    def minimum(shares: tuple[float, float]) -> float:
        pulls = [share * curve for share, curve in zip(shares, CURVES, strict=True)]
        return sum(p * t for p, t in zip(pulls, TARGETS, strict=True)) / sum(pulls)

    eta = 1e-3
    assert rounds("fednova", eta, 4000) == pytest.approx(minimum((3, 1)), abs=0.02)
    assert rounds("fedavg", eta, 4000) == pytest.approx(minimum((3 * 7, 1 * 2)), abs=0.02)
    assert abs(minimum((3, 1)) - minimum((21, 2))) > 1


def example_updates() -> dict[str, StateDict]:
    rng = np.random.default_rng(4)
    return {
        name: {
            "w": rng.normal(size=(3, 4)).astype(np.float32),
            "running_mean": rng.normal(size=4).astype(np.float32),
            "count": np.array(rng.integers(1, 9), dtype=np.int64),
        }
        for name in "abcd"
    }


def test_order_does_not_show_and_what_has_no_gradient_is_averaged() -> None:
    updates = example_updates()
    weights: StateDict = {name: np.zeros_like(array) for name, array in updates["a"].items()}
    steps = {"a": 3.0, "b": 17.3, "c": 1.0, "d": 250.0}
    counts = {"a": 20, "b": 7, "c": 311, "d": 1}
    average = FedAvg(weights)
    for site in "abcd":
        average.add(updates[site], counts[site], site)
    results = []
    for order in itertools.permutations("abcd"):
        rule = FedNova(weights, {"w"}, steps)
        for site in order:
            rule.add(updates[site], counts[site], site)
        assert rule.num_updates == 4
        results.append(rule.apply())
    first, plain = results[0], average.apply()
    for result in results:
        assert {n: a.tobytes() for n, a in result.items()} == {
            n: a.tobytes() for n, a in first.items()
        }
    assert first["running_mean"].tobytes() == plain["running_mean"].tobytes()
    assert (first["count"], first["count"].dtype) == (plain["count"], np.int64)
    assert not np.allclose(first["w"], plain["w"])
    assert first["w"].dtype == np.float32


def test_equal_steps_are_fedavg() -> None:
    updates = example_updates()
    weights: StateDict = {name: np.ones_like(array) for name, array in updates["a"].items()}
    average, rule = FedAvg(weights), FedNova(weights, {"w"}, dict.fromkeys("abcd", 6.0))
    for number, site in enumerate("abcd", start=1):
        average.add(updates[site], number, site)
        rule.add(updates[site], number, site)
    np.testing.assert_allclose(rule.apply()["w"], average.apply()["w"], rtol=1e-6)


def test_nothing_to_average_is_an_error() -> None:
    with pytest.raises(UpdateError, match="at least one update"):
        FedNova({"w": np.zeros(1)}, {"w"}, {}).apply()
