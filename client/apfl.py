"""APFL: a site's personal model is a mixture of weights of its own and of the global ones.

    mixture = alpha v + (1 - alpha) w
    v = v - eta (gradient of the loss of the mixture, with respect to v)
    w = w - eta (gradient of the loss at w)                          (section 4, algorithm 1)

w are the site's weights within the round, which become its update: fedavg's, bit for bit. Both
steps see the same batch, v's the w from before it. alpha is fixed, the same for all sites.

Reference: Deng et al. 2020, https://arxiv.org/abs/2003.13461
"""

from collections.abc import Collection
from copy import deepcopy

import numpy as np
import torch
from torch import nn

from medfed.client.optimizers import make_optimizer
from medfed.common.models import set_training_mode, trained_state
from medfed.common.state_dicts import StateDict, write_state
from medfed.common.study import StudyConfig
from medfed.common.tasks import Batch, Task


class ApflModel:
    """A site's own weights v during one round; statistics of normalisations are the mixture's.

    Args:
        model: The network that is trained beside it: w is read from it at every step.
        personal: v as the round begins.
        task: Loss of an image.
        study: Optimiser, and alpha.
        device: Where the network is.
    """

    def __init__(
        self,
        model: nn.Module,
        personal: StateDict,
        task: Task,
        study: StudyConfig,
        device: torch.device,
    ) -> None:
        assert study.federation.apfl_alpha is not None  # of every study with apfl
        self._alpha = study.federation.apfl_alpha
        self._task = task
        self._global = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._own = deepcopy(model)
        write_state(self._own, personal)
        set_training_mode(self._own)
        self._optimizer = make_optimizer(self._own, study.training, device)

    def step(self, batch: Batch) -> None:
        """Take one step of v; w must not have taken its own yet."""
        own = dict(self._own.named_parameters())
        mixture = {
            name: self._alpha * own[name] + (1 - self._alpha) * w.detach()
            for name, w in self._global.items()
        }
        self._optimizer.zero_grad(set_to_none=True)
        outputs = torch.func.functional_call(self._own, mixture, batch.inputs)
        loss = self._task.loss_per_image(outputs, batch.targets).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def state(self) -> StateDict:
        """Return v, with the mixture's statistics."""
        return trained_state(self._own)


def mixture_of(
    personal: StateDict, weights: StateDict, parameters: Collection[str], alpha: float
) -> StateDict:
    """Return the mixture of `personal` and the global `weights`; all but `parameters` is personal.

    Each value is rounded once, to its own type.
    """
    mixed = dict(personal)
    for name in parameters:
        own, other = (state[name].astype(np.float64) for state in (personal, weights))
        mixed[name] = np.asarray(alpha * own + (1 - alpha) * other, dtype=personal[name].dtype)
    return mixed
