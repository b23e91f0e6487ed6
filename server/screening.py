"""What a reply must be before it is aggregated. Every rejection has a reason, kept on record.

From cheap to dear: the size of the message before anything in it is unpacked or copied
(`screen_size`), what it states (`screen_statement`, `screen_examples`), then names, types, shapes
and values. Unpacking itself (`common.messages`) reads NumPy's format without pickle.
"""

import math
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from medfed.common.errors import UpdateError
from medfed.common.messages import StatisticsReply, TrainReply
from medfed.common.metrics import MetricSums
from medfed.common.state_dicts import StateDict, all_finite
from medfed.common.statistics import Floats, Values, quantities
from medfed.common.study import StudyConfig

Array = npt.NDArray[np.generic]

MAX_EXAMPLES = 2**28
MAX_SUM = 2**55
"""Largest metric sum of one site: those of 256 sites add up without overflow."""
_NOISES = ("secure", "seeded", "none")
# Shares are rounded to four decimals, and there are 256 of them at most.
_ROUNDED = 256 * 0.5e-4 + 1e-9
# NumPy's header is 128 bytes for the shapes of any network; Flower counts an array's name too.
_BYTES_PER_ARRAY = 1024
_BYTES_BESIDES = 2**16
_NAMED = 3
_LONGEST_NAME = 80


def screen_size(num_bytes: int, weights: StateDict) -> None:
    """Check that a message that should hold an update is no larger than one.

    Args:
        num_bytes: Size of its content, packed.
        weights: The global weights; or arrays of other shapes that it should hold.

    Raises:
        UpdateError: It is larger.
    """
    model = sum(array.nbytes for array in weights.values())
    most = model + len(weights) * _BYTES_PER_ARRAY + _BYTES_BESIDES
    if num_bytes > most:
        raise UpdateError(
            f"Expected at most {most} bytes for arrays of {model} bytes, got {num_bytes}."
        )


def screen_update(update: StateDict, weights: StateDict) -> None:
    """Check names, types, shapes and finiteness of an update against the global weights.

    Raises:
        UpdateError: Naming what is wrong. A coordinator reads it; it holds no site's data.
    """
    if set(update) != set(weights):
        raise UpdateError(
            f"Expected the model's arrays; missing {_some(set(weights) - set(update))}, "
            f"unknown {_some(set(update) - set(weights))}."
        )
    for name, expected in weights.items():
        array = update[name]
        if array.shape != expected.shape or array.dtype != expected.dtype:
            raise UpdateError(
                f"{name}: expected {expected.dtype} of shape {list(expected.shape)}, "
                f"got {array.dtype} of shape {list(array.shape)}."
            )
        if not all_finite(array):
            raise UpdateError(f"{name}: holds NaN or infinite values.")


def screen_batch(array: Array, shape: tuple[int, ...], *, most: int, least: int = 1) -> None:
    """Check what a site sends to the server's part of the network, with split learning.

    Args:
        array: Activations, or a gradient.
        shape: What is expected of one image.
        most: Images of a batch at most.
        least: At least.

    Raises:
        UpdateError: Another type or shape, another number of images, NaN or infinite values.
    """
    if array.dtype != np.float32 or array.shape[1:] != shape or array.ndim != len(shape) + 1:
        raise UpdateError(
            f"Expected float32 of shape {[f'{least} to {most}', *shape]}, got {array.dtype} of "
            f"shape {list(array.shape)}."
        )
    if not least <= len(array) <= most:
        raise UpdateError(f"Expected a batch of {least} to {most} images, got {len(array)}.")
    if not all_finite(array):
        raise UpdateError("Expected finite numbers, got NaN or infinite values.")


def screen_statement(reply: TrainReply) -> None:
    """Check what a reply to training states beside its update: it goes on record.

    Raises:
        UpdateError: A figure that is none, or noise of an unknown kind.
    """
    if reply.noise not in _NOISES:
        raise UpdateError(f"Expected noise to be one of {', '.join(_NOISES)}, got another word.")
    if reply.epsilon is not None and not (math.isfinite(reply.epsilon) and reply.epsilon >= 0):
        raise UpdateError(f"Expected an epsilon >= 0, got {reply.epsilon}.")
    if reply.loss is not None and not math.isfinite(reply.loss):
        raise UpdateError(f"Expected a finite training loss, got {reply.loss}.")


