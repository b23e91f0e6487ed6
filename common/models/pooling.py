"""Pooling whose backward pass is deterministic on CUDA, where PyTorch's own raises an error.

`torch.use_deterministic_algorithms(True)` refuses the backward passes of MaxPool3d, AvgPool3d and
adaptive average pooling on CUDA. Written with slices, means and products there is nothing to
refuse. In 2-D, max and average pooling with fixed windows are deterministic as they are.
"""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MaxPool3d(nn.Module):
    """Maximum over cubic windows, one axis after the other. No parameters."""

    def __init__(self, kernel_size: int, stride: int, padding: int = 0) -> None:
        super().__init__()
        self._kernel_size = kernel_size
        self._stride = stride
        self._padding = padding

    def forward(self, volumes: Tensor) -> Tensor:
        """Return [B, C, D', H', W'] of [B, C, D, H, W]."""
        for axis in (2, 3, 4):
            volumes = self._along(volumes, axis)
        return volumes

    def _along(self, volumes: Tensor, axis: int) -> Tensor:
        pad = [0, 0] * (4 - axis) + [self._padding, self._padding]
        padded = F.pad(volumes, pad, value=float("-inf"))
        num_windows = (padded.shape[axis] - self._kernel_size) // self._stride + 1
        span = self._stride * (num_windows - 1) + 1
        before = (slice(None),) * axis
        largest = padded[(*before, slice(0, span, self._stride))]
        for start in range(1, self._kernel_size):
            shifted = padded[(*before, slice(start, start + span, self._stride))]
            largest = torch.maximum(largest, shifted)
        return largest


class HalvingAverage3d(nn.Module):
    """Mean over windows of 2 x 2 x 2; an odd last slice is left out. No parameters."""

    def forward(self, volumes: Tensor) -> Tensor:
        """Return [B, C, D/2, H/2, W/2] of [B, C, D, H, W]."""
        depth, height, width = (length // 2 for length in volumes.shape[2:])
        even = volumes[:, :, : 2 * depth, : 2 * height, : 2 * width]
        shape = (*even.shape[:2], depth, 2, height, 2, width, 2)
        return even.reshape(shape).mean(dim=(3, 5, 7))


def global_average(features: Tensor) -> Tensor:
    """Return the mean of each feature over the grid: [B, C] of [B, C, *grid]."""
    return features.flatten(2).mean(dim=2)


def average_to(features: Tensor, size: int) -> Tensor:
    """Average a grid of any height and width to `size` x `size`: [B, C, size, size].

    Cell i of an axis is the mean of the rows from floor(i n / size) to ceil((i + 1) n / size), as
    in PyTorch's AdaptiveAvgPool2d; here as a product with fixed matrices.
    """
    height, width = features.shape[2:]
    rows = _averaging_matrix(size, height, features.dtype, features.device)
    columns = _averaging_matrix(size, width, features.dtype, features.device)
    return rows @ features @ columns.T


# Kept for good: a step that is recorded on a GPU may copy nothing from here to there, and reads
# what it read when it was recorded.
@cache
def _averaging_matrix(size: int, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return [size, length]: row i averages what cell i covers."""
    # Made while evaluating it would be of no use for training.
    with torch.inference_mode(False):
        matrix = torch.zeros(size, length, dtype=dtype)
        for cell in range(size):
            start, end = cell * length // size, -(-(cell + 1) * length // size)
            matrix[cell, start:end] = 1.0 / (end - start)
        return matrix.to(device)
