"""`Augmenter`: applies what MONAI's transforms drew to a batch of images and their masks.

    flip -> rotate, shear, shift and zoom in one resampling -> gamma -> factor -> offset -> noise

Shapes: B images, C channels, *S spatial.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from medfed.client.augmentation.drawing import Changes, Drawer
from medfed.client.augmentation.geometry import resample
from medfed.common.study import AugmentationSection


class Augmenter:
    """Changes images at random. Holds no state: threads may share one.

    Args:
        section: What may happen, and how much of it.
        dimensions: 2 for images, 3 for volumes.
    """

    def __init__(self, section: AugmentationSection, dimensions: Literal[2, 3]) -> None:
        self._section = section
        self._dimensions = dimensions

    def __call__(
        self, images: Tensor, masks: Tensor | None, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Return changed copies; a mask moves with its image, and its values stay what they are.

        Args:
            images: float32 [B, C, *S] in 0..1, on any device; what comes back is in 0..1 too.
            masks: uint8 [B, *S], or None.
            rng: One integer an image is drawn from it, so an image's result depends on its place
                in that stream and on nothing else.
        """
        shape = tuple(images.shape[-self._dimensions :])
        drawer = Drawer(self._section, shape)
        changes = drawer.draw(rng, len(images))
        images = images.clone()
        masks = None if masks is None else masks.clone()
        _flip(images, masks, changes)
        _move(images, masks, changes)
        _recolour(images, changes)
        _add_noise(images, changes)
        return images.clamp_(0.0, 1.0), masks


def _flip(images: Tensor, masks: Tensor | None, changes: list[Changes]) -> None:
    for index, change in enumerate(changes):
        if change.flips:
            # Counted from the end, the axes of an image and of its mask are the same.
            axes = [axis - (images.dim() - 2) for axis in change.flips]
            images[index] = images[index].flip(axes)
            if masks is not None:
                masks[index] = masks[index].flip(axes)


def _move(images: Tensor, masks: Tensor | None, changes: list[Changes]) -> None:
    matrices = [change.matrix for change in changes]
    moved = [index for index, matrix in enumerate(matrices) if matrix is not None]
    if not moved:
        return
    stacked = np.stack([matrix for matrix in matrices if matrix is not None])
    by = torch.from_numpy(stacked).float().to(images.device)
    images[moved] = resample(images[moved], by, "bilinear")
    if masks is not None:
        # Float32 holds every value of a byte exactly, and the nearest one is not mixed.
        floats = masks[moved][:, None].float()
        masks[moved] = resample(floats, by, "nearest")[:, 0].to(torch.uint8)


def _recolour(images: Tensor, changes: list[Changes]) -> None:
    axes = tuple(range(1, images.dim()))

    def each(values: list[float]) -> Tensor:
        return torch.tensor(values, device=images.device).reshape(-1, *[1] * len(axes))

    bent = [index for index, change in enumerate(changes) if change.gamma != 1.0]
    if bent:
        part = images[bent]
        lowest, highest = part.amin(axes, keepdim=True), part.amax(axes, keepdim=True)
        # As MONAI's AdjustContrast; the small number is for images of one value.
        scaled = (part - lowest) / (highest - lowest + 1e-7)
        powers = scaled.pow(each([changes[index].gamma for index in bent]))
        images[bent] = powers * (highest - lowest) + lowest
    if any((change.factor, change.offset) != (1.0, 0.0) for change in changes):
        images.mul_(each([change.factor for change in changes]))
        images.add_(each([change.offset for change in changes]))


def _add_noise(images: Tensor, changes: list[Changes]) -> None:
    for index, change in enumerate(changes):
        if change.noise_std:
            generator = torch.Generator().manual_seed(change.noise_seed)
            noise = torch.randn(images.shape[1:], generator=generator)
            images[index] += change.noise_std * noise.to(images.device)
