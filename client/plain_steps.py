"""Steps without privacy: forward, backward, optimiser; on a GPU recorded and kept warm."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from medfed.client.gradient_terms import GradientTerms
from medfed.client.recording import Recorded, kept, recorder
from medfed.common.optimizer import make_optimizer
from medfed.common.state_dicts import StateDict
from medfed.common.study import StudyConfig
from medfed.common.tasks import Batch, ImageLoss


class PlainSteps:
    """Trains `model` batch by batch.

    Args:
        model: The network, in its training mode.
        loss: Loss of an image.
        study: Optimiser; whether steps are recorded.
        device: Where the network is.
    """

    def __init__(
        self, model: nn.Module, loss: ImageLoss, study: StudyConfig, device: torch.device
    ) -> None:
        self._optimizer = make_optimizer(model, study.training, device)
        self._terms = GradientTerms(model, self._optimizer, study.federation)
        record = recorder(device, enabled=study.compute.cuda_graphs)
        forward = forward_of(model, study, device)
        self._run = Recorded(_step_of(forward, loss, self._optimizer), record)

    def begin(self, correction: StateDict | None = None) -> None:
        """Forget all earlier steps, in place: recorded ones go on using the same memory.

        Args:
            correction: With scaffold, what the server adds to every gradient.
        """
        self._terms.begin(correction)
        for state in self._optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    value.zero_()

    def __call__(self, batch: Batch) -> Tensor:
        """Take one step and return the losses [B] from before it, good until the next step."""
        return self._run(batch.targets, *batch.inputs)


def forward_of(
    model: Callable[..., Tensor], study: StudyConfig, device: torch.device
) -> Callable[..., Tensor]:
    """Return a step's forward pass: `model`, its layers in bfloat16 where the study asks for it.

    Args:
        model: From whatever it takes to logits.
        study: Its `compute.precision`.
        device: Where it runs.

    Reference: https://docs.pytorch.org/docs/stable/amp.html
    """
    if study.compute.precision == "float32":
        return model

    def forward(*inputs: Any) -> Tensor:
        # Each step makes its own copy of the weights, recorded or not.
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            outputs = model(*inputs)
        return outputs.float()

    return forward


def _step_of(
    forward: Callable[..., Tensor], loss: ImageLoss, optimizer: torch.optim.Optimizer
) -> Callable[..., Tensor]:
    def step(targets: Tensor, *inputs: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        losses_B = loss.loss_per_image(forward(*inputs), targets)
        losses_B.mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return losses_B.detach()

    return step


def plain_steps(
    model: nn.Module,
    loss: ImageLoss,
    study: StudyConfig,
    device: torch.device,
    correction: StateDict | None = None,
) -> PlainSteps:
    """Return steps that start anew; on a GPU the ones this thread last had for `model`.

    Args:
        model: With the global weights.
        loss: Loss of an image.
        study: Optimiser and algorithm.
        device: Where the network is.
        correction: See `PlainSteps.begin`.
    """
    if device.type != "cuda":
        steps = PlainSteps(model, loss, study, device)
        steps.begin(correction)
        return steps
    # All that a task's loss, an optimiser and an algorithm depend on.
    own = (type(loss), study.semi_supervised)
    key = ("steps", study.task, study.training, study.compute, study.federation, *own)
    steps = kept(model, key, lambda: PlainSteps(model, loss, study, device))
    steps.begin(correction)
    return steps
