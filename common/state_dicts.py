"""Plain functions on state dicts as NumPy arrays: names to weights, in a fixed order."""

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medfed.common.errors import MessageError

StateDict = dict[str, npt.NDArray[np.generic]]
"""Parameter and buffer names to arrays, in the model's order."""


def read_state(model: nn.Module) -> StateDict:
    """Return copies of a model's parameters and buffers."""
    return {name: t.detach().cpu().numpy().copy() for name, t in model.state_dict().items()}


def write_state(model: nn.Module, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Copy `state` into a model in place; names and shapes must match."""
    model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})


def check_fits(model: nn.Module, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Check that `state` has a model's names, shapes and types, and is finite.

    Raises:
        MessageError: Naming the first array that does not fit.
    """
    own = model.state_dict()
    if set(own) != set(state):
        missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
        raise MessageError(f"Expected the model's arrays; missing {missing}, unknown {extra}.")
    for name, tensor in own.items():
        array = state[name]
        if tuple(tensor.shape) != array.shape or str(tensor.dtype) != f"torch.{array.dtype}":
            raise MessageError(
                f"{name}: expected {tensor.dtype} of shape {list(tensor.shape)}, got "
                f"{array.dtype} of shape {list(array.shape)}."
            )
        if not np.isfinite(array).all():
            raise MessageError(f"{name}: holds NaN or infinite values.")


def difference(new: StateDict, old: StateDict) -> StateDict:
    """Return new minus old, each in its own type."""
    return {
        name: np.asarray(np.subtract(new[name], array), dtype=array.dtype)
        for name, array in old.items()
    }


def digest(state: Mapping[str, npt.NDArray[np.generic]]) -> str:
    """Return the SHA-256 of names, types, shapes and bytes."""
    hasher = hashlib.sha256()
    for name, array in state.items():
        hasher.update(f"{name}\x1f{array.dtype.str}\x1f{array.shape}\x1f".encode())
        hasher.update(np.asarray(array, order="C").data)
    return hasher.hexdigest()
