"""Ditto's and APFL's personal models against plain loops in NumPy, and what they leave alone."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from medfed.client.apfl import ALPHA, ApflModel, first_alpha, mixture_of
from medfed.client.ditto import DittoModel
from medfed.client.plain_steps import PlainSteps
from medfed.client.training import Beside
from medfed.common.models import set_training_mode, trained_parameters, trained_state
from medfed.common.state_dicts import StateDict, digest, write_state
from medfed.common.study import StudyConfig
from medfed.common.tasks import Batch, make_task

CPU = torch.device("cpu")
RATE, MOMENTUM = 0.2, 0.5
Floats = npt.NDArray[np.float64]


def study_with(algorithm: str, **numbers: float) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "study": {"name": "personal"},
            "task": {"classes": ["a", "b", "c"]},
            "training": {"local_steps": 1, "learning_rate": RATE, "momentum": MOMENTUM},
            "federation": {"algorithm": algorithm, **numbers},
            "privacy": {"unit": "none"},
        }
    )


def state(seed: int) -> StateDict:
    rng = np.random.default_rng(seed)
    return {"weight": rng.normal(size=(3, 5)), "bias": rng.normal(size=3)}


def batches() -> list[tuple[Floats, npt.NDArray[np.int64]]]:
    rng = np.random.default_rng(9)
    return [(rng.normal(size=(4, 5)), rng.integers(3, size=4)) for _ in range(6)]


def gradient(w: StateDict, x: Floats, y: npt.NDArray[np.int64]) -> StateDict:
    """Of the mean cross entropy of a linear classifier."""
    logits = x @ w["weight"].T + w["bias"]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    off = (odds / odds.sum(axis=1, keepdims=True) - np.eye(3)[y]) / len(y)
    return {"weight": off.T @ x, "bias": off.sum(axis=0)}


class Momentum:
    """torch's SGD: b = momentum b + g; w = w - rate b."""

    def __init__(self) -> None:
        self.b: dict[str, Any] = {}

    def step(self, w: StateDict, g: StateDict) -> StateDict:
        self.b = {n: MOMENTUM * self.b.get(n, 0.0) + g[n] for n in g}
        return {n: np.subtract(w[n], RATE * self.b[n]) for n in w}


def train(
    study: StudyConfig, weights: StateDict, personal: StateDict
) -> tuple[StateDict, StateDict]:
    """Return the global model's weights after the batches, and what is kept of the personal one."""
    model = nn.Linear(5, 3).double()
    write_state(model, weights)
    task = make_task(study, ())
    beside: Beside
    if study.federation.algorithm == "ditto":
        beside = DittoModel(model, weights, personal, task, study, CPU)
    else:
        beside = ApflModel(model, personal, task, study, CPU)
    steps = PlainSteps(model, task, study, CPU)
    steps.begin()
    for x, y in batches():
        batch = Batch((torch.from_numpy(x),), torch.from_numpy(y))
        beside.step(batch)
        steps(batch)
    return trained_state(model), beside.state()


def assert_close(one: StateDict, other: StateDict) -> None:
    assert list(one) == list(other)
    for name, array in one.items():
        np.testing.assert_allclose(array, other[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("weight", [0.0, 0.1, 2.0])
def test_ditto_is_its_algorithm_by_a_plain_loop(weight: float) -> None:
    w, v = state(1), state(2)
    _, found = train(study_with("ditto", ditto_lambda=weight), w, v)
    own = Momentum()
    for x, y in batches():
        g = gradient(v, x, y)
        v = own.step(v, {n: np.add(g[n], weight * np.subtract(v[n], w[n])) for n in g})
    assert_close(found, v)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9])
def test_apfl_is_its_algorithm_by_a_plain_loop(alpha: float) -> None:
    w, v = state(1), state(2)
    after, found = train(study_with("apfl", apfl_alpha=alpha), w, v)
    own, shared = Momentum(), Momentum()
    for x, y in batches():
        mixture = {n: np.add(alpha * v[n], (1 - alpha) * w[n]) for n in v}
        g = gradient(mixture, x, y)
        v = own.step(v, {n: np.multiply(alpha, g[n]) for n in g})
        w = shared.step(w, gradient(w, x, y))
    assert_close(found, v)
    assert_close(after, w)
    mixed = mixture_of(found, after, ("weight", "bias"), alpha)
    assert_close(mixed, {n: np.add(alpha * v[n], (1 - alpha) * w[n]) for n in v})


