"""What a reply must be before it is aggregated. Every rejection has a reason, kept on record."""

import numpy as np

from medfed.common.errors import UpdateError
from medfed.common.metrics import MetricSums
from medfed.common.state_dicts import StateDict

MAX_EXAMPLES = 2**28


def screen_update(update: StateDict, weights: StateDict) -> None:
    """Check names, types, shapes and finiteness of an update against the global weights.

    Raises:
        UpdateError: Naming what is wrong. A coordinator reads it; it holds no site's data.
    """
    if set(update) != set(weights):
        missing, extra = sorted(set(weights) - set(update)), sorted(set(update) - set(weights))
        raise UpdateError(f"Expected the model's arrays; missing {missing}, unknown {extra}.")
    for name, expected in weights.items():
        array = update[name]
        if array.shape != expected.shape or array.dtype != expected.dtype:
            raise UpdateError(
                f"{name}: expected {expected.dtype} of shape {list(expected.shape)}, "
                f"got {array.dtype} of shape {list(array.shape)}."
            )
        if not np.isfinite(array).all():
            raise UpdateError(f"{name}: holds NaN or infinite values.")


def screen_examples(num_examples: int | None) -> int:
    """Return a site's stated number of training images.

    Raises:
        UpdateError: Missing, not positive or absurd.
    """
    if num_examples is None or not 1 <= num_examples <= MAX_EXAMPLES:
        raise UpdateError(f"Expected 1 to {MAX_EXAMPLES} examples, got {num_examples}.")
    return num_examples


def screen_sums(sums: MetricSums, shapes: dict[str, tuple[int, ...]]) -> None:
    """Check a site's metric sums: names, shapes, whole non-negative numbers.

    A site may keep any of them to itself, but for the count of its images.

    Raises:
        UpdateError: Naming what is wrong.
    """
    if "count" not in sums or any(
        name not in shapes or array.shape != shapes[name] for name, array in sums.items()
    ):
        raise UpdateError("The metric sums do not have the task's names and shapes.")
    for name, array in sums.items():
        if array.dtype != np.int64 or (array < 0).any():
            raise UpdateError(f"Metric sum {name}: expected whole numbers >= 0.")
