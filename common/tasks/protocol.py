"""The `Task` protocol: loss, metrics, prediction. Everything else is the same for every task.

Shapes: B images in a batch, C channels, *S spatial (H, W or D, H, W), L classes, T tokens.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from medfed.common.metrics import Families, MetricSums

Rows = slice | npt.NDArray[np.int64]
"""Which of a batch's images."""

WHOLE = slice(None)


@dataclass(frozen=True)
class Examples:
    """What is known about B images besides their pixels.

    Attributes:
        labels: int64 [B] class indices, or uint8 [B, L] of 0 and 1.
        masks: uint8 [B, *S], structure indices (0 background) or one bit a region; None if the
            data set has no masks.
        reports: B texts, empty where there is none.
    """

    labels: npt.NDArray[np.int64] | npt.NDArray[np.uint8]
    masks: npt.NDArray[np.uint8] | None
    reports: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """What a model is called with, and what it should answer.

    Attributes:
        inputs: `model(*inputs)`; every tensor has B first.
        targets: [B, ...].
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor


@dataclass(frozen=True)
class Figure:
    """One of the numbers that a task is judged by.

    Attributes:
        key: Its name in `Task.metrics`.
        title: What tables and plots call it.
        higher_is_better: None where neither end is better (counts).
    """

    key: str
    title: str
    higher_is_better: bool | None = True


class ImageLoss(Protocol):
    """What a training step lowers."""

    def loss_per_image(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return losses [B]. An image's loss depends on that image only, or DP does not hold."""
        ...


class Task(Protocol):
    """What a study trains a model to do."""

    @property
    def num_outputs(self) -> int:
        """Outputs of the model's last layer."""
        ...

    @property
    def figures(self) -> tuple[Figure, ...]:
        """What tables and plots show, the figure that everything leads with first."""
        ...

    @property
    def families(self) -> Families:
        """Names of `evaluate`'s sums that a site releases together, by the policy's word."""
        ...

    def targets(self, examples: Examples) -> Tensor:
        """Turn what is known into what `loss_per_image` takes, [B, ...]."""
        ...

    def inputs(
        self, images: Tensor, extras: tuple[Tensor, ...], targets: Tensor
    ) -> tuple[Tensor, ...]:
        """Return what the model is called with.

        Args:
            images: Standardised images [B, C, *S].
            extras: Nothing, or (present [B, V], tabular [B, F]) for several views or columns.
            targets: As `targets` returned them (a report's words are fed back to the model).
        """
        ...

    def loss_per_image(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return losses [B]. An image's loss depends on that image only, or DP does not hold."""
        ...

    def evaluate(self, model: nn.Module, batch: Batch) -> MetricSums:
        """Return this batch's contribution to every metric: arrays of int64 that add up.

        `count` is always there, of shape (): the number of images. Real numbers become whole ones
        by `common.metrics.fixed`, so that their sum is exact in any order.
        """
        ...

    def sum_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of `evaluate`'s arrays, for screening what a site sent."""
        ...

    def metrics(self, sums: MetricSums) -> dict[str, float]:
        """Return the figures that `sums` allow; one that is undefined, or whose family is not
        there, is left out. Of the sums `count` is always there.

        Called for one family at a time: a site may keep the others to itself.
        """
        ...
