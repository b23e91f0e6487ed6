"""Ditto: beside the global model each site trains one of its own, held near the global weights.

    v = v - eta (gradient of the loss at v + lambda (v - w))        (algorithm 1)

w are the global weights that the round began with. Both models see the same batches. The update
is fedavg's, bit for bit: v only takes from the global model.

Reference: Li et al. 2021, https://arxiv.org/abs/2012.04221
"""

from copy import deepcopy

import torch
from torch import nn

from medfed.client.plain_steps import PlainSteps
from medfed.common.models import set_training_mode, trained_state
from medfed.common.state_dicts import StateDict, write_state
from medfed.common.study import FederationSection, StudyConfig
from medfed.common.tasks import Batch, Task


class DittoModel:
    """A site's personal model during one round.

    Args:
        model: The network; it is copied.
        weights: w.
        personal: v as the round begins.
        task: Loss of an image.
        study: Optimiser, and lambda.
        device: Where the network is.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: StateDict,
        personal: StateDict,
        task: Task,
        study: StudyConfig,
        device: torch.device,
    ) -> None:
        self._own = deepcopy(model)
        write_state(self._own, weights)
        set_training_mode(self._own)
        self._steps = PlainSteps(self._own, task, _held(study), device)
        self._steps.begin()  # what it is held to is what the weights are now
        write_state(self._own, personal)

    def step(self, batch: Batch) -> None:
        """Take one step."""
        self._steps(batch)

    def state(self) -> StateDict:
        """Return v."""
        return trained_state(self._own)


def _held(study: StudyConfig) -> StudyConfig:
    """Return a study whose steps are those of v: the term is FedProx's."""
    held = FederationSection(algorithm="fedprox", proximal_mu=study.federation.ditto_lambda)
    # A copy lives for one round: recording its steps would cost more than it saves.
    compute = study.compute.model_copy(update={"cuda_graphs": False})
    return study.model_copy(update={"federation": held, "compute": compute})
