"""Weight standardisation: convolutions that see their weights with a fixed mean and variance.

In every forward pass the weights of each output channel get mean 0 and variance gain^2 / fan-in;
what is trained, clipped, noised and sent are the weights below, under the names they had. Noise
that moves them all the same way or makes them longer, as DP-SGD's does, no longer reaches the
features. Unlike batch normalisation it looks at no image.

Reference: Qiao et al. 2019, https://arxiv.org/abs/1903.10520, there without 1 / fan-in, which a
normalisation that follows undoes. With it and the gain for ReLU networks without normalisation
layers keep the size of their features: Brock et al. 2021, https://arxiv.org/abs/2101.08692; under
DP-SGD: De et al. 2022, https://arxiv.org/abs/2204.13650
"""

import math
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from medfed.common.models.without_weights import without_weights

# Keeps the variance through a ReLU whose inputs are standard normal.
_GAIN = math.sqrt(2 / (1 - 1 / math.pi))
# Of the variance; weights that are all the same become zeros, with a finite gradient.
_EPSILON = 1e-8


class _Conv2d(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        output: Tensor = super()._conv_forward(input, standardised(weight), bias)
        return output


class _Conv3d(nn.Conv3d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        output: Tensor = super()._conv_forward(input, standardised(weight), bias)
        return output


class _ConvTranspose2d(nn.ConvTranspose2d):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return _transposed(self, F.conv_transpose2d, input, output_size)


class _ConvTranspose3d(nn.ConvTranspose3d):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return _transposed(self, F.conv_transpose3d, input, output_size)


_STANDARDISED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: _Conv2d,
    nn.Conv3d: _Conv3d,
    nn.ConvTranspose2d: _ConvTranspose2d,
    nn.ConvTranspose3d: _ConvTranspose3d,
}


def standardise_weights(model: nn.Module) -> None:
    """Standardise the weights of every convolution in `model`, transposed ones too, from now on.

    Parameters stay the very same under the same names. Left as they are: the final classifier
    (`model.head`), whose size is the certainty of the answer; convolutions of a single input
    (1 x 1 over one channel), of which nothing would be left; transposed ones in groups.
    """
    head = tuple(getattr(model, "head", ()))
    for parent_name, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            full = f"{parent_name}.{name}" if parent_name else name
            in_head = any(full == part or full.startswith(f"{part}.") for part in head)
            if not in_head and _can_be_standardised(child):
                setattr(parent, name, _standardised_convolution(child))


def standardised(weight: Tensor, *, transposed: bool = False) -> Tensor:
    """Return `weight` with mean 0 and variance gain^2 / fan-in for each output channel.

    Args:
        weight: [out, in, *kernel], or [in, out, *kernel] if transposed.
        transposed: Of a transposed convolution.
    """
    dims = [0 if transposed else 1, *range(2, weight.dim())]
    fan_in = math.prod(weight.shape[dim] for dim in dims)
    centred = weight - weight.mean(dim=dims, keepdim=True)
    variance = centred.square().mean(dim=dims, keepdim=True)
    result: Tensor = centred * ((variance + _EPSILON) * fan_in).rsqrt() * _GAIN
    return result


def _transposed(
    module: Any, convolve: Any, images: Tensor, output_size: list[int] | None
) -> Tensor:
    assert output_size is None, "no network of ours asks for it"
    weight = standardised(module.weight, transposed=True)
    return cast(
        Tensor,
        convolve(
            images,
            weight,
            module.bias,
            module.stride,
            module.padding,
            module.output_padding,
            module.groups,
            module.dilation,
        ),
    )


def _can_be_standardised(module: Any) -> bool:
    if type(module) not in _STANDARDISED or (module.transposed and module.groups > 1):
        return False
    return bool(module.in_channels // module.groups * math.prod(module.kernel_size) > 1)


def _standardised_convolution(child: Any) -> nn.Module:
    """Return a convolution like `child`, with its very parameters."""
    more: dict[str, Any] = {}
    if child.transposed:
        more["output_padding"] = child.output_padding
    # On no device: its own first weights are never used, nor drawn.
    with without_weights():
        made: Any = _STANDARDISED[type(child)](
            child.in_channels,
            child.out_channels,
            child.kernel_size,
            stride=child.stride,
            padding=child.padding,
            dilation=child.dilation,
            groups=child.groups,
            bias=child.bias is not None,
            padding_mode=child.padding_mode,
            **more,
        )
    made.weight, made.bias = child.weight, child.bias
    return cast(nn.Module, made.train(child.training))
