"""Inception-v3 without its auxiliary classifier, under torchvision's parameter names.

The network is written as tables: a block is branches side by side, a branch is steps one after the
other. A weights file's `AuxLogits.*`, the auxiliary classifier, have no counterpart here and are
ignored when it is loaded.

Reference: Szegedy et al. 2015, https://arxiv.org/abs/1512.00567
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfed.common.models.pooling import global_average
from medfed.common.models.stages import Stage, modules_in_turn


class _Conv(NamedTuple):
    """One convolution with its normalisation and ReLU; `kernel` is height, width."""

    name: str
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True


class _Fork(NamedTuple):
    """Convolutions of the same input, their outputs side by side."""

    convs: tuple[_Conv, ...]


class _Pool(NamedTuple):
    """Mean over 3 x 3 at every position, or maximum over 3 x 3 at every second."""

    halves: bool


_Step = _Conv | _Fork | _Pool
_Branch = tuple[_Step, ...]

_STEM = (
    _Conv("Conv2d_1a_3x3", 32, (3, 3), stride=2, padded=False),
    _Conv("Conv2d_2a_3x3", 32, (3, 3), padded=False),
    _Conv("Conv2d_2b_3x3", 64, (3, 3)),
    _Pool(halves=True),
    _Conv("Conv2d_3b_1x1", 80),
    _Conv("Conv2d_4a_3x3", 192, (3, 3), padded=False),
    _Pool(halves=True),
)


def _fine(pool_channels: int) -> tuple[_Branch, ...]:
    """Figure 5 of the paper: the 35 x 35 grid of a 299 x 299 image."""
    return (
        (_Conv("branch1x1", 64),),
        (_Conv("branch5x5_1", 48), _Conv("branch5x5_2", 64, (5, 5))),
        (
            _Conv("branch3x3dbl_1", 64),
            _Conv("branch3x3dbl_2", 96, (3, 3)),
            _Conv("branch3x3dbl_3", 96, (3, 3)),
        ),
        (_Pool(halves=False), _Conv("branch_pool", pool_channels)),
    )


def _middle(width: int) -> tuple[_Branch, ...]:
    """Figure 6: the 17 x 17 grid, 7 x 7 convolutions in two factors."""
    return (
        (_Conv("branch1x1", 192),),
        (
            _Conv("branch7x7_1", width),
            _Conv("branch7x7_2", width, (1, 7)),
            _Conv("branch7x7_3", 192, (7, 1)),
        ),
        (
            _Conv("branch7x7dbl_1", width),
            _Conv("branch7x7dbl_2", width, (7, 1)),
            _Conv("branch7x7dbl_3", width, (1, 7)),
            _Conv("branch7x7dbl_4", width, (7, 1)),
            _Conv("branch7x7dbl_5", 192, (1, 7)),
        ),
        (_Pool(halves=False), _Conv("branch_pool", 192)),
    )


# Figure 10: from 35 x 35 to 17 x 17.
_TO_MIDDLE: tuple[_Branch, ...] = (
    (_Conv("branch3x3", 384, (3, 3), stride=2, padded=False),),
    (
        _Conv("branch3x3dbl_1", 64),
        _Conv("branch3x3dbl_2", 96, (3, 3)),
        _Conv("branch3x3dbl_3", 96, (3, 3), stride=2, padded=False),
    ),
    (_Pool(halves=True),),
)
# From 17 x 17 to 8 x 8.
_TO_COARSE: tuple[_Branch, ...] = (
    (_Conv("branch3x3_1", 192), _Conv("branch3x3_2", 320, (3, 3), stride=2, padded=False)),
    (
        _Conv("branch7x7x3_1", 192),
        _Conv("branch7x7x3_2", 192, (1, 7)),
        _Conv("branch7x7x3_3", 192, (7, 1)),
        _Conv("branch7x7x3_4", 192, (3, 3), stride=2, padded=False),
    ),
    (_Pool(halves=True),),
)
# Figure 7: the 8 x 8 grid.
_COARSE: tuple[_Branch, ...] = (
    (_Conv("branch1x1", 320),),
    (
        _Conv("branch3x3_1", 384),
        _Fork((_Conv("branch3x3_2a", 384, (1, 3)), _Conv("branch3x3_2b", 384, (3, 1)))),
    ),
    (
        _Conv("branch3x3dbl_1", 448),
        _Conv("branch3x3dbl_2", 384, (3, 3)),
        _Fork((_Conv("branch3x3dbl_3a", 384, (1, 3)), _Conv("branch3x3dbl_3b", 384, (3, 1)))),
    ),
    (_Pool(halves=False), _Conv("branch_pool", 192)),
)
_BLOCKS = {
    "Mixed_5b": _fine(32),
    "Mixed_5c": _fine(64),
    "Mixed_5d": _fine(64),
    "Mixed_6a": _TO_MIDDLE,
    "Mixed_6b": _middle(128),
    "Mixed_6c": _middle(160),
    "Mixed_6d": _middle(160),
    "Mixed_6e": _middle(192),
    "Mixed_7a": _TO_COARSE,
    "Mixed_7b": _COARSE,
    "Mixed_7c": _COARSE,
}


class InceptionV3(nn.Module):
    """Images [B, in_channels, H, W] of at least 75 x 75 to logits [B, num_outputs]. No dropout."""

    num_features = 2048
    head = ("fc",)

    def __init__(self, in_channels: int, num_outputs: int) -> None:
        super().__init__()
        channels = in_channels
        for step in _STEM:
            channels = _add(self, step, channels)
        for name, branches in _BLOCKS.items():
            block = _Mixed(channels, branches)
            self.add_module(name, block)
            channels = block.out_channels
        self.fc = nn.Linear(channels, num_outputs)

    def grid(self, images: Tensor) -> Tensor:
        """Return features [B, 2048, *grid]: 8 x 8 of 299 x 299, 1 x 1 of 75 x 75."""
        features = images
        for step in _STEM:
            features = _apply(self, step, features)
        for name in _BLOCKS:
            features = self.get_submodule(name)(features)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.fc(global_average(self.grid(images)))
        return logits

    def stages(self) -> tuple[Stage, ...]:
        """Return the stem, the three sizes of block, the output."""
        convs = tuple(step.name for step in _STEM if isinstance(step, _Conv))

        def run_stem(features: Tensor) -> Tensor:
            for step in _STEM:
                features = _apply(self, step, features)
            return features

        def blocks(number: int) -> Stage:
            names = [name for name in _BLOCKS if name.startswith(f"Mixed_{number}")]
            return modules_in_turn(self, *names)

        coarse = blocks(7)

        def run_coarse(features: Tensor) -> Tensor:
            return global_average(coarse.run(features))

        return (
            Stage(convs, run_stem),
            blocks(5),
            blocks(6),
            Stage(coarse.modules, run_coarse),
            modules_in_turn(self, "fc"),
        )


class _Mixed(nn.Module):
    """Branches of the same input, their outputs side by side."""

    def __init__(self, in_channels: int, branches: tuple[_Branch, ...]) -> None:
        super().__init__()
        self._branches = branches
        self.out_channels = 0
        for branch in branches:
            channels = in_channels
            for step in branch:
                channels = _add(self, step, channels)
            self.out_channels += channels

    def forward(self, features: Tensor) -> Tensor:
        outputs = []
        for branch in self._branches:
            output = features
            for step in branch:
                output = _apply(self, step, output)
            outputs.append(output)
        return torch.cat(outputs, dim=1)


class _ConvNorm(nn.Module):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, in_channels: int, spec: _Conv) -> None:
        super().__init__()
        height, width = spec.kernel
        padding = (height // 2, width // 2) if spec.padded else 0
        self.conv = nn.Conv2d(
            in_channels, spec.out_channels, spec.kernel, spec.stride, padding, bias=False
        )
        self.bn = nn.BatchNorm2d(spec.out_channels, eps=0.001)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(features)))


def _add(parent: nn.Module, step: _Step, in_channels: int) -> int:
    """Add what `step` needs to `parent`; return the channels that come out."""
    if isinstance(step, _Pool):
        return in_channels
    convs = step.convs if isinstance(step, _Fork) else (step,)
    for conv in convs:
        parent.add_module(conv.name, _ConvNorm(in_channels, conv))
    return sum(conv.out_channels for conv in convs)


def _apply(parent: nn.Module, step: _Step, features: Tensor) -> Tensor:
    if isinstance(step, _Pool):
        if step.halves:
            return F.max_pool2d(features, kernel_size=3, stride=2)
        return F.avg_pool2d(features, kernel_size=3, stride=1, padding=1)
    convs = step.convs if isinstance(step, _Fork) else (step,)
    outputs = [parent.get_submodule(conv.name)(features) for conv in convs]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
