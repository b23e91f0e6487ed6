"""Segmentation: structures that exclude one another, or regions that overlap; 2-D and 3-D.

Structures that exclude one another share a softmax with the background (channel 0); a single one,
and regions that overlap, have a sigmoid each.

Shapes: B images, L structures, L' output channels, *S spatial.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from medfed.common.errors import DataError
from medfed.common.losses import (
    exclusive_pixel_losses,
    overlapping_pixel_losses,
    soft_dice_losses,
)
from medfed.common.metrics import (
    SEGMENTATION_FAMILIES,
    Families,
    MetricSums,
    segmentation_metrics,
    segmentation_shapes,
    segmentation_sums,
)
from medfed.common.study import StudyConfig
from medfed.common.tasks.protocol import WHOLE, Batch, Examples, Figure, Rows


class Segmentation:
    """Soft Dice plus cross entropy, each over one image's own pixels.

    Soft Dice leaves the background out: it is large, and its overlap always good.
    """

    def __init__(self, study: StudyConfig) -> None:
        self.structures = study.task.classes
        self._overlapping = study.task.mode == "multilabel"
        self._softmax = not self._overlapping and len(self.structures) > 1
        self.num_outputs = len(self.structures) + self._softmax
        self._loss = "dice_ce" if study.task.loss == "auto" else study.task.loss
        self._data = study.data
        self._evaluation = study.evaluation
        unit = "px" if study.data.spacing_mm is None else "mm"
        self.figures = (
            Figure("dice", "Dice"),
            Figure("dice_present", "Dice where present"),
            Figure("iou", "IoU, all pixels"),
            Figure("hd95", f"HD95 ({unit})", higher_is_better=False),
            Figure("surface_dice", "Surface Dice"),
            Figure("sensitivity", "Sensitivity"),
            Figure("precision", "Precision"),
            Figure("loss", "Loss", higher_is_better=False),
        )

    @property
    def families(self) -> Families:
        """Loss, overlap and surfaces."""
        return SEGMENTATION_FAMILIES

    def targets(self, examples: Examples) -> Tensor:
        """Return uint8 [B, *S]: structure indices from 1, or one bit a region.

        Raises:
            DataError: No masks, or a value that stands for no structure.
        """
        if examples.masks is None:
            raise DataError(
                "Expected masks for a segmentation, got images without. Choose a data set that "
                "has masks, or another task.type."
            )
        num = len(self.structures)
        highest = 2**num - 1 if self._overlapping else num
        if examples.masks.size and int(examples.masks.max()) > highest:
            raise DataError(
                f"Expected mask values from 0 to {highest} for {', '.join(self.structures)}, got "
                f"{examples.masks.max()}. Prepare the data for this study's task.classes."
            )
        return torch.from_numpy(examples.masks.astype(np.uint8))

    def inputs(
        self, images: Tensor, extras: tuple[Tensor, ...], targets: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the images."""
        return (images, *extras)

    def loss_per_image(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return losses [B] from logits [B, L', *S] and masks [B, *S]."""
        truth_BL = self._planes(targets)
        parts = []
        if self._loss != "cross_entropy":
            parts.append(soft_dice_losses(self.probabilities(outputs), truth_BL))
        if self._loss != "dice":
            parts.append(self._pixel_losses(outputs, truth_BL))
        return torch.stack(parts).sum(dim=0)

    def _pixel_losses(self, outputs: Tensor, truth_BL: Tensor) -> Tensor:
        if not self._softmax:
            return overlapping_pixel_losses(outputs, truth_BL)
        background_B1 = ~truth_BL.any(dim=1, keepdim=True)
        return exclusive_pixel_losses(outputs, torch.cat([background_B1, truth_BL], dim=1))

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the probability of each structure, [B, L, *S]; without the background."""
        return outputs.softmax(dim=1)[:, 1:] if self._softmax else outputs.sigmoid()

    def predict(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return the probability of each structure in whole images, [B, L, *S]."""
        return self.probabilities(self._outputs(model, inputs))

    def evaluate(self, model: nn.Module, batch: Batch) -> MetricSums:
        """Return this batch's counts; see `common.metrics.segmentation`.

        With data.fit = "patch", images larger (or smaller) than a patch are seen in windows.
        """
        return self.evaluate_apart(model, batch, (WHOLE,))[0]

    def evaluate_apart(
        self, model: nn.Module, batch: Batch, groups: Sequence[Rows]
    ) -> list[MetricSums]:
        """Return the counts of each group of the batch's images."""
        outputs = self._outputs(model, batch.inputs)
        losses_B = self.loss_per_image(outputs, batch.targets).double().cpu().numpy()
        predicted_BL = self._predicted(outputs).cpu().numpy()
        truth_BL = self._planes(batch.targets).cpu().numpy()
        return [
            segmentation_sums(
                predicted_BL[rows],
                truth_BL[rows],
                losses_B[rows],
                spacing=self._data.spacing_mm or 1.0,
                tolerance=self._evaluation.surface_tolerance,
            )
            for rows in groups
        ]

    def sum_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each array of `evaluate`."""
        return segmentation_shapes(len(self.structures))

    def metrics(self, sums: MetricSums) -> dict[str, float]:
        """Return Dice, surface distances and the rest, over the structures and for each."""
        return segmentation_metrics(sums, self.structures)

    def _planes(self, masks: Tensor) -> Tensor:
        """Turn masks [B, *S] into one bool plane a structure, [B, L, *S]."""
        numbers = torch.arange(len(self.structures), device=masks.device, dtype=torch.uint8)
        numbers_L = numbers.reshape(-1, *[1] * (masks.dim() - 1))
        masks = masks.unsqueeze(1)
        if self._overlapping:
            return (masks >> numbers_L) & 1 == 1
        return masks == numbers_L + 1

    def _predicted(self, outputs: Tensor) -> Tensor:
        """Turn logits into the pixels of each structure, bool [B, L, *S]."""
        if self._softmax:
            return self._planes(outputs.argmax(dim=1).to(torch.uint8))
        # A probability of one half or more.
        return outputs >= 0

    def _outputs(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        images = inputs[0]
        patch = (self._data.image_size,) * self._data.dimensions
        if self._data.fit != "patch" or images.shape[2:] == patch:
            outputs: Tensor = model(*inputs)
            return outputs
        # MONAI takes seconds to import; only volumes and large images need it.
        from monai.inferers import sliding_window_inference

        windows: Tensor = sliding_window_inference(
            images,
            patch,
            self._evaluation.batch_size,
            model,
            overlap=self._evaluation.window_overlap,
            # The middle of a window counts most: at its border the model sees half a context.
            mode="gaussian",
        )
        return windows