# Rates that leave alpha within 0 and 1, and that would lead past either; and from 0 it comes back.
@pytest.mark.parametrize(
    ("alpha", "rate", "end"),
    [(0.4, 0.01, None), (0.4, 10.0, 1), (0.99, 50.0, 0), (0.0, 0.01, None)],
)
def test_apfl_learns_alpha_once_a_round_by_equation_10(
    alpha: float, rate: float, end: int | None
) -> None:
    w, v = state(1), state(2)
    before: StateDict = {**v, ALPHA: np.array(alpha)}
    after, found = train(study_with("apfl", apfl_alpha=0.7, apfl_alpha_rate=rate), w, before)
    own, shared = Momentum(), Momentum()
    for number, (x, y) in enumerate(batches()):
        g = gradient({n: np.add(alpha * v[n], (1 - alpha) * w[n]) for n in v}, x, y)
        slope = sum(np.sum(np.subtract(v[n], w[n]) * g[n]) for n in g)
        v = own.step(v, {n: np.multiply(alpha, g[n]) for n in g})
        w = shared.step(w, gradient(w, x, y))
        if number == 0:
            alpha = float(np.clip(alpha - rate * slope, 0, 1))
            assert alpha == end if end is not None else 0 < alpha < 1
    assert_close(found, {**v, ALPHA: np.array(alpha)})
    assert_close(after, w)
    assert list(mixture_of(found, after, ("weight", "bias"), alpha)) == ["weight", "bias"]


def test_learning_alpha_moves_nothing_that_becomes_the_update() -> None:
    results = []
    for rate in (0.0, 0.5):
        study = study_with("apfl", apfl_alpha_rate=rate)
        results.append(train(study, state(1), {**state(2), **first_alpha(study)}))
    (fixed, without), (learned, own) = results
    assert digest(fixed) == digest(learned)
    assert ALPHA not in without
    assert own[ALPHA] != 0.5


@pytest.mark.parametrize("algorithm", ["ditto", "apfl"])
def test_the_update_is_fedavg_s_bit_for_bit(algorithm: str) -> None:
    model = nn.Linear(5, 3).double()
    write_state(model, state(1))
    study = study_with("fedavg")
    steps = PlainSteps(model, make_task(study, ()), study, CPU)
    steps.begin()
    for x, y in batches():
        steps(Batch((torch.from_numpy(x),), torch.from_numpy(y)))
    found, _ = train(study_with(algorithm), state(1), state(2))
    assert digest(found) == digest(trained_state(model))


class Normalised(nn.Module):
    """With statistics of its own, and a part that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(5, 5)
        self.norm = nn.BatchNorm1d(5)
        self.head = nn.Linear(5, 3)
        self.frozen.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.norm(self.frozen(x)))
        return out


@pytest.mark.parametrize("algorithm", ["ditto", "apfl"])
def test_statistics_are_the_personal_model_s_own(algorithm: str) -> None:
    study = study_with(algorithm)
    task = make_task(study, ())
    model = Normalised().double()
    set_training_mode(model)
    weights = trained_state(model)
    personal = {**weights, "norm.running_mean": np.full(5, 3.0)}
    before = digest(trained_state(model))
    beside: Beside = (
        DittoModel(model, weights, personal, task, study, CPU)
        if algorithm == "ditto"
        else ApflModel(model, personal, task, study, CPU)
    )
    x, y = batches()[0]
    beside.step(Batch((torch.from_numpy(x),), torch.from_numpy(y)))
    assert digest(trained_state(model)) == before
    kept = beside.state()
    assert list(kept) == list(weights)
    with torch.no_grad():
        seen = model.frozen(torch.from_numpy(x)).mean(dim=0).numpy()
    np.testing.assert_allclose(kept["norm.running_mean"], 0.9 * 3.0 + 0.1 * seen, rtol=1e-12)
    assert kept["norm.num_batches_tracked"] == 1
    assert not np.array_equal(kept["head.weight"], weights["head.weight"])
    names = trained_parameters(model)
    mixed = mixture_of(kept, weights, names, 0.5)
    assert mixed["norm.running_mean"] is kept["norm.running_mean"]
    assert set(names) < set(mixed)
