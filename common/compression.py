"""Updates made small for the way to the server, and read there.

What travels of each, besides buffers, which stay as they are:

    fp16    every parameter as float16
    int8    every parameter as whole numbers from -127 to 127, and `SCALES`: one float32 for each,
            in the model's order; a value is its number times the scale
    top_k   `INDICES` and `VALUES`: the largest values of all parameters laid end to end in the
            model's order, by position

Sites encode and decode with the same functions as the server, so that both know to the bit what
arrived. Sizes follow from the model alone: nothing that a site states decides how much memory is
taken. BatchNorm's statistics are no parameters: a rounded change can make a variance negative.

References: error feedback: Seide et al. 2014,
https://www.isca-archive.org/interspeech_2014/seide14_interspeech.html, Karimireddy et al. 2019,
https://arxiv.org/abs/1901.09847; top-k: Stich et al. 2018, https://arxiv.org/abs/1809.07599;
rounding by chance: Alistarh et al. 2017, https://arxiv.org/abs/1610.02132
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medfed.common.errors import StudyError, UpdateError
from medfed.common.state_dicts import StateDict
from medfed.common.study import CompressionSection

# No parameter has a name like these.
SCALES, INDICES, VALUES = ":scales", ":indices", ":values"
LEVELS = 127
LARGEST = 2.0**31
"""Largest magnitude of a value that is aggregated."""
_MAX_SCALE = 2.0**25  # LARGEST / LEVELS, and room for rounding
Array = npt.NDArray[Any]


def template(
    weights: StateDict, parameters: Collection[str], section: CompressionSection
) -> StateDict:
    """Return arrays of the names, types and shapes that travel; they take no memory.

    Args:
        weights: The global weights.
        parameters: Names of what has gradients.
        section: How updates are compressed.
    """
    if section.update == "none":
        return dict(weights)
    names = _compressed(weights, parameters)
    if section.update == "top_k":
        kept = num_kept(weights, parameters, section)
        rest = {name: array for name, array in weights.items() if name not in names}
        return rest | {INDICES: _like((kept,), "uint32"), VALUES: _like((kept,), "float32")}
    dtype = "float16" if section.update == "fp16" else "int8"
    travels = {
        name: _like(array.shape, dtype) if name in names else array
        for name, array in weights.items()
    }
    if section.update == "int8":
        travels[SCALES] = _like((len(names),), "float32")
    return travels


def num_kept(weights: StateDict, parameters: Collection[str], section: CompressionSection) -> int:
    """Return how many values top_k sends: at least one.

    Raises:
        StudyError: The model has more values than positions can be numbered.
    """
    total = sum(weights[name].size for name in _compressed(weights, parameters))
    if total >= 2**32:
        raise StudyError(f"Expected fewer than 2**32 parameters with top_k, got {total}.")
    return max(1, math.ceil(section.top_k_fraction * total))


def encode(
    update: StateDict,
    parameters: Collection[str],
    section: CompressionSection,
    rng: np.random.Generator | None = None,
) -> StateDict:
    """Return what travels of an update.

    Values that are not finite stay so, for the server to reject them with its reason.

    Args:
        update: New minus old weights, with what is owed from before if the site keeps that.
        parameters: Names of what has gradients.
        section: How.
        rng: For int8: rounds up or down by chance, right on average; None rounds to the nearest.
    """
    names = _compressed(update, parameters)
    if section.update == "none":
        return update
    if section.update == "top_k":
        rest = {name: array for name, array in update.items() if name not in names}
        indices, values = _largest(_flat(update, names), num_kept(update, parameters, section))
        return rest | {INDICES: indices, VALUES: values}
    travels = dict(update)
    if section.update == "fp16":
        with np.errstate(over="ignore"):  # infinite then, and rejected
            travels |= {name: update[name].astype(np.float16) for name in names}
        return travels
    scales = np.zeros(len(names), np.float32)
    for number, name in enumerate(names):
        travels[name], scales[number] = _levels(update[name], rng)
    return travels | {SCALES: scales}


def decode(
    travelled: StateDict,
    weights: StateDict,
    parameters: Collection[str],
    section: CompressionSection,
) -> StateDict:
    """Return the update that `travelled` holds: names, types, shapes and order of `weights`.

    Args:
        travelled: Names, types and shapes of `template`, and finite.
        weights: The global weights.
        parameters: Names of what has gradients.
        section: How it was encoded.

    Raises:
        UpdateError: Whole numbers, scales or positions that no site would send.
    """
    names = _compressed(weights, parameters)
    if section.update == "none":
        return travelled
    if section.update == "top_k":
        dense = _scattered(travelled[INDICES], travelled[VALUES], [weights[n] for n in names])
        found = dict(zip(names, dense, strict=True))
    elif section.update == "int8":
        found = _scaled(travelled, weights, names)
    else:
        found = {name: travelled[name].astype(weights[name].dtype) for name in names}
    return {name: found[name] if name in found else travelled[name] for name in weights}


def compressed_names(travelled: StateDict, weights: StateDict) -> set[str]:
    """Return the names of what was compressed, as an update that travels shows them."""
    return {
        name
        for name, array in weights.items()
        if name not in travelled or travelled[name].dtype != array.dtype
    }


def _compressed(arrays: Mapping[str, Array], parameters: Collection[str]) -> list[str]:
    """Names of what is compressed, in the model's order."""
    return [
        name
        for name, array in arrays.items()
        if name in parameters and np.issubdtype(array.dtype, np.floating)
    ]


