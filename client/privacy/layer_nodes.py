"""Layers as nodes of autograd that write down what their parameters' gradients are made of.

While `listening` is on, functions of PyTorch that are called with a parameter that trains
(`F.linear`, `F.group_norm`, convolutions, ...) run as nodes that hand back the gradient of their
input only. It is the function that is listened to, not the module: low-rank matrices and layers
that are called many times are written down like any other.

Shapes: N images, P patients of K images each (N = P K), C channels; D numbers of an input, O
outputs.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from medfed.client.privacy.layer_records import Records
from medfed.client.privacy.patches import Geometry

# Of aten::convolution, after the tensors: stride, padding, dilation, transposed, output padding,
# groups.
_How = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], bool, tuple[int, ...], int]

# The second side of a CUDA grid, along which torch lays an image's groups. Beyond it the launch
# fails: 16 versions of each of 128 images come to it.
_MOST_GROUPS = 65_535


def listening(records: Records) -> TorchFunctionMode:
    """Return the context in which the forward pass is to run, for `records` to be written."""
    return _Listening(records)


class _Listening(TorchFunctionMode):
    """Puts our nodes of autograd in place of functions that are called with what trains."""

    def __init__(self, records: Records) -> None:
        super().__init__()
        self._records = records

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        listener = _LISTENERS.get(func)
        if listener is None:
            return func(*args, **(kwargs or {}))
        return listener(self._records, *args, **(kwargs or {}))


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


def _linear(records: Records, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if not (records.trains(weight) or records.trains(bias)):
        return F.linear(input, weight, bias)
    return _apply(_Linear, records, input, weight, bias)


def _convolution(
    records: Records,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Tensor:
    dims = weight.dim() - 2
    how = (_each(stride, dims), _each(padding, dims), _each(dilation, dims), False, (0,) * dims)
    return _convolve(records, input, weight, bias, (*how, groups))


def _transposed_convolution(
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
    dims = weight.dim() - 2
    how = (_each(stride, dims), _each(padding, dims), _each(dilation, dims), True)
    return _convolve(records, input, weight, bias, (*how, _each(output_padding, dims), groups))


def _convolve(
    records: Records, images: Tensor, weight: Tensor, bias: Tensor | None, how: _How
) -> Tensor:
    if not (records.trains(weight) or records.trains(bias)):
        return _plain_convolution(images, weight, bias, how)
    records.expect(weight)
    return _apply(_Convolution, records, images, weight, bias, how)


def _group_norm(
    records: Records,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    if not (records.trains(weight) or records.trains(bias)):
        return F.group_norm(input, num_groups, weight, bias, eps)
    return _apply(_GroupNorm, records, input, weight, bias, num_groups, eps)


def _layer_norm(
    records: Records,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    if not (records.trains(weight) or records.trains(bias)):
        return F.layer_norm(input, normalized_shape, weight, bias, eps)
    return _apply(_LayerNorm, records, input, list(normalized_shape), weight, bias, eps)


def _prelu(records: Records, input: Tensor, weight: Tensor) -> Tensor:
    if not records.trains(weight):
        return torch.prelu(input, weight)
    return _apply(_PRelu, records, input, weight)


def _embedding(
    records: Records,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    if not records.trains(weight):
        return F.embedding(
            input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse
        )
    return _apply(_Embedding, records, input, weight)


def _plain_convolution(images: Tensor, weight: Tensor, bias: Tensor | None, how: _How) -> Tensor:
    output: Tensor = torch.ops.aten.convolution(images, weight, bias, *how)
    return output


def _apply(node: type[torch.autograd.Function], records: Records, *arguments: Any) -> Tensor:
    output: Tensor = node.apply(records, *arguments)  # type: ignore[no-untyped-call]
    return output


def _each(value: int | tuple[int, ...], dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value)


_LISTENERS: dict[Any, Callable[..., Tensor]] = {
    F.linear: _linear,
    F.conv1d: _convolution,
    F.conv2d: _convolution,
    F.conv3d: _convolution,
    F.conv_transpose1d: _transposed_convolution,
    F.conv_transpose2d: _transposed_convolution,
    F.conv_transpose3d: _transposed_convolution,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    F.prelu: _prelu,
    F.embedding: _embedding,
}
