"""Sums over filled-up chunks equal sums over chunks as they are; on a GPU see test_gpu.py.

Shapes: P patients in a chunk, K images a patient.
"""

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from medfed.client.privacy.dp_sgd import (
    Clipping,
    NoisyOptimizer,
    PatientBatch,
    dp_step,
    patient_gradients,
)
from medfed.client.privacy.recorded_sums import RecordedSums, recorded_sums
from medfed.client.recording import Body, Recorder, Replay
from medfed.common.study import StudyConfig
from medfed.common.tasks import make_task


def rerun(body: Body) -> tuple[Replay, Tensor]:
    """A recorder for a CPU: a replay runs the work again on the arguments' held memory."""
    return body, torch.zeros(())


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 4))


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def chunk_of(num_patients: int, num_images: int, seed: int) -> PatientBatch:
    generator = torch.Generator().manual_seed(seed)
    mask_PK = torch.ones(num_patients, num_images)
    mask_PK[0, 1:] = 0.0
    shape = (num_patients, num_images)
    return PatientBatch(
        (torch.randn(*shape, 1, 8, 8, generator=generator) * 3,),
        torch.randint(4, shape, generator=generator),
        mask_PK,
    )


STEPS = (
    [chunk_of(5, 1, 0), chunk_of(3, 2, 1)],
    [chunk_of(5, 1, 2), chunk_of(8, 1, 3), chunk_of(9, 1, 4)],
    [],
    [chunk_of(5, 2, 5), chunk_of(2, 1, 6)],
)


def sums_of(model: nn.Module, record: Recorder | None, clipping: Clipping) -> RecordedSums:
    return RecordedSums(model, loss, max_grad_norm=0.5, clipping=clipping, record=record)


@pytest.mark.parametrize("clipping", ["flat", "automatic"])
@pytest.mark.parametrize("record", [None, rerun])
def test_sums_equal_those_of_each_patient_alone(
    record: Recorder | None, clipping: Clipping
) -> None:
    model = make_model()
    sums = sums_of(model, record, clipping)
    for chunks in STEPS:
        found = sums.of(chunks)
        expected = {name: torch.zeros_like(total) for name, total in found.items()}
        for chunk in chunks:
            gradients = patient_gradients(model, loss, chunk)
            for patient in range(len(chunk)):
                norm = torch.cat([g[patient].flatten() for g in gradients.values()]).norm()
                factor = 0.5 / (norm + 0.01) if clipping == "automatic" else min(1.0, 0.5 / norm)
                for name, gradient in gradients.items():
                    expected[name] += factor * gradient[patient]
        for name, total in found.items():
            torch.testing.assert_close(total, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("record", [None, rerun])
def test_a_patient_without_finite_gradient_adds_nothing(record: Recorder | None) -> None:
    model = make_model()
    sums = sums_of(model, record, "flat")
    wild = chunk_of(4, 1, 7)
    wild.inputs[0][2] = float("inf")
    rest = [0, 1, 3]
    tame = PatientBatch((wild.inputs[0][rest],), wild.targets_PK[rest], wild.mask_PK[rest])
    expected = {name: total.clone() for name, total in sums.of([tame]).items()}
    for name, total in sums.of([wild]).items():
        torch.testing.assert_close(total, expected[name], rtol=1e-5, atol=1e-7)
        assert total.isfinite().all()


class NoNoise:
    def normal_like(self, reference: Tensor) -> Tensor:
        return torch.zeros_like(reference)


def test_a_step_by_recorded_sums_is_the_step_without() -> None:
    weights = []
    for record in (True, False):
        model = make_model()
        optimizer = NoisyOptimizer(
            torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9),
            noise_multiplier=1.0,
            max_grad_norm=0.5,
            expected_batch_size=8.0,
            noise=NoNoise(),
        )
        sums = sums_of(model, rerun, "flat") if record else None
        for chunks in STEPS:
            dp_step(model, optimizer, loss, chunks, sums)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)
    start = torch.cat([p.detach().flatten() for p in make_model().parameters()])
    assert (weights[0] - start).norm() > 0.1


def test_sums_are_not_recorded_on_a_cpu() -> None:
    study = StudyConfig.model_validate(
        {
            "study": {"name": "s"},
            "task": {"classes": ["a", "b"]},
            "training": {"local_steps": 1},
            "privacy": {"unit": "none"},
        }
    )
    task = make_task(study, ())
    assert recorded_sums(make_model(), task, study, torch.device("cpu")) is None


def test_recorded_work_goes_with_the_sums_and_waits_for_no_collection() -> None:
    gc.collect()
    gc.disable()
    try:
        sums = sums_of(make_model(), rerun, "flat")
        for chunks in STEPS:
            sums.of(chunks)
        recorded = weakref.ref(sums._run)
        del sums
        assert recorded() is None
    finally:
        gc.enable()
