"""The study of `overhead.py` as a plain PyTorch script: what the others are measured against.

The same network, optimiser steps and evaluations as `medfed simulate`, and nothing else: sites one
after the other, FedAvg weighted by examples, each site's test images after every round. It imports
neither medfed nor Flower. The stock Flower app (stock_flower/) uses the functions of this file, so
that all three train with the same lines of PyTorch.

Shapes: B images in a batch, N images of a site.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEARNING_RATE = 0.05
MOMENTUM = 0.9
BATCH_SIZE = 32
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


def load_sites(folder: Path) -> dict[str, tuple[Images, Images]]:
    """Return every site's training and test images, from what overhead.py wrote."""
    with np.load(folder / "images.npz", allow_pickle=False) as arrays:
        parts = ("train", "val", "test")
        images = torch.from_numpy(np.concatenate([arrays[f"{part}_images"] for part in parts]))
        labels = torch.from_numpy(np.concatenate([arrays[f"{part}_labels"] for part in parts]))
    images, labels = images.unsqueeze(1), labels.long().squeeze(1)
    rows_of = json.loads((folder / "sites.json").read_text())
    return {
        site: tuple((images[rows[side]], labels[rows[side]]) for side in ("train", "test"))
        for site, rows in rows_of.items()
    }


def to_model(images: Tensor) -> Tensor:
    return images.float().div_(255.0).sub_(MEAN).div_(STD)


def train(model: nn.Module, data: Images, epochs: int) -> float:
    """Train in place with a fresh optimiser; return the mean loss."""
    images, labels = data
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    model.train()
    total, count = torch.zeros(()), 0
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels)).split(BATCH_SIZE):
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
        outputs = [model(to_model(part)) for part in images.split(128)]
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


def federate(folder: Path, rounds: int, epochs: int, image_size: int) -> list[dict[str, float]]:
    """Run the study; return the figures over all sites' test images after each round."""
    sites = load_sites(folder)
    model = Cnn(image_size)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    history = []
    for _ in range(rounds):
        total = sum(len(training[1]) for training, _ in sites.values())
        mean = {name: torch.zeros_like(value) for name, value in weights.items()}
        for training, _ in sites.values():
            model.load_state_dict(weights)
            train(model, training, epochs)
            for name, value in model.state_dict().items():
                mean[name] += value * (len(training[1]) / total)
        weights = mean
        model.load_state_dict(weights)
        parts = [predict(model, test) for _, test in sites.values()]
        history.append(figures(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])))
    return history


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder with images.npz and sites.json")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=1, help="passes of a site a round")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of PyTorch")
    parser.add_argument("--image-size", type=int, default=64, help="pixels")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    history = federate(options.folder, options.rounds, options.epochs, options.image_size)
    options.out.write_text(json.dumps(history))


if __name__ == "__main__":
    main()
