"""Low-rank adaptation: beside each frozen layer, a product of two small matrices that trains.

    y = layer(x) + B(A(x))      A: as the layer, but with r outputs; B: r to the layer's outputs

A convolution's A has its kernel, stride and padding, its B is 1 x 1. B starts at zero, so that the
network starts as it was. Per-patient gradients are those of A and B alone, which is what makes DP
cheap here: less memory, and noise on fewer numbers. A and B are parameters of the layer itself,
`low_rank_a` and `low_rank_b`; the layer keeps its names, so that weights files still load.

Reference: Hu et al. 2021, https://arxiv.org/abs/2106.09685 (with alpha = r); under DP: Yu et al.
2022, https://arxiv.org/abs/2110.06500
"""

import math
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from medfed.common.errors import StudyError

_TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_POINTWISE: dict[int, Any] = {2: F.conv2d, 3: F.conv3d}
_TRANSPOSE: dict[int, Any] = {2: F.conv_transpose2d, 3: F.conv_transpose3d}


def add_low_rank(model: nn.Module, rank: int) -> None:
    """Add A and B to every linear layer and convolution whose weight is frozen.

    A is drawn from torch's random state. The rank is at most what the layer itself can have.

    Raises:
        StudyError: No such layer is frozen.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, _LAYERS) and not module.weight.requires_grad
    ]
    if not layers:
        raise StudyError(
            "model.low_rank: expected frozen linear layers or convolutions to stand beside, found "
            'none. Set model.freeze to "none" (all but the last layer), "weights", or patterns '
            "that freeze such layers."
        )
    for layer in layers:
        _add(layer, rank)


def _add(layer: Any, rank: int) -> None:
    weight: Tensor = layer.weight
    if isinstance(layer, nn.Linear):
        outputs, shape = layer.out_features, list(weight.shape)
        shape_b = [outputs, 0]
    elif layer.groups != 1:
        return
    else:
        outputs, shape = layer.out_channels, list(weight.shape)
        shape_b = [outputs, 0, *[1] * (weight.dim() - 2)]
    along = 1 if isinstance(layer, _TRANSPOSED) else 0
    fan_in = weight.numel() // outputs
    shape[along] = shape_b[1] = min(rank, outputs, fan_in)
    # As torch initialises the layers themselves: uniform with variance 1 / (3 fan-in).
    bound = 1 / math.sqrt(fan_in)
    layer.low_rank_a = nn.Parameter(weight.new_empty(shape).uniform_(-bound, bound))
    layer.low_rank_b = nn.Parameter(weight.new_zeros(shape_b))
    layer.register_forward_hook(_with_low_rank)


def _with_low_rank(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Forward hook: the layer's output plus that of its two matrices."""
    (images,) = inputs
    a, b = layer.low_rank_a, layer.low_rank_b
    if isinstance(layer, nn.Linear):
        return output + F.linear(F.linear(images, a), b)
    if isinstance(layer, _TRANSPOSED):
        few = _TRANSPOSE[a.dim() - 2](
            images, a, None, layer.stride, layer.padding, layer.output_padding, 1, layer.dilation
        )
    else:
        # Not through a standardised convolution's own: that would standardise A.
        plain = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Conv3d
        few = plain._conv_forward(layer, images, a, None)
    return output + cast(Tensor, _POINTWISE[a.dim() - 2](few, b))
