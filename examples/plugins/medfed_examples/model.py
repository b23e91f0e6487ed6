"""A model: a few convolutions, each with GroupNorm, then the mean over the image."""

from torch import nn

from medfed.common.plugins import ModelPlugin, NetworkShape, Section
from medfed.common.study import PositiveInt


class Options(Section):
    """`[model.options]`."""

    width: PositiveInt = 16
    """Channels of the first convolution; a multiple of 4. Each further one has twice as many."""
    depth: PositiveInt = 2
    """Convolutions; each halves the image."""


def build(options: Options, shape: NetworkShape) -> nn.Module:
    """Return the network, with first weights from torch's random state."""
    conv, pool = (
        (nn.Conv2d, nn.AdaptiveAvgPool2d)
        if shape.spatial_dims == 2
        else (nn.Conv3d, nn.AdaptiveAvgPool3d)
    )
    layers: list[nn.Module] = []
    channels = shape.in_channels
    for level in range(options.depth):
        width = options.width * 2**level
        # GroupNorm looks at one image alone. BatchNorm mixes patients: refused under privacy.
        layers += [conv(channels, width, 3, stride=2, padding=1), nn.GroupNorm(4, width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, pool(1), nn.Flatten(), nn.Linear(channels, shape.num_outputs))


tiny_net = ModelPlugin(Options, build)
