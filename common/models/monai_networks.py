"""MONAI's ResNet and DenseNet, 2-D and 3-D, with torchvision's architecture and BatchNorm.

MONAI takes seconds to import and the small CNN does not need it: import this module where it is
used.
"""

from monai.networks.nets.densenet import DenseNet
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn
from torch.nn import functional as F

from medfed.common.models.pooling import HalvingAverage3d, MaxPool3d, global_average
from medfed.common.models.stages import Stage, modules_in_turn

_RESNETS = {
    "resnet18": ("basic", [2, 2, 2, 2]),
    "resnet50": ("bottleneck", [3, 4, 6, 3]),
}


class ResNetClassifier(ResNet):  # type: ignore[misc] # MONAI ships no types
    """Images [B, in_channels, *S] of any size to logits [B, num_outputs].

    The first convolution has stride 2 and the shortcuts have no bias, as in the paper and in
    torchvision; MONAI's defaults are others.

    Reference: He et al. 2016, https://arxiv.org/abs/1512.03385
    """

    head = ("fc",)

    def __init__(self, name: str, *, spatial_dims: int, in_channels: int, num_outputs: int) -> None:
        block, layers = _RESNETS[name]
        super().__init__(
            block=block,
            layers=layers,
            block_inplanes=[64, 128, 256, 512],
            spatial_dims=spatial_dims,
            n_input_channels=in_channels,
            conv1_t_stride=2,
            num_classes=num_outputs,
            bias_downsample=False,
        )
        if spatial_dims == 3:
            self.maxpool = MaxPool3d(kernel_size=3, stride=2, padding=1)
        self.num_features: int = self.fc.in_features

    def grid(self, images: Tensor) -> Tensor:
        """Return features [B, num_features, *S / 32]."""
        features = self.maxpool(self.act(self.bn1(self.conv1(images))))
        grid: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        return grid

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.fc(global_average(self.grid(images)))
        return logits

    def stages(self) -> tuple[Stage, ...]:
        """Return the stem, the four layers, the output."""

        def run_last(features: Tensor) -> Tensor:
            return global_average(self.layer4(features))

        return (
            modules_in_turn(self, "conv1", "bn1", "act", "maxpool"),
            *(modules_in_turn(self, f"layer{number}") for number in (1, 2, 3)),
            Stage(("layer4",), run_last),
            modules_in_turn(self, "fc"),
        )


class DenseNetClassifier(DenseNet):  # type: ignore[misc] # MONAI ships no types
    """DenseNet-121: images [B, in_channels, *S], at least 29 a side, to logits [B, num_outputs].

    Reference: Huang et al. 2017, https://arxiv.org/abs/1608.06993
    """

    head = ("class_layers.out",)

    def __init__(self, *, spatial_dims: int, in_channels: int, num_outputs: int) -> None:
        super().__init__(
            spatial_dims=spatial_dims, in_channels=in_channels, out_channels=num_outputs
        )
        if spatial_dims == 3:
            self.features.pool0 = MaxPool3d(kernel_size=3, stride=2, padding=1)
            for child in self.features.children():
                if isinstance(getattr(child, "pool", None), nn.AvgPool3d):
                    child.pool = HalvingAverage3d()
        self.num_features: int = self.class_layers.out.in_features

    def grid(self, images: Tensor) -> Tensor:
        """Return features [B, 1024, *S / 32]."""
        return F.relu(self.features(images))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.class_layers.out(global_average(self.grid(images)))
        return logits

    def stages(self) -> tuple[Stage, ...]:
        """Return the stem, the four dense blocks with what follows each, the output."""
        last = modules_in_turn(self, "features.denseblock4", "features.norm5")

        def run_last(features: Tensor) -> Tensor:
            return global_average(F.relu(last.run(features)))

        return (
            modules_in_turn(
                self, *(f"features.{name}0" for name in ("conv", "norm", "relu", "pool"))
            ),
            *(
                modules_in_turn(
                    self, f"features.denseblock{number}", f"features.transition{number}"
                )
                for number in (1, 2, 3)
            ),
            Stage(last.modules, run_last),
            modules_in_turn(self, "class_layers.out"),
        )
