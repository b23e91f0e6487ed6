"""FedProx's and SCAFFOLD's terms: by hand on a quadratic, after the noise, in the same memory."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medfed.client.gradient_terms import GradientTerms
from medfed.client.plain_steps import PlainSteps
from medfed.client.privacy.dp_sgd import NoisyOptimizer, PatientBatch, dp_step
from medfed.common.errors import MessageError
from medfed.common.state_dicts import StateDict
from medfed.common.study import FederationSection, StudyConfig
from medfed.common.tasks import Batch, make_task

CPU = torch.device("cpu")


def section(algorithm: str, **numbers: float) -> FederationSection:
    return FederationSection.model_validate({"algorithm": algorithm, **numbers})


class Quadratic(nn.Module):
    """loss = a / 2 * (w - target)^2, so its gradient is a (w - target)."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([start], dtype=torch.float64))
        self.unused = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))

    def forward(self, a: Tensor, target: Tensor) -> Tensor:
        return a / 2 * (self.w - target).square().sum()


def descend(
    federation: FederationSection, steps: int, correction: StateDict | None = None
) -> Quadratic:
    model = Quadratic(3.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    terms = GradientTerms(model, optimizer, federation)
    terms.begin(correction)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.tensor(0.5), torch.tensor(-1.0)).backward()
        optimizer.step()
    return model


def test_proximal_term_ends_where_the_closed_form_says() -> None:
    # w' = w - eta (a (w - t) + mu (w - w0)) contracts by 1 - eta (a + mu) towards
    # w* = (a t + mu w0) / (a + mu).
    a, t, mu, w0, eta = 0.5, -1.0, 2.0, 3.0, 0.1
    best = (a * t + mu * w0) / (a + mu)
    for steps in (1, 2, 7, 100):
        expected = best + (1 - eta * (a + mu)) ** steps * (w0 - best)
        found = descend(section("fedprox", proximal_mu=mu), steps)
        assert found.w.item() == pytest.approx(expected, rel=1e-13)
        assert found.unused.item() == 2.0


def test_correction_moves_where_the_closed_form_says() -> None:
    # w' = w - eta (a (w - t) + k) contracts by 1 - eta a towards t - k / a.
    a, t, w0, eta = 0.5, -1.0, 3.0, 0.1
    correction: StateDict = {"w": np.array([0.75]), "unused": np.array([-0.5])}
    best = t - 0.75 / a
    for steps in (1, 2, 7):
        found = descend(section("scaffold"), steps, correction)
        expected = best + (1 - eta * a) ** steps * (w0 - best)
        assert found.w.item() == pytest.approx(expected, rel=1e-13)
        # What this site's loss does not know follows the others.
        assert found.unused.item() == pytest.approx(2.0 + steps * eta * 0.5, rel=1e-13)


def test_a_correction_without_scaffold_is_refused() -> None:
    with pytest.raises(MessageError, match="Expected no correction"):
        descend(section("fedprox"), 1, {"w": np.zeros(1), "unused": np.zeros(1)})


@pytest.mark.parametrize("federation", [section("fedprox", proximal_mu=0.0), section("scaffold")])
def test_nothing_to_add_is_fedavg_bit_for_bit(federation: FederationSection) -> None:
    plain, other = descend(section("fedavg"), 20), descend(federation, 20)
    assert plain.w.item() == other.w.item()


class Ones:
    """Noise that is known."""

    def normal_like(self, reference: Tensor) -> Tensor:
        return torch.ones_like(reference)