def screen_examples(num_examples: int | None) -> int:
    """Return a site's stated number of training images.

    Raises:
        UpdateError: Missing, not positive or absurd.
    """
    if num_examples is None or not 1 <= num_examples <= MAX_EXAMPLES:
        raise UpdateError(f"Expected 1 to {MAX_EXAMPLES} examples, got {num_examples}.")
    return num_examples


def screen_loss(loss: float | None) -> float:
    """Return a site's stated loss, by which its update counts.

    Raises:
        UpdateError: Missing, negative or not finite.
    """
    if loss is None or not 0 <= loss < math.inf:
        raise UpdateError(f"Expected a loss >= 0 to count by, got {loss}.")
    return loss


def screen_sums(sums: MetricSums, shapes: dict[str, tuple[int, ...]]) -> None:
    """Check a site's metric sums: names, shapes, whole numbers that are not absurd.

    A site may keep any of them to itself, but for the count of its images.

    Raises:
        UpdateError: Naming what is wrong.
    """
    if "count" not in sums or any(
        name not in shapes or array.shape != shapes[name] for name, array in sums.items()
    ):
        raise UpdateError("The metric sums do not have the task's names and shapes.")
    for name, array in sums.items():
        most = MAX_EXAMPLES if name == "count" else MAX_SUM
        if array.dtype != np.int64 or (array < 0).any() or (array > most).any():
            raise UpdateError(f"Metric sum {name}: expected whole numbers from 0 to {most}.")


def screen_statistics(reply: StatisticsReply, study: StudyConfig) -> Values:
    """Return what a site says of its data, in the order of `quantities`, as far as it can be.

    With noise: any number that is no more absurd than a count can be. Without: whole numbers that
    are no negative ones, shares with a sum of 1, or NaN for what the site keeps to itself.

    Raises:
        UpdateError: Other names, shapes or types, numbers that mean nothing, noise that was not
            asked for, or a statement that is none.
    """
    asked = {quantity.name: quantity.shape for quantity in quantities(study)}
    if set(reply.values) != set(asked):
        raise UpdateError(
            f"Expected the statistics {', '.join(asked)}, got {len(reply.values)} that are others."
        )
    with_noise = study.statistics.noise_multiplier is not None
    if reply.noise not in _NOISES or (reply.noise != "none") != with_noise:
        raise UpdateError(f"Expected statistics with{'' if with_noise else 'out'} noise.")
    if not 0 <= reply.min_count <= MAX_EXAMPLES:
        raise UpdateError(f"Expected a min_count from 0 to {MAX_EXAMPLES}.")
    if reply.epsilon is not None and not (math.isfinite(reply.epsilon) and reply.epsilon >= 0):
        raise UpdateError(f"Expected an epsilon >= 0, got {reply.epsilon}.")
    values: dict[str, Floats] = {}
    for name, shape in asked.items():
        array: npt.NDArray[Any] = reply.values[name]
        if array.dtype != np.float64 or array.shape != shape:
            raise UpdateError(
                f"{name}: expected float64 of shape {list(shape)}, got {array.dtype} of shape "
                f"{list(array.shape)}."
            )
        problem = _noisy_problem(array) if with_noise else _exact_problem(name, array)
        if problem:
            raise UpdateError(f"{name}: expected {problem}.")
        values[name] = array
    return values


def _noisy_problem(array: Floats) -> str:
    fine = np.isfinite(array).all() and (np.abs(array) <= MAX_EXAMPLES).all()
    return "" if fine else f"numbers from -{MAX_EXAMPLES} to {MAX_EXAMPLES}"


def _exact_problem(name: str, array: Floats) -> str:
    known = array[~np.isnan(array)]
    if name != "intensities":
        fine = ((known >= 0) & (known <= MAX_EXAMPLES) & (known == np.floor(known))).all()
        return "" if fine else f"whole numbers from 0 to {MAX_EXAMPLES}"
    rows = array[~np.isnan(array).all(axis=1)]
    fine = ((rows >= 0) & (rows <= 1)).all() and (np.abs(rows.sum(axis=1) - 1) < _ROUNDED).all()
    return "" if fine else "shares from 0 to 1 with a sum of 1 a channel"


def _some(names: Collection[str]) -> str:
    """Names for a person to read: a site chooses them, so few, cut, and with no line breaks."""
    first = [name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..." for name in names]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{sorted(first)[:_NAMED]}{more}"
