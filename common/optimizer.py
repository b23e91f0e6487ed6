"""The study's local optimiser: the same at a site and, with split learning, at the server."""

from collections.abc import Sequence

import torch
from torch import nn

from medfed.common.study import TrainingSection


def optimizer_over(
    parameters: Sequence[nn.Parameter], training: TrainingSection, device: torch.device
) -> torch.optim.Optimizer:
    """Return a fresh optimiser over `parameters`, which are on `device`."""
    if training.optimizer == "adam":
        return torch.optim.Adam(
            parameters,
            lr=training.learning_rate,
            weight_decay=training.weight_decay,
            # Its count of steps is on the GPU then, where a recorded step can raise it.
            capturable=device.type == "cuda",
        )
    return torch.optim.SGD(
        parameters,
        lr=training.learning_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
    )
