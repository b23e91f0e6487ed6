"""Gradients of convolutions made of patches, against autograd's.

Shapes: N images, C channels, O outputs.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from medfed.client.privacy.patches import (
    Geometry,
    gradients_by_image,
    patches_are_small,
    weight_gradient,
)

GEOMETRIES = {
    "plain": Geometry((3,), (1,), (0,), (1,)),
    "padded": Geometry((3, 3), (1, 1), (1, 1), (1, 1)),
    "of one": Geometry((1, 1), (2, 2), (0, 0), (1, 1)),
    "uneven": Geometry((3, 2), (1, 2), (2, 1), (2, 1)),
    "volumes": Geometry((2, 3, 2), (2, 1, 1), (1, 1, 0), (1, 1, 2)),
}


def images_and_gradient(geometry: Geometry, side: int) -> tuple[Tensor, Tensor, nn.Module]:
    """Four images of two channels, a gradient of three outputs, their convolution."""
    dims = len(geometry.kernel)
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](2, 3, *vars(geometry).values())
    generator = torch.Generator().manual_seed(side)
    images = torch.randn(4, 2, *[side] * dims, generator=generator, dtype=torch.float64)
    outputs = convolution.double()(images)
    return images, torch.randn(outputs.shape, generator=generator).double(), convolution


def by_autograd(images: Tensor, gradient: Tensor, convolution: nn.Module) -> Tensor:
    (wanted,) = torch.autograd.grad(convolution(images), [convolution.weight], gradient)
    return wanted


@pytest.mark.parametrize("side", [4, 9])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_gradients_are_autograds(name: str, side: int) -> None:
    """With fewer places than a patch has, and with more."""
    geometry = GEOMETRIES[name]
    images, gradient, convolution = images_and_gradient(geometry, side)
    found = weight_gradient(images, gradient, geometry, groups=1)
    wanted = by_autograd(images, gradient, convolution)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert found.is_contiguous()
    for one, by_image in enumerate(gradients_by_image(images, gradient, geometry)):
        part = slice(one, one + 1)
        wanted = by_autograd(images[part], gradient[part], convolution)
        torch.testing.assert_close(by_image, wanted, rtol=1e-12, atol=1e-12)


def test_both_ways_are_tried() -> None:
    fewer = [
        math.prod(images_and_gradient(geometry, side)[1].shape[2:]) < math.prod(geometry.kernel)
        for geometry in GEOMETRIES.values()
        for side in (4, 9)
    ]
    assert 0 < sum(fewer) < len(fewer)


@pytest.mark.parametrize("side", [2, 7])
def test_gradients_do_not_depend_on_the_layout(side: int) -> None:
    geometry = GEOMETRIES["padded"]
    images, _, convolution = images_and_gradient(geometry, side)
    # Of a mean: one number in memory, seen everywhere.
    gradient = torch.full((), 0.5, dtype=torch.float64).expand(4, 3, side, side)
    wanted = by_autograd(images, gradient, convolution)
    last = images.contiguous(memory_format=torch.channels_last)
    spread = gradient.contiguous(memory_format=torch.channels_last)
    for one, other in ((images, gradient), (last, gradient), (last, spread), (images, spread)):
        found = weight_gradient(one, other, geometry, groups=1)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        found = gradients_by_image(one, other, geometry).sum(dim=0)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_patches_are_small_where_images_are_grey() -> None:
    assert patches_are_small(nn.Conv2d(1, 32, 3).weight)
    assert patches_are_small(nn.Conv2d(1, 64, 7).weight)
    assert not patches_are_small(nn.Conv2d(32, 64, 3).weight)
