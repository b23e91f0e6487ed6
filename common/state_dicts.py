"""Plain functions on state dicts as NumPy arrays: names to weights, in a fixed order."""

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medfed.common.errors import MessageError

StateDict = dict[str, npt.NDArray[np.generic]]
"""Parameter and buffer names to arrays, in the model's order."""


def read_state(model: nn.Module, names: Sequence[str] | None = None) -> StateDict:
    """Return copies of a model's parameters and buffers, or of those called `names`."""
    own = model.state_dict()
    return {
        name: own[name].detach().cpu().numpy().copy() for name in (own if names is None else names)
    }


def write_state(model: nn.Module, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Copy `state` into a model in place; what it does not name stays as it is.

    Raises:
        MessageError: A name that the model has not, or another shape.
    """
    own = model.state_dict()
    with torch.no_grad():
        for name, array in state.items():
            if name not in own or tuple(own[name].shape) != array.shape:
                raise MessageError(f"{name}: expected an array of the model, got another.")
            if own[name].is_cpu:
                np.copyto(own[name].numpy(), array, casting="unsafe")
            else:
                # A copy: torch warns of arrays that cannot be written, as shared ones cannot.
                own[name].copy_(torch.tensor(array))


def check_fits(expected: StateDict, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Check that `state` has the names, shapes and types of `expected`, and is finite.

    Raises:
        MessageError: Naming the first array that does not fit.
    """
    check_shapes(expected, state)
    check_finite(state)


def check_shapes(expected: StateDict, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Check that `state` has the names, shapes and types of `expected`.

    Raises:
        MessageError: Naming the first array that does not fit.
    """
    if set(expected) != set(state):
        missing, extra = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
        raise MessageError(f"Expected the model's arrays; missing {missing}, unknown {extra}.")
    for name, own in expected.items():
        array = state[name]
        if own.shape != array.shape or own.dtype != array.dtype:
            raise MessageError(
                f"{name}: expected {own.dtype} of shape {list(own.shape)}, got "
                f"{array.dtype} of shape {list(array.shape)}."
            )


def check_finite(state: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Check that no value is NaN or infinite.

    Raises:
        MessageError: Naming the first array with one.
    """
    for name, array in state.items():
        if not all_finite(array):
            raise MessageError(f"{name}: holds NaN or infinite values.")


def all_finite(array: npt.NDArray[np.generic]) -> bool:
    """Whether no value is NaN or infinite."""
    # Without an array of answers: either end is NaN if any value is.
    ends = (np.max(array, initial=0), np.min(array, initial=0))
    return all(math.isfinite(end) for end in ends)


def difference(new: StateDict, old: StateDict) -> StateDict:
    """Return new minus old, each in its own type."""
    return {
        name: np.asarray(np.subtract(new[name], array), dtype=array.dtype)
        for name, array in old.items()
    }


def change_of(model: nn.Module, old: StateDict) -> StateDict:
    """Return a model's weights minus `old`, for all names in `old`, each in its own type."""
    own = model.state_dict()
    return difference({name: own[name].detach().cpu().numpy() for name in old}, old)


def digest(state: Mapping[str, npt.NDArray[np.generic]]) -> str:
    """Return the SHA-256 of names, types, shapes and bytes."""
    hasher = hashlib.sha256()
    for name, array in state.items():
        hasher.update(f"{name}\x1f{array.dtype.str}\x1f{array.shape}\x1f".encode())
        hasher.update(np.asarray(array, order="C").data)
    return hasher.hexdigest()
