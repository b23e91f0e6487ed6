"""The `Task` protocol: loss, metrics, prediction. Everything else is the same for every task."""

from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from medfed.common.metrics import MetricSums


class Task(Protocol):
    """Shapes: B images in a batch, L outputs."""

    num_outputs: int
    """Outputs of the model's last layer."""
    primary_metric: str
    """The figure that progress and reports lead with."""

    def loss_per_image(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return losses [B]. An image's loss depends on that image only, or DP does not hold."""
        ...

    def targets(self, labels: npt.NDArray[np.generic]) -> Tensor:
        """Turn a store's labels into what `loss_per_image` takes."""
        ...

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Turn outputs [B, L] into probabilities [B, L]."""
        ...

    def sums(self, outputs: Tensor, targets: Tensor, labels: npt.NDArray[np.generic]) -> MetricSums:
        """Return this batch's contribution to every metric."""
        ...

    def sum_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of `sums`, for screening what a site sent."""
        ...

    def metrics(self, sums: MetricSums) -> dict[str, float]:
        """Return the figures that `sums` allow."""
        ...
