"""Plain functions on state dicts as NumPy arrays: names to weights, in a fixed order."""

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

StateDict = dict[str, npt.NDArray[np.generic]]
"""Parameter and buffer names to arrays, in the model's order."""


def read_state(model: nn.Module) -> StateDict:
    """Return copies of a model's parameters and buffers."""
    return {name: t.detach().cpu().numpy().copy() for name, t in model.state_dict().items()}


def write_state(model: nn.Module, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Copy `state` into a model in place; names and shapes must match."""
    model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})


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
