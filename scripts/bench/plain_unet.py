"""The U-Net study of `overhead.py` as a plain PyTorch script with MONAI's network.

The residual U-Net as medfed's `unet` has it with its default widths (GroupNorm in 8 groups, no
biases before it, a 1 x 1 convolution at the end): as many parameters, the same operations, in the
same order. It reads the arrays that medfed's first run prepared and does not import medfed.

Shapes: B images in a batch, N images of a site, L structures.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets import UNet
from plain_loop import EVALUATION_BATCH, federate, read_options, read_rows, to_model
from torch import Tensor, nn

LEARNING_RATE = 0.003
STRUCTURES = ("nodule", "effusion", "cardiomegaly")
WIDTHS = (16, 32, 64, 128)
_NUM_GROUPS = 8

Part = tuple[Tensor, Tensor]
"""uint8 [N, 1, H, W] and uint8 [N, H, W], 0 or the number of a structure from 1."""


class Unet(nn.Module):
    """Images [B, 1, H, W], sides a multiple of 8, to logits [B, outputs, H, W]."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.body = UNet(
            spatial_dims=2,
            in_channels=1,
            out_channels=WIDTHS[0],
            channels=WIDTHS,
            strides=(2,) * (len(WIDTHS) - 1),
            num_res_units=2,
            act="RELU",
            norm=("GROUP", {"num_groups": _NUM_GROUPS}),
            bias=False,
        )
        self.output = nn.Conv2d(WIDTHS[0], outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.body(images))


def load_sites(folder: Path) -> dict[str, tuple[Part, Part]]:
    """Return every site's training and test images with their masks, from medfed's store."""
    images, masks = (
        torch.from_numpy(np.load(folder / "store" / name, allow_pickle=False))
        for name in ("images.npy", "masks.npy")
    )
    return {
        site: tuple((images[rows[side]], masks[rows[side]]) for side in ("train", "test"))
        for site, rows in read_rows(folder).items()
    }


def losses(logits: Tensor, masks: Tensor) -> Tensor:
    """Return soft Dice (without background) plus cross entropy, each of one image, [B]."""
    truth = F.one_hot(masks.long(), logits.shape[1]).movedim(-1, 1)
    probabilities = logits.softmax(dim=1)[:, 1:].flatten(2)
    wanted = truth[:, 1:].to(logits.dtype).flatten(2)
    both = (probabilities * wanted).sum(dim=2)
    either = probabilities.sum(dim=2) + wanted.sum(dim=2)
    dice = (1 - (2 * both + 1) / (either + 1)).mean(dim=1)
    return dice + F.cross_entropy(logits, masks.long(), reduction="none").flatten(1).mean(dim=1)


def train(model: nn.Module, data: Part, epochs: int, batch_size: int) -> float:
    """Train in place with a fresh optimiser; return the mean loss."""
    images, masks = data
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    model.train()
    total, count = torch.zeros(()), 0
    for _ in range(epochs):
        for chosen in torch.randperm(len(masks)).split(batch_size):
            optimizer.zero_grad(set_to_none=True)
            each = losses(model(to_model(images[chosen])), masks[chosen])
            each.mean().backward()
            optimizer.step()
            total += each.detach().sum()
            count += len(chosen)
    return float(total) / count


def evaluate(model: nn.Module, tests: list[Part]) -> dict[str, float]:
    """Return the loss and the Dice of all sites' test images, evaluated site by site.

    Dice: of each image and structure, 1 where both are empty; its mean.
    """
    model.eval()
    loss, dice = [], []
    with torch.inference_mode():
        for images, masks in tests:
            batches = (images.split(EVALUATION_BATCH), masks.split(EVALUATION_BATCH))
            for part, truth in zip(*batches, strict=True):
                logits = model(to_model(part))
                loss.append(losses(logits, truth))
                found = logits.argmax(dim=1)
                for number in range(1, len(STRUCTURES) + 1):
                    ours, theirs = found == number, truth == number
                    both = (ours & theirs).flatten(1).sum(dim=1)
                    either = ours.flatten(1).sum(dim=1) + theirs.flatten(1).sum(dim=1)
                    dice.append(torch.where(either > 0, 2 * both / either.clamp(min=1), 1.0))
    return {"loss": float(torch.cat(loss).mean()), "dice": float(torch.cat(dice).mean())}


def main() -> None:
    options = read_options(__doc__)
    history = federate(
        Unet(len(STRUCTURES) + 1),
        load_sites(options.folder),
        options.rounds,
        partial(train, epochs=options.epochs, batch_size=options.batch_size),
        evaluate,
    )
    options.out.write_text(json.dumps(history))


if __name__ == "__main__":
    main()
