"""Normalisation layers as nodes of autograd that write gradients down; like `layer_nodes`."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medfed.client.privacy.layer_nodes import apply_node
from medfed.client.privacy.layer_records import Records

# The second side of a CUDA grid, along which torch lays an image's groups. Beyond it the launch
# fails: 16 versions of each of 128 images come to it.
_MOST_GROUPS = 65_535


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        records: Records,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor,
        num_groups: int,
        eps: float,
    ) -> Tensor:
        inputs = inputs.contiguous()
        size = math.prod(inputs.shape[2:])
        output, mean, rstd = torch.ops.aten.native_group_norm(
            inputs, weight, bias, *inputs.shape[:2], size, num_groups, eps
        )
        ctx.records, ctx.bias, ctx.num_groups = records, bias, num_groups
        ctx.save_for_backward(inputs, weight, mean, rstd)
        result: Tensor = output
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, mean, rstd = ctx.saved_tensors
        records: Records = ctx.records
        at_once = max(1, _MOST_GROUPS // ctx.num_groups)
        pieces = zip(
            *(whole.split(at_once) for whole in (gradients[0], inputs, mean, rstd)), strict=True
        )
        parts = [
            _group_norm_by_image(gradient, images, at, scale, weight, ctx.needs_input_grad[1])
            for gradient, images, at, scale in pieces
        ]
        of_inputs, of_weight, of_bias = (
            same[0] if len(parts) == 1 or same[0] is None else torch.cat(same)
            for same in zip(*parts, strict=True)
        )
        for parameter, by_image in ((weight, of_weight), (ctx.bias, of_bias)):
            if records.trains(parameter):
                records.add_own(parameter, by_image)
        return None, of_inputs, None, None, None, None


def _group_norm_by_image(
    gradient: Tensor, inputs: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, of_inputs: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return the gradients of the inputs (or None), and of weight and bias for each image."""
    images, channels = inputs.shape[:2]
    # As one image of N C channels: the gradients of weight and bias come out image by image.
    as_one = (1, images * channels, -1)
    found, of_weight, of_bias = torch.ops.aten.native_group_norm_backward(
        gradient.reshape(as_one),
        inputs.view(as_one),
        mean.view(1, -1),
        rstd.view(1, -1),
        weight.repeat(images),
        1,
        images * channels,
        math.prod(inputs.shape[2:]),
        mean.numel(),
        [of_inputs, True, True],
    )
    by_image = (images, channels)
    return (
        found.view(inputs.shape) if of_inputs else None,
        of_weight.view(by_image),
        of_bias.view(by_image),
    )


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        records: Records,
        inputs: Tensor,
        shape: list[int],
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        output, mean, rstd = torch.ops.aten.native_layer_norm(inputs, shape, weight, bias, eps)
        ctx.records, ctx.bias, ctx.shape = records, bias, shape
        ctx.save_for_backward(inputs, weight, mean, rstd)
        result: Tensor = output
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        inputs, weight, mean, rstd = ctx.saved_tensors
        records: Records = ctx.records
        shape = (records.num_patients, -1, *ctx.shape)
        if records.trains(weight):
            products = gradient * (inputs - mean) * rstd
            records.add_own(weight, products.reshape(shape).sum(1))
        if records.trains(ctx.bias):
            records.add_own(ctx.bias, gradient.reshape(shape).sum(1))
        of_inputs, _, _ = torch.ops.aten.native_layer_norm_backward(
            gradient, inputs, ctx.shape, mean, rstd, weight, ctx.bias,
            [ctx.needs_input_grad[1], False, False],
        )  # fmt: skip
        return None, of_inputs, None, None, None, None


def group_norm(
    records: Records,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`F.group_norm`, written down where it trains."""
    if not (records.trains(weight) or records.trains(bias)):
        return F.group_norm(input, num_groups, weight, bias, eps)
    return apply_node(_GroupNorm, records, input, weight, bias, num_groups, eps)


def layer_norm(
    records: Records,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`F.layer_norm`, written down where it trains."""
    if not (records.trains(weight) or records.trains(bias)):
        return F.layer_norm(input, normalized_shape, weight, bias, eps)
    return apply_node(_LayerNorm, records, input, list(normalized_shape), weight, bias, eps)
