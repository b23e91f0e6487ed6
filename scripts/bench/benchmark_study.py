"""The study that `overhead.py` and `stock_flower.py` run: made-up images, and who has which.

Images: noise, and in class 1 a faint disc somewhere. Written as a MedMNIST file, so that medfed
reads them as it reads real ones. The sites are those that medfed itself made in a first run:
everyone else gets its rows, so that all do the same number of steps.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import plain_loop
from measuring import Sample, run_process

MEDMNIST_SIZES = (64, 128, 224)
_TOML = """\
[study]
name = "overhead"
seed = 1

[task]
classes = ["normal", "pneumonia"]

[data]
image_size = {image_size}
mean = {mean}
std = {std}

[training]
rounds = {rounds}
local_epochs = {epochs}
batch_size = {batch_size}
learning_rate = {learning_rate}
momentum = {momentum}

[federation]
min_sites = {num_sites}

[privacy]
unit = "none"

[compute]
threads = 1

[simulation]
dataset = "medmnist"
name = "pneumoniamnist_{image_size}"
arms = ["federated"]

[simulation.partition]
method = "iid"
num_sites = {num_sites}
"""


@dataclass(frozen=True)
class BenchmarkStudy:
    """Size of the study. Counts of images are a site's; the draw moves them by a few."""

    num_sites: int = 8
    train_images: int = 200
    test_images: int = 50
    image_size: int = 64
    rounds: int = 10
    epochs: int = 1

    def write(self, folder: Path) -> None:
        """Write `images.npz` and `study.toml` into `folder`."""
        if self.image_size not in MEDMNIST_SIZES:
            raise SystemExit(f"Expected --image-size in {MEDMNIST_SIZES}, got {self.image_size}.")
        rng = np.random.default_rng(0)
        counts = {
            "train": self.num_sites * self.train_images,
            "val": 0,
            "test": self.num_sites * self.test_images,
        }
        arrays = {}
        for part, count in counts.items():
            labels = rng.permutation(np.arange(count) % 2)
            arrays[f"{part}_images"] = _images(labels, self.image_size, rng)
            arrays[f"{part}_labels"] = labels[:, None]
        np.savez(folder / "images.npz", **arrays)
        values = asdict(self) | {
            "mean": plain_loop.MEAN,
            "std": plain_loop.STD,
            "batch_size": plain_loop.BATCH_SIZE,
            "learning_rate": plain_loop.LEARNING_RATE,
            "momentum": plain_loop.MOMENTUM,
        }
        (folder / "study.toml").write_text(_TOML.format(**values), encoding="utf-8")

    def copy_sites(self, run: Path, folder: Path) -> int:
        """Write `sites.json`: the rows of every site of a medfed run. Return steps a round."""
        rows_of = {}
        for path in sorted((run / "arms" / "federated" / "sites").glob("*/subset.json")):
            subset = json.loads(path.read_text())
            rows_of[path.parent.name] = {side: subset[side][0] for side in ("train", "test")}
        total = sum(len(rows[side]) for rows in rows_of.values() for side in rows)
        expected = self.num_sites * (self.train_images + self.test_images)
        if len(rows_of) != self.num_sites or total != expected:
            raise SystemExit(
                f"Expected {self.num_sites} sites with {expected} images in {run}, got "
                f"{len(rows_of)} with {total}: medfed set some aside, so the work would differ."
            )
        (folder / "sites.json").write_text(json.dumps(rows_of))
        batches = [-(-len(rows["train"]) // plain_loop.BATCH_SIZE) for rows in rows_of.values()]
        return self.epochs * sum(batches)


class Medfed:
    """Runs `medfed simulate` in `folder`, into a fresh run folder each time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    @property
    def last_run(self) -> Path:
        return self._folder / f"run{self._count}"

    def run(self, cores: Sequence[int], workers: int) -> Sample:
        self._count += 1
        return run_process(
            [
                *(Path(sys.executable).parent / "medfed", "simulate", self._folder / "study.toml"),
                *("--data", self._folder / "images.npz", "--out", self.last_run),
                *("--workers", str(workers)),
            ],
            cores=cores,
            environment=os.environ | {"MEDFED_CACHE": str(self._folder / "cache")},
        )

    def figures(self) -> dict[str, float]:
        lines = (self.last_run / "arms" / "federated" / "rounds.jsonl").read_text().splitlines()
        metrics = json.loads(lines[-1])["metrics"]
        return {name: metrics[name] for name in ("loss", "accuracy", "auroc")}


def add_study_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that overhead.py and stock_flower.py share."""
    study = BenchmarkStudy()
    parser.add_argument("--num-sites", type=int, default=study.num_sites)
    parser.add_argument("--train-images", type=int, default=study.train_images, help="a site")
    parser.add_argument("--test-images", type=int, default=study.test_images, help="a site")
    parser.add_argument("--image-size", type=int, default=study.image_size, help="pixels")
    parser.add_argument("--rounds", type=int, default=study.rounds)
    parser.add_argument("--epochs", type=int, default=study.epochs, help="passes a round")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each")
    parser.add_argument("--json", type=Path, help="write everything to this file")


def study_of(options: argparse.Namespace) -> BenchmarkStudy:
    """Return the study that the options ask for."""
    names = BenchmarkStudy.__dataclass_fields__
    return BenchmarkStudy(**{name: getattr(options, name) for name in names})


def first_run(study: BenchmarkStudy, data: Path, cores: Sequence[int]) -> tuple[Sample, int]:
    """Write the study, let medfed prepare its store and make the sites; return steps a round."""
    study.write(data)
    medfed = Medfed(data)
    sample = medfed.run(cores, 1)
    return sample, study.copy_sites(medfed.last_run, data)


def _images(
    labels: npt.NDArray[np.int64], size: int, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """uint8 [N, size, size]."""
    pixels = rng.normal(110, 25, (len(labels), size, size))
    rows, columns = np.mgrid[:size, :size]
    for image, label in zip(pixels, labels, strict=True):
        centre = rng.uniform(0.2 * size, 0.8 * size, 2)
        inside = np.hypot(rows - centre[0], columns - centre[1]) < rng.uniform(0.1, 0.2) * size
        image[inside] += 60 * label
    return pixels.clip(0, 255).astype(np.uint8)
