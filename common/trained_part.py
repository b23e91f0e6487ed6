"""One part of a network in training, with its own optimiser: at a site, or at the server.

Optimisers here work weight by weight, so parts that each step by their own gradients end where the
whole network would, to the bit.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medfed.common.models.stages import Part
from medfed.common.optimizer import optimizer_over
from medfed.common.state_dicts import StateDict, read_state, write_state
from medfed.common.study import TrainingSection

Array = npt.NDArray[np.generic]
_APART = " of "


class TrainedPart:
    """A part, and what its optimiser remembers.

    Args:
        model: The network, on `device`, in its training mode.
        part: Of `model`.
        training: Optimiser and its numbers.
        device: Where the network is.

    Attributes:
        names: What of it trains, statistics included.
    """

    def __init__(
        self, model: nn.Module, part: Part, training: TrainingSection, device: torch.device
    ) -> None:
        self._model = model
        self._part = part
        self.names = part.names
        self._optimizer = optimizer_over(list(part.parameters.values()), training, device)

    def __call__(self, features: Tensor) -> Tensor:
        """Return what the part makes of [B, ...]."""
        return self._part(features)

    def step(self, loss: Tensor, gradient: Tensor | None = None) -> None:
        """Take the optimiser's step.

        Args:
            loss: What to go back from: a loss, or what the part put out.
            gradient: Of the loss with respect to that; None for a loss itself.
        """
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward(gradient)  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def weights(self) -> StateDict:
        """Return copies of what trains of the part."""
        return read_state(self._model, self._part.names)

    def moments(self) -> StateDict:
        """Return copies of what the optimiser remembers; empty before its first step."""
        return {
            f"{kind}{_APART}{name}": value.detach().cpu().numpy().copy()
            for name, parameter in self._part.parameters.items()
            for kind, value in self._optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }

    def restore(self, weights: StateDict, moments: Mapping[str, Array]) -> None:
        """Go on from what `weights` and `moments` returned."""
        write_state(self._model, weights)
        self._optimizer.state.clear()
        for key, array in moments.items():
            kind, _, name = key.partition(_APART)
            parameter = self._part.parameters[name]
            state: dict[str, Any] = self._optimizer.state[parameter]
            value = torch.from_numpy(array)
            # In the parameter's own layout, or the last bit of a step could be another.
            like = parameter if value.shape == parameter.shape else value.to(parameter.device)
            state[kind] = torch.empty_like(like, requires_grad=False).copy_(value)


def to_tensor(array: Array, model: nn.Module, device: torch.device) -> Tensor:
    """Return activations, or a gradient of some, that came in a message as a leaf of their own.

    They are laid out as `model` lays out its own: so they have the bits that they would have had
    in a network that is not cut.
    """
    tensor = torch.from_numpy(np.array(array)).to(device)
    if tensor.dim() == 4 and _is_channels_last(model):
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    return tensor


def to_array(tensor: Tensor) -> Array:
    """Return a tensor as messages carry it."""
    array: Array = tensor.detach().cpu().contiguous().numpy()
    return array


def _is_channels_last(model: nn.Module) -> bool:
    return any(
        parameter.dim() == 4
        and not parameter.is_contiguous()
        and parameter.is_contiguous(memory_format=torch.channels_last)
        for parameter in model.parameters()
    )
