"""Classification: one class an image (multiclass) or any number of findings (multilabel)."""

from typing import cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from medfed.common.metrics import (
    MetricSums,
    classification_metrics,
    classification_sums,
    sum_shapes,
)
from medfed.common.study import TaskSection


class Classification:
    """Cross entropy over softmax, or the mean of binary cross entropies over sigmoids."""

    primary_metric = "auroc"

    def __init__(self, section: TaskSection) -> None:
        self.classes = section.classes
        self.mode = section.mode
        self.num_outputs = len(section.classes)

    def loss_per_image(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return losses [B] from outputs [B, L] and targets [B] or [B, L]."""
        if self.mode == "multiclass":
            return F.cross_entropy(outputs, targets, reduction="none")
        losses_BL = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        return losses_BL.mean(dim=1)

    def targets(self, labels: npt.NDArray[np.generic]) -> Tensor:
        """Return int64 [B] (multiclass) or float32 [B, L] (multilabel)."""
        kind = np.int64 if self.mode == "multiclass" else np.float32
        return torch.from_numpy(labels.astype(kind))

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return softmax or sigmoid of outputs, [B, L]."""
        return outputs.softmax(dim=1) if self.mode == "multiclass" else outputs.sigmoid()

    def sums(self, outputs: Tensor, targets: Tensor, labels: npt.NDArray[np.generic]) -> MetricSums:
        """Return this batch's counts; see `common.metrics`."""
        losses_B = self.loss_per_image(outputs, targets)
        return classification_sums(
            self.probabilities(outputs.double()).cpu().numpy(),
            cast(npt.NDArray[np.int64], labels),
            losses_B.double().cpu().numpy(),
            self.mode,
        )

    def sum_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each array of `sums`."""
        return sum_shapes(self.num_outputs, self.mode)

    def metrics(self, sums: MetricSums) -> dict[str, float]:
        """Return AUROC, accuracy and the rest."""
        return classification_metrics(sums, self.classes)
