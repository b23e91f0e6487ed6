"""The small CNN: Conv 32, pool, Conv 64, pool, Dense 128, output. No normalisation layers."""

from torch import Tensor, nn


class Cnn(nn.Module):
    """Images [B, channels, image_size, image_size] to logits [B, num_outputs]."""

    def __init__(self, channels: int, image_size: int, num_outputs: int) -> None:
        super().__init__()
        side = ((image_size - 2) // 2 - 2) // 2
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, kernel_size=3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, kernel_size=3),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(64 * side * side, 128), nn.ReLU(), nn.Linear(128, num_outputs)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.head(self.features(images))
        return logits
