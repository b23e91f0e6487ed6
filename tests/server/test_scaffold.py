"""SCAFFOLD at the server: against a loop in which sites keep their variates, as in the paper."""

from collections.abc import Sequence

import numpy as np
import pytest

from medfed.common.errors import UpdateError
from medfed.common.state_dicts import StateDict
from medfed.server.aggregation.scaffold import Variates

# Sites of quadratics a_i / 2 (x - t_i)^2, K_i steps each: one more step is not one more vote.
CURVES, TARGETS, STEPS, ETA = (0.5, 2.0, 1.0), (1.0, -3.0, 4.0), (7, 2, 4), 0.1
MINIMUM = float(np.dot(CURVES, TARGETS) / np.sum(CURVES))


def local(x: float, site: int, correction: float) -> float:
    y = x
    for _ in range(STEPS[site]):
        y -= ETA * (CURVES[site] * (y - TARGETS[site]) + correction)
    return y


def twin(rounds: Sequence[Sequence[int]], x: float) -> tuple[list[float], list[float], float]:
    """Algorithm 1 of the paper with option II: each site keeps its c_i."""
    c, own, path = 0.0, [0.0, 0.0, 0.0], []
    for sampled in rounds:
        ends, changes = [], []
        for site in sampled:
            y = local(x, site, c - own[site])
            new = own[site] - c + (x - y) / (STEPS[site] * ETA)
            ends.append(y - x)
            changes.append(new - own[site])
            own[site] = new
        x += sum(ends) / len(ends)
        c += sum(changes) / 3
        path.append(x)
    return path, own, c


def at_server(
    rounds: Sequence[Sequence[int]], x: float, dtype: str = "float64"
) -> tuple[list[float], Variates]:
    """The same, where the server keeps everything and is interrupted after every round."""
    states: dict[str, StateDict] = {}
    path = []
    for sampled in rounds:
        variates = Variates(["w"], states)
        variates.begin(["0", "1", "2"])
        weights: StateDict = {"w": np.array([x], dtype=dtype)}
        total = 0.0
        for site in sampled:
            sent = variates.correction(str(site), weights)["w"]
            assert sent.dtype == dtype
            update: StateDict = {"w": np.array([local(x, site, float(sent[0])) - x], dtype=dtype)}
            new = variates.next_of(str(site), update, num_steps=STEPS[site], learning_rate=ETA)
            variates.note(str(site), new)
            total += float(update["w"][0])
        variates.commit()
        states = variates.states()
        x += total / len(sampled)
        path.append(x)
    return path, variates


SAMPLED = [[0, 1, 2], [0, 2], [1], [2, 1], [0, 1, 2], [0]] * 5


def test_variates_at_the_server_are_those_that_sites_would_keep() -> None:
    path, own, c = twin(SAMPLED, 5.0)
    found, variates = at_server(SAMPLED, 5.0)
    np.testing.assert_allclose(found, path, rtol=1e-11)
    states = variates.states()
    for site in range(3):
        np.testing.assert_allclose(states[f"site {site}"]["w"], own[site], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(states["sum"]["w"] / 3, c, rtol=1e-10, atol=1e-12)


def test_it_ends_at_the_minimum_of_all_sites_with_unequal_steps_and_fedavg_does_not() -> None:
    found, variates = at_server([[0, 1, 2]] * 300, 5.0)
    assert found[-1] == pytest.approx(MINIMUM, abs=1e-10)
    x = 5.0
    for _ in range(300):
        x += sum(local(x, site, 0.0) - x for site in range(3)) / 3
    assert abs(x - MINIMUM) > 0.05
    # There each variate is the site's gradient, and they add up to zero.
    for site in range(3):
        gradient = CURVES[site] * (MINIMUM - TARGETS[site])
        np.testing.assert_allclose(variates.states()[f"site {site}"]["w"], gradient, rtol=1e-6)


def test_float32_weights_have_float32_variates_and_a_float64_sum() -> None:
    _, variates = at_server([[0, 1, 2], [1]], 5.0, "float32")
    states = variates.states()
    assert list(states) == ["sum", "site 0", "site 1", "site 2"]
    assert [state["w"].dtype for state in states.values()] == ["float64"] + ["float32"] * 3
    total = sum(states[f"site {site}"]["w"].astype(np.float64) for site in range(3))
    np.testing.assert_allclose(states["sum"]["w"], total, rtol=1e-12)


def test_order_of_arrival_does_not_show() -> None:
    rng = np.random.default_rng(3)
    updates = {name: {"w": rng.normal(size=9).astype(np.float32)} for name in "abcde"}
    results = []
    for order in ("abcde", "edcba", "cadbe"):
        variates = Variates(["w"], {})
        variates.begin("abcde")
        for name in order:
            update: StateDict = {**updates[name]}
            variates.note(name, variates.next_of(name, update, num_steps=3, learning_rate=0.1))
        variates.commit()
        results.append({n: s["w"].tobytes() for n, s in variates.states().items()})
    assert results[0] == results[1] == results[2]


def test_a_round_that_does_not_count_changes_nothing() -> None:
    variates = Variates(["w"], {})
    update: StateDict = {"w": np.array([1.0])}
    variates.begin(["a"])
    variates.note("a", variates.next_of("a", update, num_steps=1, learning_rate=1.0))
    variates.begin(["a"])
    variates.commit()
    assert variates.states() == {}


def test_sites_that_never_trained_count_as_zero() -> None:
    variates = Variates(["w"], {})
    variates.begin(["a", "b", "c", "d"])
    update: StateDict = {"w": np.array([-8.0])}
    variates.note("a", variates.next_of("a", update, num_steps=2, learning_rate=1.0))
    variates.commit()
    variates.begin(["b", "c", "d"])  # a has left; what it drifted by is still in the mean
    assert variates.correction("b", update)["w"] == [1.0]
    assert variates.correction("a", update)["w"] == [-3.0]


def test_an_update_whose_mean_gradient_is_infinite_is_refused() -> None:
    variates = Variates(["w"], {})
    variates.begin(["a"])
    update: StateDict = {"w": np.array([3e38], dtype=np.float32)}
    with pytest.raises(UpdateError, match="infinite"):
        variates.next_of("a", update, num_steps=1, learning_rate=0.01)
