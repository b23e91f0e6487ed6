"""Patches: what a convolution's weight meets at each place of its output.

A weight's gradient is a sum over places of the outer product of an output's gradient and a patch.
PyTorch's own kernels make it without patches, which is cheaper but for the two cases here.

Shapes: N images, C channels; D = C times the kernel's size, the numbers of a patch; T places, O
outputs.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Geometry:
    """How a convolution in one group lies over its input; a number for each dimension."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


def weight_gradient(patched: Tensor, plain: Tensor, geometry: Geometry, groups: int) -> Tensor:
    """Return the gradient of a convolution's weight, [O, C / groups, *kernel].

    Args:
        patched: Its input, [N, C, *S].
        plain: Its output's gradient, [N, O, *T].
        geometry: Of the convolution.
        groups: Of the convolution.
    """
    shape = (plain.shape[1], patched.shape[1] // groups, *geometry.kernel)
    # Fewer places than a patch has: patches are mostly padding, and PyTorch's kernels slow.
    if groups == 1 and plain[0, 0].numel() < math.prod(geometry.kernel):
        patches_ND = _by_place(_windows(patched, plain, geometry))
        return (plain.transpose(0, 1).reshape(shape[0], -1) @ patches_ND).view(shape)
    # Only its shape and type are looked at.
    weight = patched.new_empty(1).expand(shape)
    none = [0] * len(geometry.kernel)
    _, gradient, _ = torch.ops.aten.convolution_backward(
        plain, patched, weight, None, geometry.stride, geometry.padding, geometry.dilation,
        False, none, groups, [False, True, False],
    )  # fmt: skip
    return cast(Tensor, gradient)


def patches_are_small(weight: Tensor) -> bool:
    """Whether a patch has no more numbers than the outputs: a first layer, of grey images."""
    return weight[0].numel() <= len(weight)


def gradients_by_image(patched: Tensor, plain: Tensor, geometry: Geometry) -> Tensor:
    """Return the weight's gradient of each image, [N, O, C, *kernel]; see `weight_gradient`.

    It lays patches out, so it is for weights whose `patches_are_small`.
    """
    windows = _windows(patched, plain, geometry)
    shape = windows.shape[: len(geometry.kernel) + 2]
    patches_NDT = windows.reshape(len(windows), math.prod(shape[1:]), plain[0, 0].numel())
    gradients_NDO = patches_NDT @ plain.flatten(2).transpose(1, 2)
    return gradients_NDO.transpose(1, 2).reshape(shape[0], plain.shape[1], *shape[1:])


def _windows(patched: Tensor, plain: Tensor, geometry: Geometry) -> Tensor:
    """Return a view [N, C, *kernel, *T] of the padded input: the patch at each place."""
    padding = [side for pad in reversed(geometry.padding) for side in (pad, pad)]
    padded = F.pad(patched, padding) if any(padding) else patched
    strides = padded.stride()[2:]
    within = (step * d for step, d in zip(strides, geometry.dilation, strict=True))
    between = (step * s for step, s in zip(strides, geometry.stride, strict=True))
    return padded.as_strided(
        (*padded.shape[:2], *geometry.kernel, *plain.shape[2:]),
        (*padded.stride()[:2], *within, *between),
    )


def _by_place(windows: Tensor) -> Tensor:
    """Return the patches of all images one after the other, [N T, D]."""
    dims = (windows.dim() - 2) // 2
    places, numbers = range(dims + 2, 2 * dims + 2), range(1, dims + 2)
    in_turn = windows.permute(0, *places, *numbers)
    return in_turn.reshape(math.prod(in_turn.shape[: dims + 1]), -1)
