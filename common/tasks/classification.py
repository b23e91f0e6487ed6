"""Classification: one class an image, any number of findings, or one of several grades in order."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medfed.common.errors import DataError
from medfed.common.losses import grade_losses
from medfed.common.metrics import (
    CLASSIFICATION_FAMILIES,
    Families,
    MetricSums,
    classification_metrics,
    classification_sums,
    ordinal_metrics,
    sum_shapes,
)
from medfed.common.study import StudyConfig
from medfed.common.tasks.protocol import WHOLE, Batch, Examples, Figure, Rows

_FIGURES = (
    Figure("auroc", "AUROC"),
    Figure("average_precision", "Average precision"),
    Figure("balanced_accuracy", "Balanced accuracy"),
    Figure("accuracy", "Accuracy"),
    Figure("loss", "Loss", higher_is_better=False),
    Figure("calibration_error", "Calibration error", higher_is_better=False),
)
_GRADE_FIGURES = (
    Figure("kappa", "Quadratic kappa"),
    Figure("grade_error", "Mean grade error", higher_is_better=False),
)


class Classification:
    """Softmax (multiclass), one sigmoid a class (multilabel), or one a threshold (ordinal).

    Grades are learned as the answers to "is it above grade k?", one output for each k but the
    highest; a grade's probability is the difference of two answers.
    """

    def __init__(self, study: StudyConfig) -> None:
        self.classes = study.task.classes
        self.mode = study.task.mode
        self.num_outputs = len(self.classes) - (self.mode == "ordinal")
        self.figures = (_GRADE_FIGURES if self.mode == "ordinal" else ()) + _FIGURES

    @property
    def families(self) -> Families:
        """Loss, tables, scores and calibration."""
        if self.mode == "multilabel":
            return CLASSIFICATION_FAMILIES
        tables = (*CLASSIFICATION_FAMILIES["tables"], "matrix")
        return {**CLASSIFICATION_FAMILIES, "tables": tables}

    def targets(self, examples: Examples) -> Tensor:
        """Return int64 [B] (one class or grade) or float32 [B, L] (multilabel).

        Raises:
            DataError: A label outside the study's classes.
        """
        labels = examples.labels
        highest = 1 if self.mode == "multilabel" else len(self.classes) - 1
        if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) <= highest:
            raise DataError(
                f"Expected labels from 0 to {highest}, got some from {labels.min()} to "
                f"{labels.max()}. Prepare the data for this study's task.classes."
            )
        kind = np.float32 if self.mode == "multilabel" else np.int64
        return torch.from_numpy(labels.astype(kind))

    def inputs(
        self, images: Tensor, extras: tuple[Tensor, ...], targets: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the images, and which views and columns there are if the model takes them."""
        return (images, *extras)

    def loss_per_image(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return losses [B] from outputs [B, L or L - 1] and targets [B] or [B, L]."""
        if self.mode == "multiclass":
            return F.cross_entropy(outputs, targets, reduction="none")
        if self.mode == "ordinal":
            return grade_losses(outputs, targets)
        losses_BL = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        return losses_BL.mean(dim=1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the probability of each class, [B, L]."""
        if self.mode == "multiclass":
            return outputs.softmax(dim=1)
        return outputs.sigmoid() if self.mode == "multilabel" else _grade_probabilities(outputs)

    def predict(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return the probability of each class, float64 [B, L]."""
        return self.probabilities(model(*inputs).double())

    def evaluate(self, model: nn.Module, batch: Batch) -> MetricSums:
        """Return this batch's counts; see `common.metrics.classification`."""
        return self.evaluate_apart(model, batch, (WHOLE,))[0]

    def evaluate_apart(
        self, model: nn.Module, batch: Batch, groups: Sequence[Rows]
    ) -> list[MetricSums]:
        """Return the counts of each group of the batch's images."""
        outputs = model(*batch.inputs)
        labels = cast(npt.NDArray[np.int64], batch.targets.cpu().numpy())
        losses_B = self.loss_per_image(outputs, batch.targets).double().cpu().numpy()
        probabilities_BL = self.probabilities(outputs.double()).cpu().numpy()
        return [
            classification_sums(probabilities_BL[rows], labels[rows], losses_B[rows], self.mode)
            for rows in groups
        ]

    def sum_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each array of `evaluate`."""
        return sum_shapes(len(self.classes), self.mode)

    def metrics(self, sums: MetricSums) -> dict[str, float]:
        """Return AUROC, accuracy and the rest; of grades also kappa and the mean error."""
        figures = classification_metrics(sums, self.classes)
        if self.mode == "ordinal" and "matrix" in sums:
            figures |= ordinal_metrics(sums["matrix"])
        return figures


def _grade_probabilities(outputs_BK: Tensor) -> Tensor:
    """Return the probability of each grade, [B, K + 1], from the answers to "above grade k?".

    The answers are learned apart, so one may contradict an easier one: each counts at most as
    much as those before it.
    """
    above_BK = outputs_BK.sigmoid().cummin(dim=1).values
    ones = torch.ones_like(above_BK[:, :1])
    reached = torch.cat([ones, above_BK], dim=1)
    passed = torch.cat([above_BK, torch.zeros_like(ones)], dim=1)
    grades_BL = (reached - passed).clamp(min=0)
    return grades_BL / grades_BL.sum(dim=1, keepdim=True)
