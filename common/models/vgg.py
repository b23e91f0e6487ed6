"""VGG-16 without normalisation layers, under torchvision's parameter names.

Reference: Simonyan and Zisserman 2014, https://arxiv.org/abs/1409.1556, configuration D.
"""

from torch import Tensor, nn

from medfed.common.models.pooling import average_to
from medfed.common.models.stages import Stage, modules_in_turn

# Output channels of the 3 x 3 convolutions; 0 is a pooling that halves the grid.
_LAYERS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
# Side of the grid that the dense layers see, whatever the image.
_GRID = 7
_DENSE = 4096


class Vgg16(nn.Module):
    """Images [B, in_channels, H, W] of at least 32 x 32 to logits [B, num_outputs].

    The published dropout is left out; an Identity stands in its place, so that the dense layers
    keep their numbers.
    """

    num_features = 512
    head = ("classifier.6",)

    def __init__(self, in_channels: int, num_outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for width in _LAYERS:
            if width == 0:
                layers.append(nn.MaxPool2d(kernel_size=2))
                continue
            layers += [nn.Conv2d(channels, width, kernel_size=3, padding=1), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(self.num_features * _GRID**2, _DENSE),
            nn.ReLU(),
            nn.Identity(),
            nn.Linear(_DENSE, _DENSE),
            nn.ReLU(),
            nn.Identity(),
            nn.Linear(_DENSE, num_outputs),
        )
        self._initialise()

    def grid(self, images: Tensor) -> Tensor:
        """Return features [B, 512, H/32, W/32]."""
        features: Tensor = self.features(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.classifier(average_to(self.grid(images), _GRID).flatten(1))
        return logits

    def stages(self) -> tuple[Stage, ...]:
        """Return the five blocks up to each pooling, the dense layers, the output."""
        blocks, names = [], list[str]()
        for number, layer in enumerate(self.features):
            names.append(f"features.{number}")
            if isinstance(layer, nn.MaxPool2d):
                blocks.append(modules_in_turn(self, *names))
                names.clear()
        dense = modules_in_turn(self, *(f"classifier.{number}" for number in range(6)))

        def run_dense(grid: Tensor) -> Tensor:
            return dense.run(average_to(grid, _GRID).flatten(1))

        output = modules_in_turn(self, "classifier.6")
        return (*blocks, Stage(dense.modules, run_dense), output)

    def _initialise(self) -> None:
        # He et al. 2015: without it and without normalisation sixteen layers do not start.
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
