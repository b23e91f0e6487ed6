"""FedProx: a site's loss has a term that holds it near the global weights.

    h(w) = loss(w) + mu / 2 * ||w - w_global||^2        (equation 2)

so that mu (w - w_global) is added to the gradient of every step. The server averages as ever. With
mu = 0 nothing is added, not even zeros: those are the bits of fedavg.

Reference: Li et al. 2018, https://arxiv.org/abs/1812.06127
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ProximalTerm:
    """The gradient of the term, for `parameters` whose global weights were there at `begin`."""

    def __init__(self, parameters: Sequence[nn.Parameter], mu: float) -> None:
        self._parameters = list(parameters)
        self._mu = mu
        self._start = [parameter.detach().clone() for parameter in parameters]

    def begin(self) -> None:
        """Take the weights as they are now for the global ones, in the same memory."""
        for start, parameter in zip(self._start, self._parameters, strict=True):
            start.copy_(parameter.detach())

    def add(self) -> None:
        """Add to the gradients; a parameter that has none has not moved."""
        parameters: list[Tensor] = []
        starts: list[Tensor] = []
        gradients: list[Tensor] = []
        for parameter, start in zip(self._parameters, self._start, strict=True):
            if parameter.grad is not None:
                parameters.append(parameter)
                starts.append(start)
                gradients.append(parameter.grad)
        away = torch._foreach_sub(parameters, starts)
        torch._foreach_add_(gradients, away, alpha=self._mu)
