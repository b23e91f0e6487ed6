"""What an algorithm adds to a gradient, last of all: after the noise, just before the optimiser.

FedProx adds a function of the weights, SCAFFOLD what came from the server. Neither looks at a
patient. Under DP the weights that a step starts from are made of noisy gradients (and of the global
weights), and so is what the server knows: added to a gradient that has its noise, both are
post-processing of what the ledger has charged. Added before, they would be clipped with the
patients' gradients and mean something else.

Recorded steps (`client.recording`) read these tensors where they lie: they are written in place.
"""

from typing import Any

import torch
from torch import nn

from medfed.client.fedprox import ProximalTerm
from medfed.client.scaffold import Correction
from medfed.common.errors import MessageError
from medfed.common.state_dicts import StateDict
from medfed.common.study import FederationSection


class GradientTerms:
    """Adds the study's terms to the gradients of an optimiser whenever it is about to step.

    Args:
        model: What is trained.
        optimizer: Over those of its parameters that train.
        federation: Which algorithm.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, federation: FederationSection
    ) -> None:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        mu = federation.proximal_mu
        self._proximal = ProximalTerm(list(trained.values()), mu) if mu else None
        self._correction = Correction(trained) if federation.algorithm == "scaffold" else None
        if self._proximal or self._correction:
            optimizer.register_step_pre_hook(self._add)

    def begin(self, correction: StateDict | None = None) -> None:
        """Begin a round from the weights as they are now.

        Args:
            correction: c - c_i by parameter, with scaffold; None for zero.

        Raises:
            MessageError: A correction in a study that has none.
        """
        if self._proximal:
            self._proximal.begin()
        if self._correction:
            self._correction.begin(correction)
        elif correction is not None:
            raise MessageError("Expected no correction: it is for federation.algorithm scaffold.")

    @torch.no_grad()
    def _add(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._proximal:
            self._proximal.add()
        if self._correction:
            self._correction.add()
