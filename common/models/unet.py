"""MONAI's residual U-Net, layer for layer, without importing MONAI.

The import takes three seconds, which short runs and every process of a site would pay for a network
of four kinds of layers. Names of the state, first weights for a given random state and outputs are
MONAI's `UNet(num_res_units=2, act="RELU", bias=False)`, bit for bit; a test holds them together, so
weight files made with either load into the other.

Reference: Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597; residual units: Kerfoot et al.
2019, https://doi.org/10.1007/978-3-030-12029-0_40
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]
"""The normalisation of so many channels."""

# Layer by number of dimensions.
_CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class ResidualUnet(nn.Module):
    """Images [B, in_channels, *S] to [B, widths[0], *S]; sides a multiple of 2 ** (levels - 1).

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of an image.
        widths: Channels of each level from the top, at least two; the first level has half the
            image's resolution, the last one that of the level above.
        norm: Makes the normalisation after a convolution.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, widths: tuple[int, ...], norm: Norm
    ) -> None:
        super().__init__()
        layers = _Layers(spatial_dims, norm)
        self.model = layers.level(in_channels, widths[0], widths, is_top=True)

    def forward(self, images: Tensor) -> Tensor:
        """Return the feature maps of the top."""
        maps: Tensor = self.model(images)
        return maps


@dataclass(frozen=True)
class _Layers:
    """Makes layers, those from below first: so MONAI draws their weights."""

    spatial_dims: int
    norm: Norm

    def level(
        self, inputs: int, outputs: int, widths: tuple[int, ...], *, is_top: bool
    ) -> nn.Sequential:
        """One level of the U and all below it."""
        width, *lower = widths
        below: nn.Module
        if len(lower) > 1:
            below, from_below = self.level(width, width, tuple(lower), is_top=False), width
        else:
            below, from_below = self.down(width, lower[0], stride=1), lower[0]
        down = self.down(inputs, width, stride=2)
        return nn.Sequential(down, _Beside(below), self.up(width + from_below, outputs, is_top))

    def down(self, inputs: int, outputs: int, *, stride: int) -> "_Residual":
        units = [
            _Unit(self._convolution(inputs, outputs, 3, stride), self.norm(outputs)),
            _Unit(self._convolution(outputs, outputs, 3, 1), self.norm(outputs)),
        ]
        if stride == 1 and inputs == outputs:
            return _Residual(units, nn.Identity())
        return _Residual(units, self._convolution(inputs, outputs, 1 if stride == 1 else 3, stride))

    def up(self, inputs: int, outputs: int, is_top: bool) -> nn.Sequential:
        transposed = _TRANSPOSED[self.spatial_dims](
            inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False
        )
        larger = _Unit(transposed, self.norm(outputs))
        convolution = self._convolution(outputs, outputs, 3, 1)
        unit = _Unit(convolution, None if is_top else self.norm(outputs))
        return nn.Sequential(larger, _Residual([unit], nn.Identity()))

    def _convolution(self, inputs: int, outputs: int, size: int, stride: int) -> nn.Module:
        # No bias: the normalisation that follows has one, and each costs every patient a gradient.
        return _CONVOLUTIONS[self.spatial_dims](
            inputs, outputs, size, stride=stride, padding=size // 2, bias=False
        )


class _Unit(nn.Module):
    """A convolution, and normalisation and ReLU after it, if it has one."""

    def __init__(self, convolution: nn.Module, norm: nn.Module | None) -> None:
        super().__init__()
        self.conv = convolution
        # MONAI's names.
        self.adn = nn.Sequential()
        if norm is not None:
            self.adn.add_module("N", norm)
            self.adn.add_module("A", nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.adn(self.conv(images))
        return maps


class _Residual(nn.Module):
    """Units one after the other, added to what came in or a convolution of it."""

    def __init__(self, units: list[_Unit], beside: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Sequential()
        for number, unit in enumerate(units):
            self.conv.add_module(f"unit{number}", unit)
        self.residual = beside

    def forward(self, images: Tensor) -> Tensor:
        beside: Tensor = self.residual(images)
        maps: Tensor = self.conv(images)
        return maps + beside


class _Beside(nn.Module):
    """What comes in, and behind it in the channels what the levels below make of it."""

    def __init__(self, submodule: nn.Module) -> None:
        super().__init__()
        self.submodule = submodule

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([images, self.submodule(images)], dim=1)