class Dot(nn.Module):
    """Its gradient is the input, whatever the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


def private_steps(
    federation: FederationSection, steps: int, correction: StateDict | None = None
) -> Tensor:
    """Weights after steps on one patient: gradient (3, 4), bound 1, noise 2 for every weight."""
    model = Dot()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    GradientTerms(model, inner, federation).begin(correction)
    optimizer = NoisyOptimizer(
        inner, noise_multiplier=2.0, max_grad_norm=1.0, expected_batch_size=4.0, noise=Ones()
    )
    batch = PatientBatch(
        (torch.tensor([[[3.0, 4.0]]], dtype=torch.float64),), torch.zeros(1, 1), torch.ones(1, 1)
    )
    for _ in range(steps):
        dp_step(model, optimizer, lambda outputs, targets: outputs, [batch])
    return model.w.detach()


def test_terms_come_after_clipping_noise_and_division() -> None:
    noisy = (torch.tensor([0.6, 0.8], dtype=torch.float64) + 2.0) / 4.0
    w = torch.zeros(2, dtype=torch.float64)
    for _ in range(3):
        w = w - 0.1 * (noisy + 5.0 * w)
    found = private_steps(section("fedprox", proximal_mu=5.0), 3)
    torch.testing.assert_close(found, w, rtol=1e-6, atol=0)
    correction: StateDict = {"w": np.array([10.0, -20.0])}
    found = private_steps(section("scaffold"), 3, correction)
    expected = -0.3 * (noisy + torch.tensor([10.0, -20.0], dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_an_empty_sample_is_noise_and_term() -> None:
    model = Dot()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    GradientTerms(model, inner, section("scaffold")).begin({"w": np.array([1.0, -1.0])})
    optimizer = NoisyOptimizer(
        inner, noise_multiplier=2.0, max_grad_norm=1.0, expected_batch_size=4.0, noise=Ones()
    )
    dp_step(model, optimizer, lambda outputs, targets: outputs, [])
    assert model.w.tolist() == pytest.approx([-0.1 * (0.5 + 1), -0.1 * (0.5 - 1)])


def study_with(federation: dict[str, Any]) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "study": {"name": "terms"},
            "task": {"classes": ["a", "b", "c"]},
            "training": {"local_steps": 3, "learning_rate": 0.1, "momentum": 0.0},
            "federation": federation,
            "privacy": {"unit": "none"},
        }
    )


def make_model(seed: int) -> nn.Module:
    model = nn.Linear(5, 3)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def batches(seed: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Batch(
            (torch.randn(4, 5, generator=generator),), torch.randint(3, (4,), generator=generator)
        )
        for _ in range(4)
    ]


FEDERATIONS: list[dict[str, Any]] = [
    {"algorithm": "fedprox", "proximal_mu": 0.7},
    {"algorithm": "scaffold"},
]


@pytest.mark.parametrize("federation", FEDERATIONS, ids=["fedprox", "scaffold"])
def test_a_second_round_holds_to_the_new_global_weights_and_correction(
    federation: dict[str, Any],
) -> None:
    study = study_with(federation)
    task = make_task(study, ())
    scaffold = federation["algorithm"] == "scaffold"

    def correction(seed: int) -> StateDict | None:
        rng = np.random.default_rng(seed)
        shapes = {"weight": (3, 5), "bias": (3,)}
        values = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
        return {**values} if scaffold else None

    warm = make_model(1)
    steps = PlainSteps(warm, task, study, CPU)
    addresses = _addresses(steps)
    for number in (1, 2):
        with torch.no_grad():
            for parameter, new in zip(
                warm.parameters(), make_model(number).parameters(), strict=True
            ):
                parameter.copy_(new)
        steps.begin(correction(number))
        for batch in batches(number):
            steps(batch)
        fresh = make_model(number)
        new_steps = PlainSteps(fresh, task, study, CPU)
        new_steps.begin(correction(number))
        for batch in batches(number):
            new_steps(batch)
        for one, other in zip(warm.parameters(), fresh.parameters(), strict=True):
            assert torch.equal(one, other)
    assert _addresses(steps) == addresses


def _addresses(steps: PlainSteps) -> list[int]:
    """A recorded step (tests/client/test_gpu.py) reads what lies there later."""
    terms = steps._terms
    held = list(terms._proximal._start) if terms._proximal else []
    held += terms._correction._held.values() if terms._correction else []
    assert held
    return [tensor.data_ptr() for tensor in held]
