"""APFL: a site's personal model is a mixture of weights of its own and of the global ones.

    mixture = alpha v + (1 - alpha) w
    v = v - eta (gradient of the loss of the mixture, with respect to v)
    w = w - eta (gradient of the loss at w)                          (section 4, algorithm 1)

w are the site's weights within the round, which become its update: fedavg's, bit for bit. Both
steps see the same batch, v's the w from before it.

alpha is the same for all sites, or each site learns its own by a step at a round's first batch,

    alpha = alpha - rate <v - w, gradient of the loss of the mixture>

held within 0 and 1. It is kept with v, and like v moves nothing that becomes the update.

Reference: Deng et al. 2020, https://arxiv.org/abs/2003.13461
"""

from collections.abc import Collection, Mapping
from copy import deepcopy
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call

from medfed.client.plain_steps import forward_of
from medfed.common.models import set_training_mode, trained_state
from medfed.common.optimizer import make_optimizer
from medfed.common.state_dicts import StateDict, write_state
from medfed.common.study import StudyConfig
from medfed.common.tasks import Batch, Task

# No parameter of a network can be called so: torch joins names that are not empty by dots.
ALPHA = ".alpha"


class ApflModel:
    """A site's own weights v during one round; statistics of normalisations are the mixture's.

    Args:
        model: The network that is trained beside it: w is read from it at every step.
        personal: v as the round begins, and alpha where the site learns it (`first_alpha`).
        task: Loss of an image.
        study: Optimiser, alpha, and how it is learned.
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
        self._rate = study.federation.apfl_alpha_rate or 0.0
        self._alpha = alpha_of(personal, study)
        self._learned = self._rate == 0
        self._task = task
        self._global = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._own = deepcopy(model)
        write_state(self._own, {n: array for n, array in personal.items() if n != ALPHA})
        set_training_mode(self._own)
        self._forward = forward_of(partial(functional_call, self._own), study, device)
        self._optimizer = make_optimizer(self._own, study.training, device)

    def step(self, batch: Batch) -> None:
        """Take one step of v; w must not have taken its own yet."""
        own = dict(self._own.named_parameters())
        mixture = {
            name: (self._alpha * own[name] + (1 - self._alpha) * w).detach().requires_grad_()
            for name, w in self._global.items()
        }
        outputs = self._forward(mixture, batch.inputs)
        loss = self._task.loss_per_image(outputs, batch.targets).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        for name, mixed in mixture.items():
            own[name].grad = None if mixed.grad is None else self._alpha * mixed.grad
        if not self._learned:
            self._learn(own, mixture)
        self._optimizer.step()

    def _learn(self, own: Mapping[str, Tensor], mixture: Mapping[str, Tensor]) -> None:
        slope = 0.0
        for name, mixed in mixture.items():
            if mixed.grad is not None:
                apart = own[name].detach().double() - self._global[name].detach().double()
                slope += float((apart * mixed.grad.double()).sum())
        self._alpha = min(max(self._alpha - self._rate * slope, 0.0), 1.0)
        self._learned = True

    def state(self) -> StateDict:
        """Return v, with the mixture's statistics, and alpha where it is learned."""
        learned = {ALPHA: np.array(self._alpha)} if self._rate > 0 else {}
        return {**trained_state(self._own), **learned}


def first_alpha(study: StudyConfig) -> StateDict:
    """Return what a site keeps of alpha before its first round; nothing where it is fixed."""
    if not study.federation.apfl_alpha_rate:
        return {}
    return {ALPHA: np.array(study.federation.apfl_alpha)}


def alpha_of(part: Mapping[str, npt.NDArray[np.generic]], study: StudyConfig) -> float:
    """Return a site's alpha: what it learned, or what the study says."""
    learned = learned_alpha(part)
    if learned is not None:
        return learned
    assert study.federation.apfl_alpha is not None  # of every study with apfl
    return study.federation.apfl_alpha


def learned_alpha(part: Mapping[str, npt.NDArray[np.generic]]) -> float | None:
    """Return the alpha that a site learned; None where it is fixed."""
    return float(part[ALPHA].astype(np.float64)) if ALPHA in part else None


def mixture_of(
    personal: StateDict, weights: StateDict, parameters: Collection[str], alpha: float
) -> StateDict:
    """Return the mixture of `personal` and the global `weights`; all but `parameters` is personal.

    Each value is rounded once, to its own type.
    """
    mixed = {name: array for name, array in personal.items() if name != ALPHA}
    for name in parameters:
        own, other = (state[name].astype(np.float64) for state in (personal, weights))
        mixed[name] = np.asarray(alpha * own + (1 - alpha) * other, dtype=personal[name].dtype)
    return mixed
