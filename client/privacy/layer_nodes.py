"""Layers as nodes of autograd that write down what their parameters' gradients are made of.

Each node hands back the gradient of its input only. The functions take what those of PyTorch take,
after the records to write to.

Shapes: N images, P patients of K images each (N = P K), C channels; D numbers of an input, O
outputs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medfed.client.privacy.layer_records import Records
from medfed.client.privacy.patches import Geometry

# Of aten::convolution, after the tensors: stride, padding, dilation, transposed, output padding,
# groups.
_How = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], bool, tuple[int, ...], int]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, records: Records, inputs: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.records, ctx.bias = records, bias
        ctx.save_for_backward(inputs, weight)
        return F.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        inputs, weight = ctx.saved_tensors
        records: Records = ctx.records
        if records.trains(weight):
            records.add_linear(weight, inputs, gradient)
        if records.trains(ctx.bias):
            records.add_own(
                ctx.bias, gradient.reshape(records.num_patients, -1, len(weight)).sum(1)
            )
        return None, gradient @ weight if ctx.needs_input_grad[1] else None, None, None


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, records: Records, inputs: Tensor, weight: Tensor, bias: Tensor | None, how: _How
    ) -> Tensor:
        ctx.records, ctx.bias, ctx.how = records, bias, how
        ctx.save_for_backward(inputs, weight)
        return _plain_convolution(inputs, weight, bias, how)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        inputs, weight = ctx.saved_tensors
        records: Records = ctx.records
        stride, padding, dilation, transposed, _, groups = ctx.how
        if records.trains(weight):
            geometry = Geometry(tuple(weight.shape[2:]), stride, padding, dilation)
            patched, plain = (gradient, inputs) if transposed else (inputs, gradient)
            records.add_convolution(weight, patched, plain, geometry, groups)
        if records.trains(ctx.bias):
            records.add_own(ctx.bias, gradient.flatten(2).sum(2))
        if not ctx.needs_input_grad[1]:
            return (None,) * 5
        of_inputs, _, _ = torch.ops.aten.convolution_backward(
            gradient, inputs, weight, None, *ctx.how, [True, False, False]
        )
        return None, of_inputs, None, None, None


class _PRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, records: Records, inputs: Tensor, weight: Tensor) -> Tensor:
        ctx.records = records
        ctx.save_for_backward(inputs, weight)
        return torch.prelu(inputs, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        inputs, weight = ctx.saved_tensors
        positive = inputs > 0
        products = torch.where(positive, 0.0, inputs * gradient)
        # One slope for all channels, or one for each.
        by_image = products.reshape(len(inputs), len(weight), -1).sum(2)
        ctx.records.add_own(weight, by_image)
        slopes = weight.view(-1, *[1] * (inputs.dim() - 2))
        return None, torch.where(positive, gradient, gradient * slopes), None


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, records: Records, words: Tensor, weight: Tensor) -> Tensor:
        ctx.records = records
        ctx.save_for_backward(words, weight)
        return F.embedding(words, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        words, weight = ctx.saved_tensors
        ctx.records.add_embedding(weight, words, gradients[0])
        return None, None, None


def linear(records: Records, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, written down where it trains."""
    if not (records.trains(weight) or records.trains(bias)):
        return F.linear(input, weight, bias)
    return apply_node(_Linear, records, input, weight, bias)


def convolution(
    records: Records,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Tensor:
    """`F.conv1d` to `F.conv3d`, written down where it trains."""
    dims = weight.dim() - 2
    how = (_each(stride, dims), _each(padding, dims), _each(dilation, dims), False, (0,) * dims)
    return _convolve(records, input, weight, bias, (*how, groups))


def transposed_convolution(
    records: Records,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    output_padding: int | tuple[int, ...] = 0,
    groups: int = 1,
    dilation: int | tuple[int, ...] = 1,
) -> Tensor:
    """`F.conv_transpose1d` to `F.conv_transpose3d`, written down where it trains."""
    dims = weight.dim() - 2
    how = (_each(stride, dims), _each(padding, dims), _each(dilation, dims), True)
    return _convolve(records, input, weight, bias, (*how, _each(output_padding, dims), groups))


def _convolve(
    records: Records, images: Tensor, weight: Tensor, bias: Tensor | None, how: _How
) -> Tensor:
    if not (records.trains(weight) or records.trains(bias)):
        return _plain_convolution(images, weight, bias, how)
    records.expect(weight)
    return apply_node(_Convolution, records, images, weight, bias, how)


def prelu(records: Records, input: Tensor, weight: Tensor) -> Tensor:
    """`F.prelu`, written down where it trains."""
    if not records.trains(weight):
        return torch.prelu(input, weight)
    return apply_node(_PRelu, records, input, weight)


def embedding(
    records: Records,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """`F.embedding`, written down where it trains."""
    if not records.trains(weight):
        return F.embedding(
            input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse
        )
    return apply_node(_Embedding, records, input, weight)


def _plain_convolution(images: Tensor, weight: Tensor, bias: Tensor | None, how: _How) -> Tensor:
    output: Tensor = torch.ops.aten.convolution(images, weight, bias, *how)
    return output


def apply_node(node: type[torch.autograd.Function], records: Records, *arguments: Any) -> Tensor:
    """Return what `node` computes, which autograd goes back through."""
    output: Tensor = node.apply(records, *arguments)  # type: ignore[no-untyped-call]
    return output


def _each(value: int | tuple[int, ...], dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value)
