"""Steps that are kept warm start anew every round; see also test_training.py and test_gpu.py."""

import gc
import weakref
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from medfed.client.plain_steps import PlainSteps, forward_of
from medfed.common.study import ComputeSection, StudyConfig
from medfed.common.tasks import Batch, make_task

CPU = torch.device("cpu")


def study_with(optimizer: str) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "study": {"name": "steps"},
            "task": {"classes": ["a", "b", "c"]},
            "training": {
                "local_steps": 3,
                "optimizer": optimizer,
                "learning_rate": 0.1,
                **({"momentum": 0.9} if optimizer == "sgd" else {}),
            },
            "privacy": {"unit": "none"},
        }
    )


def make_model() -> nn.Module:
    model = nn.Linear(5, 3)
    generator = torch.Generator().manual_seed(0)
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
        for _ in range(3)
    ]


def weights_of(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_steps_that_begin_again_are_as_new(optimizer: str) -> None:
    study = study_with(optimizer)
    task = make_task(study, ())
    warm, start = make_model(), weights_of(make_model())
    steps = PlainSteps(warm, task, study, CPU)
    for batch in batches(1):
        steps(batch)
    torch.nn.utils.vector_to_parameters(start.clone(), warm.parameters())
    steps.begin()
    fresh = make_model()
    new = PlainSteps(fresh, task, study, CPU)
    for batch in batches(2):
        assert torch.equal(steps(batch), new(batch))
    assert torch.equal(weights_of(warm), weights_of(fresh))
    assert not torch.equal(weights_of(warm), start)


def test_steps_that_go_on_remember() -> None:
    """The twin of the above without `begin`: it would pass if the optimiser had no state."""
    study = study_with("sgd")
    task = make_task(study, ())
    warm, fresh = make_model(), make_model()
    steps, new = PlainSteps(warm, task, study, CPU), PlainSteps(fresh, task, study, CPU)
    for batch in batches(1):
        steps(batch)
    torch.nn.utils.vector_to_parameters(weights_of(make_model()), warm.parameters())
    for batch in batches(2):
        steps(batch)
        new(batch)
    assert not torch.equal(weights_of(warm), weights_of(fresh))


def test_forward_pass_in_bfloat16_is_the_same_of_a_network_and_of_its_weights() -> None:
    """The second is how a mixture of weights is asked (apfl)."""
    study, model = study_with("sgd"), make_model()
    half = study.model_copy(update={"compute": ComputeSection(precision="bfloat16")})
    assert forward_of(model, study, CPU) is model
    (images,) = batches(1)[0].inputs
    outputs = forward_of(model, half, CPU)(images)
    assert outputs.dtype is torch.float32
    assert not torch.equal(outputs, model(images))
    torch.testing.assert_close(outputs, model(images), rtol=0.05, atol=0.05)
    by_weights = forward_of(partial(functional_call, model), half, CPU)
    assert torch.equal(by_weights(dict(model.named_parameters()), (images,)), outputs)


def test_recorded_work_goes_with_the_steps_and_waits_for_no_collection() -> None:
    """On a GPU it holds a graph, the memory of a step and a stream."""
    study = study_with("sgd")
    gc.collect()
    gc.disable()
    try:
        steps = PlainSteps(make_model(), make_task(study, ()), study, CPU)
        for batch in batches(1):
            steps(batch)
        recorded = weakref.ref(steps._run)
        del steps
        assert recorded() is None
    finally:
        gc.enable()
