"""The small CNN: Conv 32, pool, Conv 64, pool, Dense 128, output. No normalisation layers."""

import torch
from torch import Tensor, nn

from medfed.common.models.pooling import MaxPool3d
from medfed.common.models.stages import Stage, modules_in_turn


class Cnn(nn.Module):
    """Images [B, channels, *S], each side of S image_size, to logits [B, num_outputs].

    Args:
        channels: Channels of an image.
        image_size: Length of each side, at least 10.
        num_outputs: Logits an image.
        spatial_dims: 2 for images, 3 for volumes.
    """

    num_features = 64
    head = ("classifier.3",)

    def __init__(
        self, channels: int, image_size: int, num_outputs: int, spatial_dims: int = 2
    ) -> None:
        super().__init__()
        side = ((image_size - 2) // 2 - 2) // 2
        flat = spatial_dims == 2
        conv = nn.Conv2d if flat else nn.Conv3d
        # ReLU after the pool: the same numbers and gradients to the bit, of a quarter as many.
        self.features = nn.Sequential(
            conv(channels, 32, kernel_size=3),
            nn.MaxPool2d(2) if flat else MaxPool3d(kernel_size=2, stride=2),
            nn.ReLU(),
            conv(32, self.num_features, kernel_size=3),
            nn.MaxPool2d(2) if flat else MaxPool3d(kernel_size=2, stride=2),
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(self.num_features * side**spatial_dims, 128),
            nn.ReLU(),
            nn.Linear(128, num_outputs),
        )

    def grid(self, images: Tensor) -> Tensor:
        """Return features [B, num_features, *grid]."""
        features: Tensor = self.features(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.classifier(self.grid(images))
        return logits

    def stages(self) -> tuple[Stage, ...]:
        """Return conv 32, conv 64, dense 128, output."""
        return (
            modules_in_turn(self, "features.0", "features.1", "features.2"),
            modules_in_turn(self, "features.3", "features.4", "features.5"),
            modules_in_turn(self, "classifier.0", "classifier.1", "classifier.2"),
            modules_in_turn(self, "classifier.3"),
        )


def lay_out_for_cpu(model: nn.Module) -> None:
    """Lay the kernels of every small CNN for images in `model` out channels last, in place.

    On a CPU a step then takes three quarters to four fifths of the time, an evaluation less than
    half (docs/benchmarks.md). Other networks gain little or lose.
    """
    for module in model.modules():
        if isinstance(module, Cnn):
            for layer in module.features:
                if isinstance(layer, nn.Conv2d):
                    # contiguous() would leave a kernel of one channel with either strides.
                    layer.weight.data = layer.weight.data.clone(memory_format=torch.channels_last)
