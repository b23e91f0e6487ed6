"""The CNN study of `overhead.py` as a plain PyTorch script: what the others are measured against.

The same network, optimiser steps and evaluations as `medfed simulate`, and nothing else: sites one
after the other, FedAvg weighted by examples, each site's test images after every round. It imports
neither medfed nor Flower. The apps of the others (stock_flower/, nvflare_app/, pfl_app.py) use the
functions of this file, so that all of them train with the same lines of PyTorch; plain_unet.py and
plain_report.py use its federation.

Shapes: B images in a batch, N images of a site.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEARNING_RATE = 0.05
MOMENTUM = 0.9
EVALUATION_BATCH = 128
MEAN, STD = 0.5, 0.25

Images = tuple[Tensor, Tensor]
"""uint8 [N, 1, H, W] and int64 [N]."""


class Cnn(nn.Module):
    """Conv 32, pool, Conv 64, pool, Dense 128, output."""

    def __init__(self, image_size: int = 64, num_classes: int = 2) -> None:
        super().__init__()
        side = ((image_size - 2) // 2 - 2) // 2
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dense = nn.Linear(64 * side * side, 128)
        self.output = nn.Linear(128, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.max_pool2d(F.relu(self.conv1(images)), 2)
        hidden = F.max_pool2d(F.relu(self.conv2(hidden)), 2)
        return self.output(F.relu(self.dense(hidden.flatten(1))))


def read_rows(folder: Path) -> dict[str, dict[str, list[int]]]:
    """Return every site's rows for training and test, as overhead.py wrote them."""
    return json.loads((folder / "sites.json").read_text())


def load_sites(folder: Path) -> dict[str, tuple[Images, Images]]:
    """Return every site's training and test images, from what overhead.py wrote."""
    with np.load(folder / "images.npz", allow_pickle=False) as arrays:
        parts = ("train", "val", "test")
        images = torch.from_numpy(np.concatenate([arrays[f"{part}_images"] for part in parts]))
        labels = torch.from_numpy(np.concatenate([arrays[f"{part}_labels"] for part in parts]))
    images, labels = images.unsqueeze(1), labels.long().squeeze(1)
    return {
        site: tuple((images[rows[side]], labels[rows[side]]) for side in ("train", "test"))
        for site, rows in read_rows(folder).items()
    }


def to_model(images: Tensor) -> Tensor:
    return images.float().div_(255.0).sub_(MEAN).div_(STD)


def train(model: nn.Module, data: Images, epochs: int, batch_size: int) -> float:
    """Train in place with a fresh optimiser; return the mean loss."""
    images, labels = data
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    model.train()
    total, count = torch.zeros(()), 0
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels)).split(batch_size):
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(to_model(images[chosen])), labels[chosen])
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(chosen)
            count += len(chosen)
    return float(total) / count


def predict(model: nn.Module, data: Images) -> tuple[Tensor, Tensor]:
    """Return logits [N, classes] and labels [N] of a site's test images."""
    images, labels = data
    model.eval()
    with torch.inference_mode():
        outputs = [model(to_model(part)) for part in images.split(EVALUATION_BATCH)]
    return torch.cat(outputs), labels


def figures(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return loss, accuracy and AUROC (by ranks) of images of two classes."""
    scores = logits[:, 1] - logits[:, 0]
    ranks = scores.argsort().argsort().double() + 1
    positive = labels == 1
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    wins = float(ranks[positive].sum()) - num_positive * (num_positive + 1) / 2
    return {
        "loss": float(F.cross_entropy(logits, labels)),
        "accuracy": float((logits.argmax(1) == labels).double().mean()),
        "auroc": wins / max(1, num_positive * num_negative),
    }


def evaluate(model: nn.Module, tests: list[Images]) -> dict[str, float]:
    """Return the figures over all sites' test images, evaluated site by site."""
    parts = [predict(model, test) for test in tests]
    return figures(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))


def federate(
    model: nn.Module,
    sites: dict[str, tuple[Any, Any]],
    rounds: int,
    train: Callable[[nn.Module, Any], object],
    evaluate: Callable[[nn.Module, list[Any]], dict[str, float]],
) -> list[dict[str, float]]:
    """Run the study; return the figures after each round.

    A site's part is a tuple whose second member has one row an image.
    """
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    total = sum(len(training[1]) for training, _ in sites.values())
    history = []
    for _ in range(rounds):
        mean = {name: torch.zeros_like(value) for name, value in weights.items()}
        for training, _ in sites.values():
            model.load_state_dict(weights)
            train(model, training)
            for name, value in model.state_dict().items():
                mean[name] += value * (len(training[1]) / total)
        weights = mean
        model.load_state_dict(weights)
        history.append(evaluate(model, [test for _, test in sites.values()]))
    return history


def read_options(description: str) -> argparse.Namespace:
    """Return the options that the plain scripts share, with the threads and the seed set."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="what overhead.py wrote")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=1, help="passes of a site a round")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of PyTorch")
    parser.add_argument("--image-size", type=int, default=64, help="pixels")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return options


def main() -> None:
    options = read_options(__doc__)
    history = federate(
        Cnn(options.image_size),
        load_sites(options.folder),
        options.rounds,
        partial(train, epochs=options.epochs, batch_size=options.batch_size),
        evaluate,
    )
    options.out.write_text(json.dumps(history))


if __name__ == "__main__":
    main()
