"""The local optimisers, at a site and for split learning at the server, without torch's compiler.

torch marks their methods as not to be compiled, and imports the whole compiler to be able to say
so when the first of them is called: a second and a half in every process, for nothing.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from medfed.common.study import TrainingSection


def _plain(method: Callable[..., Any]) -> Any:
    """Return torch's method as it is written, without what wraps it."""
    return inspect.unwrap(method)


class _WithoutCompiler(torch.optim.Optimizer):
    add_param_group = _plain(torch.optim.Optimizer.add_param_group)
    zero_grad = _plain(torch.optim.Optimizer.zero_grad)


class _Sgd(_WithoutCompiler, torch.optim.SGD):
    step = torch.no_grad()(_plain(torch.optim.SGD.step))


class _Adam(_WithoutCompiler, torch.optim.Adam):
    step = torch.no_grad()(_plain(torch.optim.Adam.step))


def make_optimizer(
    model: nn.Module, training: TrainingSection, device: torch.device
) -> torch.optim.Optimizer:
    """Return the study's local optimiser over the parameters of `model` that train."""
    return optimizer_over([p for p in model.parameters() if p.requires_grad], training, device)


def optimizer_over(
    parameters: Sequence[nn.Parameter], training: TrainingSection, device: torch.device
) -> torch.optim.Optimizer:
    """Return a fresh optimiser over `parameters`, which are on `device`."""
    # In one pass over the weights; on a GPU torch's own choice goes over many arrays at once.
    fused = True if device.type == "cpu" else None
    optimizer: torch.optim.Optimizer
    if training.optimizer == "adam":
        optimizer = _Adam(
            parameters,
            lr=training.learning_rate,
            weight_decay=training.weight_decay,
            # Its count of steps is on the GPU then, where a recorded step can raise it.
            capturable=device.type == "cuda",
            fused=fused,
        )
    else:
        optimizer = _Sgd(
            parameters,
            lr=training.learning_rate,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            fused=fused,
        )
    if fused:
        optimizer.register_step_pre_hook(_lay_out_gradients)
    return optimizer


def _lay_out_gradients(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Lay each gradient out in memory as its parameter is.

    torch's fused kernels go over both from front to back, whatever their strides: of a kernel that
    is laid out channels last each number would take another one's gradient.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is not None and gradient.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