def _like(shape: tuple[int, ...], dtype: str) -> Array:
    return np.broadcast_to(np.zeros((), dtype), shape)


def _levels(array: Array, rng: np.random.Generator | None) -> tuple[Array, np.float32]:
    """Whole numbers from -127 to 127, and what one of them is worth."""
    scale = np.float32(np.max(np.abs(array), initial=0) / LEVELS)
    if not (np.isfinite(scale) and scale > 0):
        return np.zeros(array.shape, np.int8), scale
    exact = array / scale
    rounded = np.rint(exact) if rng is None else np.floor(exact + rng.random(array.shape))
    return np.clip(rounded, -LEVELS, LEVELS).astype(np.int8), scale


def _scaled(travelled: StateDict, weights: StateDict, names: Sequence[str]) -> StateDict:
    scales = np.asarray(travelled[SCALES], np.float32)
    if not ((scales >= 0) & (scales <= _MAX_SCALE)).all():
        raise UpdateError(f"Expected scales from 0 to {_MAX_SCALE:g}, got others.")
    found: StateDict = {}
    for name, scale in zip(names, scales, strict=True):
        levels = travelled[name]
        if (levels == -LEVELS - 1).any():
            raise UpdateError(f"{name}: expected whole numbers from -{LEVELS}, got -{LEVELS + 1}.")
        found[name] = (levels.astype(np.float32) * scale).astype(weights[name].dtype)
    return found


def _flat(arrays: Mapping[str, Array], names: Sequence[str]) -> Array:
    parts = [np.asarray(arrays[name], np.float32).reshape(-1) for name in names]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _largest(flat: Array, kept: int) -> tuple[Array, Array]:
    """Positions, rising, and values of the largest; of equal ones the first."""
    magnitude = np.where(np.isfinite(flat), np.abs(flat), np.float32(np.inf))
    # By value: which of equal ones a partition leaves where differs between processors.
    least = np.partition(magnitude, len(flat) - kept)[len(flat) - kept]
    above = np.flatnonzero(magnitude > least)
    level = np.flatnonzero(magnitude == least)[: kept - len(above)]
    indices = np.sort(np.concatenate([above, level]))
    return indices.astype(np.uint32), flat[indices]


def _scattered(indices: Array, values: Array, like: Sequence[Array]) -> list[Array]:
    """The values where they belong, and zero elsewhere."""
    total = sum(array.size for array in like)
    places = indices.astype(np.int64)
    if (places >= total).any() or (np.diff(places) <= 0).any():
        raise UpdateError(f"Expected positions below {total}, each once and rising, got others.")
    flat = np.zeros(total, np.float32)
    flat[places] = values
    ends = np.cumsum([array.size for array in like])[:-1]
    return [
        part.reshape(array.shape).astype(array.dtype)
        for part, array in zip(np.split(flat, ends), like, strict=True)
    ]
