"""Deterministic pooling against PyTorch's own, which is right and refused on CUDA."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medfed.common.models.pooling import (
    HalvingAverage3d,
    MaxPool3d,
    average_to,
    global_average,
)


def _value_and_gradient(pool: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    images = images.clone().requires_grad_()
    pooled = pool(images)
    weights = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(2)).double()
    (gradient,) = torch.autograd.grad((pooled * weights).sum(), images)
    return pooled, gradient


def _images(*shape: int) -> Tensor:
    return torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1)])
@pytest.mark.parametrize("shape", [(6, 6, 6), (7, 4, 5), (3, 9, 8)])
def test_max_pool_equals_pytorchs(
    kernel: int, stride: int, padding: int, shape: tuple[int, int, int]
) -> None:
    images = _images(*shape)
    ours = _value_and_gradient(MaxPool3d(kernel, stride, padding), images)
    theirs = _value_and_gradient(
        lambda volumes: F.max_pool3d(volumes, kernel, stride, padding), images
    )
    torch.testing.assert_close(ours, theirs)


def test_max_pool_ignores_its_padding() -> None:
    images = _images(4, 4, 4) - 100
    expected = F.max_pool3d(images, 3, stride=2, padding=1)
    assert torch.equal(MaxPool3d(3, stride=2, padding=1)(images), expected)


@pytest.mark.parametrize("shape", [(6, 6, 6), (7, 4, 5), (2, 3, 9)])
def test_halving_average_equals_pytorchs(shape: tuple[int, int, int]) -> None:
    images = _images(*shape)
    ours = _value_and_gradient(HalvingAverage3d(), images)
    theirs = _value_and_gradient(lambda volumes: F.avg_pool3d(volumes, 2), images)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (7, 7), (8, 15), (16, 9), (14, 21)])
def test_average_to_equals_adaptive_pooling(shape: tuple[int, int]) -> None:
    images = _images(*shape)
    ours = _value_and_gradient(lambda grid: average_to(grid, 7), images)
    theirs = _value_and_gradient(lambda grid: F.adaptive_avg_pool2d(grid, 7), images)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(1, 1), (4, 5), (2, 3, 4)])
def test_global_average_is_the_mean_over_the_grid(shape: tuple[int, ...]) -> None:
    grid = _images(*shape)
    expected = grid.mean(dim=tuple(range(2, grid.dim())))
    torch.testing.assert_close(global_average(grid), expected)
