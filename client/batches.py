"""From positions in an `ImageSet` to the batch that a model is called with.

    uint8 of the store -> random patch (data.fit = "patch") -> 0..1 -> augmentation ->
    standardised -> views that are missing set to zero -> what the task makes of it

Everything random draws from one stream a site and round, in the order of the images. It decides
which part or version of an image is seen, never which patient: the sampling that privacy counts on
has a stream of its own.

Shapes: B images, C channels, *S spatial, V views, F numbers of the tabular columns.
"""

import math
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medfed.client.augmentation import Augmenter
from medfed.client.data.resident import resident_images
from medfed.client.data.site_data import ImageSet
from medfed.common.study import ColumnSection, DataSection, StudyConfig
from medfed.common.tasks import Batch, Examples, Task
from medfed.common.text import finite_number

Positions = npt.NDArray[np.int64]


class BatchLoader:
    """Makes batches of one site's images.

    Args:
        data: The images.
        task: What the model is trained to do.
        study: Preprocessing, augmentation, views and columns.
        device: Where the batch goes.
    """

    def __init__(
        self, data: ImageSet, task: Task, study: StudyConfig, device: torch.device
    ) -> None:
        self._data = data
        self._task = task
        self._study = study
        self._device = device
        self._augmenter = (
            Augmenter(study.augmentation, study.data.dimensions)
            if study.augmentation.enabled
            else None
        )

    def training_batch(self, chosen: Positions, rng: np.random.Generator) -> Batch:
        """Return images as training sees them: cut to a patch, augmented."""
        section = self._study.data
        examples = self._data.examples(chosen)
        masks = examples.masks
        if section.fit == "patch":
            images = self._data.images_NCHW(chosen)
            shapes = [self._shape(int(position)) for position in chosen]
            images, masks = cut_patches(images, masks, shapes, section.image_size, rng)
            pixels = scaled(images, self._device)
        else:
            pixels = self._pixels(chosen)
        if self._augmenter is not None:
            mask = None if masks is None else torch.from_numpy(masks).to(self._device)
            pixels, mask = self._augmenter(pixels, mask, rng)
            masks = None if mask is None else mask.cpu().numpy()
        return self._batch(chosen, pixels, Examples(examples.labels, masks, examples.reports))

    def evaluation_batch(self, chosen: Positions) -> Batch:
        """Return images whole; with data.fit = "patch" they must be one, in its own size."""
        examples = self._data.examples(chosen)
        if self._study.data.fit == "resize":
            return self._batch(chosen, self._pixels(chosen), examples)
        corner = tuple(slice(side) for side in self._shape(int(chosen[0])))
        images = self._data.images_NCHW(chosen)[(slice(None), slice(None), *corner)]
        masks = None if examples.masks is None else examples.masks[(slice(None), *corner)]
        examples = Examples(examples.labels, masks, examples.reports)
        return self._batch(chosen, scaled(images, self._device), examples)

    def _pixels(self, chosen: Positions) -> Tensor:
        """Whole images in 0..1, from the GPU if they are there already."""
        resident = resident_images(self._data, self._device)
        if resident is None:
            return scaled(self._data.images_NCHW(chosen), self._device)
        return resident[torch.from_numpy(chosen).to(self._device)].float().div_(255.0)

    def _shape(self, position: int) -> tuple[int, ...]:
        shape = self._data.shape_of(position)
        assert shape is not None  # a store of images that keep their own size has them
        return shape

    def _batch(self, chosen: Positions, pixels: Tensor, examples: Examples) -> Batch:
        section = self._study.data
        images = standardised(pixels, section)
        present = self._present(chosen)
        if section.views:
            images = images * _over_channels(present, section.channels, images.dim())
        extras: tuple[Tensor, ...] = ()
        if self._study.uses_fusion:
            extras = (present, self._tabular[torch.from_numpy(chosen)].to(self._device))
        targets = moved(self._task.targets(examples), self._device)
        return Batch(self._task.inputs(images, extras, targets), targets)

    def _present(self, chosen: Positions) -> Tensor:
        present = self._data.present
        if present is None:
            return torch.ones(len(chosen), 1, device=self._device)
        return torch.from_numpy(present[chosen]).float().to(self._device)

    @cached_property
    def _tabular(self) -> Tensor:
        """The tabular columns of the whole set as numbers, [N, F]."""
        parts = [
            encode_column(self._data.column(name), column)
            for name, column in self._study.data.tabular.items()
        ]
        if not parts:
            return torch.zeros(len(self._data), 0)
        return torch.from_numpy(np.concatenate(parts, axis=1))


