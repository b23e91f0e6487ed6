"""Noise drawn beside a step: each number once, with the law of the source, never used twice."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm
from torch import Tensor, nn

from medfed.client.privacy import noise_ahead
from medfed.client.privacy.dp_sgd import NoisyOptimizer, dp_step
from medfed.client.privacy.noise import NoiseSource, SecureNoise
from medfed.client.privacy.noise_ahead import _PIECE, NoiseAhead, has_a_core_to_spare

SIZES = (3 * _PIECE + 5, 1, 64, _PIECE - 1)


class Counting:
    """Whole numbers in place of normals, another each; says which threads drew."""

    def __init__(self) -> None:
        self.drawn = 0
        self.threads: set[str] = set()
        self._lock = threading.Lock()

    def normal_like(self, reference: Tensor) -> Tensor:
        with self._lock:
            start, self.drawn = self.drawn, self.drawn + reference.numel()
            self.threads.add(threading.current_thread().name.split("_")[0])
        return torch.arange(start, self.drawn, dtype=torch.float32).view(reference.shape)


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medfed.client.privacy.dp_sgd.has_a_core_to_spare", lambda: True)


def test_every_number_is_drawn_once() -> None:
    source = Counting()
    with ThreadPoolExecutor(1) as pool:
        parts = NoiseAhead(source, SIZES, pool).parts()
    assert [part.numel() for part in parts] == list(SIZES)
    assert source.drawn == sum(SIZES)
    assert torch.equal(torch.cat(list(parts)).sort().values, torch.arange(sum(SIZES)).float())


def test_a_step_waits_for_no_thread_that_was_never_let_run() -> None:
    source, may_go = Counting(), threading.Event()
    with ThreadPoolExecutor(1, "noise") as pool:
        pool.submit(may_go.wait)
        ahead = NoiseAhead(source, SIZES, pool)
        threading.Timer(0.2, may_go.set).start()
        assert torch.cat(list(ahead.parts())).unique().numel() == sum(SIZES)
    assert source.threads == {"MainThread"}


def test_a_fault_in_the_thread_is_one_of_the_step() -> None:
    class Broken:
        def normal_like(self, reference: Tensor) -> Tensor:
            raise RuntimeError("no bits")

    with ThreadPoolExecutor(1) as pool:
        ahead = NoiseAhead(Broken(), [1], pool)
        assert ahead._in_thread.exception() is not None
        with pytest.raises(RuntimeError, match="no bits"):
            ahead.parts()


def noise_of_steps(source: NoiseSource, model: nn.Module, steps: int) -> list[Tensor]:
    """What empty samples add to the parameters, over the standard deviation."""
    learning = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer = NoisyOptimizer(
        learning, noise_multiplier=2.0, max_grad_norm=0.5, expected_batch_size=4.0, noise=source
    )
    found = []
    for _ in range(steps):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        dp_step(model, optimizer, lambda outputs, targets: outputs.sum(-1), [])
        moved = zip(before, model.parameters(), strict=True)
        found.append(torch.cat([(old - new).detach().flatten() * 4.0 for old, new in moved]))
    return found


def deviates(noise: Tensor) -> float:
    """How far the values are from standard normals, 1 being at the edge of a billion draws."""
    values = noise.double().numpy()
    of_variance = abs((values**2).mean() - 1) / (6 * (2 / len(values)) ** 0.5)
    of_law = kstest(values, norm.cdf).statistic * len(values) ** 0.5 / 3.3
    return float(max(of_variance, of_law))


@pytest.mark.usefixtures("cores")
def test_steps_add_secure_noise_of_the_stated_deviation(monkeypatch: pytest.MonkeyPatch) -> None:
    drew: set[str] = set()
    real = SecureNoise.normal_like

    def watched(self: SecureNoise, reference: Tensor) -> Tensor:
        drew.add(threading.current_thread().name.split("_")[0])
        return real(self, reference)

    monkeypatch.setattr(SecureNoise, "normal_like", watched)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Linear(400, 700))
    model.to(memory_format=torch.channels_last)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    first, second = noise_of_steps(SecureNoise(), model, 2)
    assert "noise" in drew
    for noise in (first, second):
        assert deviates(noise) < 1 < deviates(1.02 * noise)
    together = first.double() * second.double()
    assert abs(float(together.mean())) < 6 / len(together) ** 0.5


@pytest.mark.usefixtures("cores")
def test_what_a_failed_step_had_drawn_is_never_used() -> None:
    model = nn.Linear(300, 300)
    learning = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer = NoisyOptimizer(
        learning,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=1.0,
        noise=SecureNoise(),
    )
    optimizer.begin_noise()
    assert optimizer._ahead is not None
    forgotten = optimizer._ahead
    before = model.weight.detach().clone()
    dp_step(model, optimizer, lambda outputs, targets: outputs.sum(-1), [])
    assert optimizer._ahead is None
    added = (before - model.weight).detach().numpy().ravel()
    unused = torch.cat(list(forgotten.parts())).numpy()[: added.size]
    assert abs(np.corrcoef(added, unused)[0, 1]) < 0.03


def test_a_core_is_to_spare_where_torch_has_fewer_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(noise_ahead.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert not has_a_core_to_spare()
    monkeypatch.setattr(noise_ahead.os, "sched_getaffinity", lambda pid: {0, 1, 5}, raising=False)
    assert has_a_core_to_spare()
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert not has_a_core_to_spare()
