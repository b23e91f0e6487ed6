"""What a reply must be before it is aggregated. Every rejection has a reason, kept on record.

From cheap to dear: the size of the message before anything in it is unpacked or copied
(`screen_size`), what it states (`screen_statement`, `screen_examples`), then names, types, shapes
and values. Unpacking itself (`common.messages`) reads NumPy's format without pickle.
"""

import math
from collections.abc import Collection

import numpy as np

from medfed.common.errors import UpdateError
from medfed.common.messages import TrainReply
from medfed.common.metrics import MetricSums
from medfed.common.state_dicts import StateDict

MAX_EXAMPLES = 2**28
MAX_SUM = 2**55
"""Largest metric sum of one site: those of 256 sites add up without overflow."""
_NOISES = ("secure", "seeded", "none")
# NumPy's header is 128 bytes for the shapes of any network; Flower counts an array's name too.
_BYTES_PER_ARRAY = 1024
_BYTES_BESIDES = 2**16
_NAMED = 3
_LONGEST_NAME = 80


def screen_size(num_bytes: int, weights: StateDict) -> None:
    """Check that a message that should hold an update is no larger than one.

    Args:
        num_bytes: Size of its content, packed.
        weights: The global weights.

    Raises:
        UpdateError: It is larger.
    """
    model = sum(array.nbytes for array in weights.values())
    most = model + len(weights) * _BYTES_PER_ARRAY + _BYTES_BESIDES
    if num_bytes > most:
        raise UpdateError(
            f"Expected at most {most} bytes for a model of {model} bytes, got {num_bytes}."
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
        if not np.isfinite(array).all():
            raise UpdateError(f"{name}: holds NaN or infinite values.")


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


def _some(names: Collection[str]) -> str:
    """Names for a person to read: a site chooses them, so few, cut, and with no line breaks."""
    first = [name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..." for name in names]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{sorted(first)[:_NAMED]}{more}"
