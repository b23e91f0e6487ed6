"""FedOpt: the server's optimisers against loops on single numbers, and what they leave alone."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from medfed.common.state_dicts import StateDict
from medfed.common.study import FederationSection
from medfed.server.aggregation.fedopt import Moments, server_step

NAMES = {"w", "scalar"}
ALGORITHMS = ["fedavgm", "fedadam", "fedyogi", "fedadagrad"]


def section(algorithm: str, **numbers: float) -> FederationSection:
    return FederationSection.model_validate({"algorithm": algorithm, **numbers})


def run(this: FederationSection, deltas: list[float], start: float) -> list[float]:
    """Steps on one weight of float64, by `server_step`."""
    weights: StateDict = {"w": np.array([start])}
    moments: Moments = {}
    path = []
    for delta in deltas:
        combined = {"w": weights["w"] + delta}
        weights, moments = server_step(this, weights, combined, moments, NAMES)
        path.append(float(weights["w"][0]))
    return path


def adaptive_twin(
    algorithm: str, deltas: list[float], x: float, n: dict[str, float]
) -> list[float]:
    """Algorithm 2 of Reddi et al., on one weight, with Python's floats."""
    m, v, path = 0.0, n["tau"] ** 2, []
    for delta in deltas:
        m = n["beta1"] * m + (1 - n["beta1"]) * delta
        if algorithm == "fedadagrad":
            v += delta * delta
        elif algorithm == "fedadam":
            v = n["beta2"] * v + (1 - n["beta2"]) * delta * delta
        elif delta * delta > v:
            v += (1 - n["beta2"]) * delta * delta
        elif delta * delta < v:
            v -= (1 - n["beta2"]) * delta * delta
        x += n["eta"] * m / (math.sqrt(v) + n["tau"])
        path.append(x)
    return path


@pytest.mark.parametrize("algorithm", ["fedadam", "fedyogi", "fedadagrad"])
def test_adaptive_steps_are_those_of_the_papers_algorithm(algorithm: str) -> None:
    deltas = [float(d) for d in np.random.default_rng(1).normal(scale=0.3, size=20)]
    numbers = {"eta": 0.07, "beta1": 0.8, "beta2": 0.9, "tau": 0.02}
    own: dict[str, Any] = {"server_learning_rate": 0.07, "server_momentum": 0.8, "server_tau": 0.02}
    if algorithm != "fedadagrad":
        own["server_beta2"] = 0.9
    found = run(section(algorithm, **own), deltas, 0.5)
    np.testing.assert_allclose(found, adaptive_twin(algorithm, deltas, 0.5, numbers), rtol=1e-12)


def test_momentum_of_a_constant_update_is_a_geometric_series() -> None:
    this = section("fedavgm", server_learning_rate=0.5, server_momentum=0.9)
    path = run(this, [0.25] * 30, 0.0)
    steps = [path[0], *(b - a for a, b in pairwise(path))]
    expected = [0.5 * 0.25 * (1 - 0.9**t) / (1 - 0.9) for t in range(1, 31)]
    np.testing.assert_allclose(steps, expected, rtol=1e-11)


def test_first_adaptive_step_is_what_the_paper_writes() -> None:
    # v = beta2 tau**2 + (1 - beta2) delta**2 after one round, m = (1 - beta1) delta.
    [x] = run(section("fedadam"), [0.4], 0.0)
    v = 0.99 * 1e-6 + 0.01 * 0.16
    assert x == pytest.approx(0.01 * 0.1 * 0.4 / (math.sqrt(v) + 1e-3), rel=1e-12)


def test_no_momentum_and_rate_one_is_fedavg_bit_for_bit() -> None:
    rng = np.random.default_rng(2)
    weights: StateDict = {"w": rng.normal(size=(50, 40)).astype(np.float32)}
    combined: StateDict = {"w": weights["w"] + rng.normal(size=(50, 40)).astype(np.float32) * 1e-2}
    new, _ = server_step(section("fedavgm", server_momentum=0.0), weights, combined, {}, NAMES)
    assert new["w"].tobytes() == combined["w"].tobytes()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_types_stay_and_what_has_no_gradient_is_averaged(algorithm: str) -> None:
    weights: StateDict = {
        "w": np.ones((2, 3), dtype=np.float32),
        "scalar": np.array(1.0, dtype=np.float16),
        "running_var": np.ones(3, dtype=np.float32),
        "steps": np.array(4, dtype=np.int64),
    }
    combined: StateDict = {
        "w": weights["w"] - np.float32(0.5),
        "scalar": np.array(0.5, dtype=np.float16),
        "running_var": np.full(3, 0.1, dtype=np.float32),
        "steps": np.array(9, dtype=np.int64),
    }
    moments: Moments = {}
    for _ in range(3):
        new, moments = server_step(section(algorithm), weights, combined, moments, NAMES)
        assert list(new) == list(weights)
        assert [a.dtype for a in new.values()] == [a.dtype for a in weights.values()]
        assert [a.shape for a in new.values()] == [a.shape for a in weights.values()]
        assert new["running_var"].tobytes() == combined["running_var"].tobytes()
        assert new["steps"] == 9
        assert (new["w"] < weights["w"]).all()
    assert all(a.dtype == np.float64 for state in moments.values() for a in state.values())
    assert all(set(state) == NAMES for state in moments.values())


def test_step_leaves_what_it_was_given_alone() -> None:
    weights: StateDict = {"w": np.zeros(2)}
    combined: StateDict = {"w": np.ones(2)}
    _, moments = server_step(section("fedadam"), weights, combined, {}, NAMES)
    before = {name: state["w"].copy() for name, state in moments.items()}
    again, _ = server_step(section("fedadam"), weights, combined, moments, NAMES)
    twice, _ = server_step(section("fedadam"), weights, combined, moments, NAMES)
    assert again["w"].tobytes() == twice["w"].tobytes()
    assert all((moments[name]["w"] == array).all() for name, array in before.items())
    assert (weights["w"] == 0).all()
    assert (combined["w"] == 1).all()