def scaled(images: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    """Return float32 images in 0..1."""
    return moved(torch.from_numpy(np.ascontiguousarray(images)), device).float().div_(255.0)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on `device`, without waiting for what a GPU has yet to do."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def standardised(pixels: Tensor, section: DataSection) -> Tensor:
    """Return images in 0..1 standardised by the study's public constants; `pixels` is used up."""
    return pixels.sub_(section.mean).div_(section.std)


def cut_patches(
    images: npt.NDArray[np.uint8],
    masks: npt.NDArray[np.uint8] | None,
    shapes: list[tuple[int, ...]],
    side: int,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None]:
    """Cut one patch from each image; what lies outside an image is zero.

    Half of the patches hold a voxel of the image's own mask, if it has any (as nnU-Net does, to
    see small structures often enough); the others lie anywhere.

    Args:
        images: uint8 [B, C, *S].
        masks: uint8 [B, *S], or None.
        shapes: The part of each image that is image.
        side: Length of a patch along every axis.
        rng: Where the patches lie.
    """
    cut = np.zeros((*images.shape[:2], *[side] * (images.ndim - 2)), dtype=np.uint8)
    cut_masks = None if masks is None else np.zeros((len(cut), *cut.shape[2:]), dtype=np.uint8)
    for index, shape in enumerate(shapes):
        draws = rng.random(len(shape) + 2)
        mask = None if masks is None else masks[index]
        starts = _corner(mask, shape, side, draws)
        source = tuple(slice(start, start + side) for start in starts)
        part = images[index][(slice(None), *source)]
        target = tuple(slice(length) for length in part.shape[1:])
        cut[index][(slice(None), *target)] = part
        if masks is not None and cut_masks is not None:
            cut_masks[index][target] = masks[index][source]
    return cut, cut_masks


def _corner(
    mask: npt.NDArray[np.uint8] | None,
    shape: tuple[int, ...],
    side: int,
    draws: npt.NDArray[np.float64],
) -> list[int]:
    """Where a patch starts; `draws` are uniforms: two for the mask, one an axis."""
    room = [max(0, length - side) for length in shape]
    if mask is not None and draws[0] < 0.5:
        marked = np.flatnonzero(mask)
        if len(marked):
            voxel = np.unravel_index(marked[math.floor(draws[1] * len(marked))], mask.shape)
            return [
                int(np.clip(int(at) - math.floor(u * side), 0, free))
                for at, u, free in zip(voxel, draws[2:], room, strict=True)
            ]
    return [math.floor(u * (free + 1)) for u, free in zip(draws[2:], room, strict=True)]


def _over_channels(present_BV: Tensor, channels: int, dimensions: int) -> Tensor:
    """Repeat each view's 0 or 1 over its channels: [B, V*C, 1, ...]."""
    repeated = present_BV.repeat_interleave(channels, dim=1)
    return repeated.reshape(*repeated.shape, *[1] * (dimensions - 2))


def encode_column(texts: tuple[str, ...], column: ColumnSection) -> npt.NDArray[np.float32]:
    """Return [N, num_inputs]: a category as 0s and a 1, a number standardised and a 1.

    What is missing, not a number or not among the values is all zeros.
    """
    table = np.zeros((len(texts), column.num_inputs), dtype=np.float32)
    for row, text in zip(table, texts, strict=True):
        if column.values:
            if text in column.values:
                row[column.values.index(text)] = 1.0
            continue
        number = finite_number(text)
        if number is not None:
            row[:] = ((number - (column.mean or 0.0)) / (column.std or 1.0), 1.0)
    return table
