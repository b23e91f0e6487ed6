"""The studies that `overhead.py` and `stock_flower.py` run: made-up images, and who has which.

    cnn      classification of noise with, in class 1, a faint disc somewhere; a MedMNIST file, so
             that medfed reads it as it reads real ones
    unet     segmentation of the findings of phantom radiographs
    report   their reports

The sites are those that medfed itself made in a first run: everyone else gets its rows, so that all
do the same number of steps. Of the phantom's images they also get the store that this run prepared.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import plain_loop
import plain_report
import plain_unet
from measuring import Sample, run_process

MODELS = ("cnn", "unet", "report")
FIGURES = {
    "cnn": ("loss", "accuracy", "auroc"),
    "unet": ("loss", "dice"),
    "report": ("loss", "bleu4"),
}
"""What everyone computes after every round, besides what else medfed does."""
SCRIPTS = {"cnn": "plain_loop.py", "unet": "plain_unet.py", "report": "plain_report.py"}
MEDMNIST_SIZES = (64, 128, 224)
_COMMON = """\
[study]
name = "overhead"
seed = 1

[data]
image_size = {image_size}
mean = {mean}
std = {std}

[federation]
min_sites = {num_sites}

[privacy]
unit = "none"

[compute]
threads = 1

[simulation.partition]
method = "iid"
num_sites = {num_sites}

[training]
rounds = {rounds}
local_epochs = {epochs}
batch_size = {batch_size}
"""
_CNN = """\
learning_rate = {learning_rate}
momentum = {momentum}

[task]
classes = ["normal", "pneumonia"]

[simulation]
dataset = "medmnist"
name = "pneumoniamnist_{image_size}"
arms = ["federated"]
"""
_PHANTOM = """\
optimizer = "adam"
learning_rate = {learning_rate}

[evaluation]
test_fraction = {test_fraction}

[simulation]
dataset = "phantom"
arms = ["federated"]

[simulation.phantom]
num_patients = {num_images}
max_images_per_patient = 1
co_occurrence = 0.3
"""
_UNET = """
[task]
type = "segmentation"
classes = {classes}

[model]
name = "unet"
widths = {widths}
"""
_REPORT = """
[task]
type = "report"

[task.report]
max_words = {max_words}
min_patients = 1
beam_size = 1

[model]
name = "report_lstm"
encoder = "cnn"
embedding_size = {embedding}
hidden_size = {hidden}
attention_size = {attention}
"""


@dataclass(frozen=True)
class BenchmarkStudy:
    """Size of the study. Counts of images are a site's; the draw moves them by a few.

    A site must have a whole batch of training images, so sites that are small have small batches.
    """

    num_sites: int = 8
    train_images: int = 200
    test_images: int = 50
    image_size: int = 64
    rounds: int = 10
    epochs: int = 1
    model: str = "cnn"

    @property
    def batch_size(self) -> int:
        return min(32, self.train_images // 2)

    def write(self, folder: Path) -> None:
        """Write `study.toml`, and `images.npz` where medfed does not make the images itself."""
        if self.model == "cnn":
            self._write_images(folder)
        text = _COMMON + self._toml()
        values = {
            "image_size": self.image_size,
            "mean": plain_loop.MEAN,
            "std": plain_loop.STD,
            "num_sites": self.num_sites,
            "rounds": self.rounds,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            **self._own_values(),
        }
        (folder / "study.toml").write_text(text.format(**values), encoding="utf-8")

    def _toml(self) -> str:
        return {"cnn": _CNN, "unet": _PHANTOM + _UNET, "report": _PHANTOM + _REPORT}[self.model]

    def _own_values(self) -> dict[str, object]:
        if self.model == "cnn":
            return {
                "learning_rate": plain_loop.LEARNING_RATE,
                "momentum": plain_loop.MOMENTUM,
            }
        of_site = self.train_images + self.test_images
        phantom = {
            "num_images": self.num_sites * of_site,
            "test_fraction": self.test_images / of_site,
        }
        if self.model == "unet":
            return phantom | {
                "learning_rate": plain_unet.LEARNING_RATE,
                "classes": json.dumps(plain_unet.STRUCTURES),
                "widths": json.dumps(plain_unet.WIDTHS),
            }
        return phantom | {
            "learning_rate": plain_report.LEARNING_RATE,
            "max_words": plain_report.MAX_WORDS,
            "embedding": plain_report.EMBEDDING,
            "hidden": plain_report.HIDDEN,
            "attention": plain_report.ATTENTION,
        }

    def _write_images(self, folder: Path) -> None:
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

    def copy_sites(self, run: Path, folder: Path) -> int:
        """Write `sites.json`: the rows of every site of a medfed run. Return steps a round.

        Beside it go links to what else of the run the plain scripts read: the store of phantom
        images, the vocabulary that the sites agreed on.
        """
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
        (store,) = (path.parent for path in (folder / "cache" / "stores").glob("*/store.json"))
        (folder / "store").symlink_to(store)
        if self.model == "report":
            (folder / "vocabulary.json").symlink_to(run / "arms" / "federated" / "vocabulary.json")
        batches = [-(-len(rows["train"]) // self.batch_size) for rows in rows_of.values()]
        return self.epochs * sum(batches)


class Medfed:
    """Runs `medfed simulate` in `folder`, into a fresh run folder each time."""

    def __init__(self, folder: Path, figures: Sequence[str]) -> None:
        self._folder = folder
        self._figures = figures
        self._count = 0

    @property
    def last_run(self) -> Path:
        return self._folder / f"run{self._count}"

    def run(self, cores: Sequence[int], workers: int) -> Sample:
        self._count += 1
        images = self._folder / "images.npz"
        return run_process(
            [
                *(Path(sys.executable).parent / "medfed", "simulate", self._folder / "study.toml"),
                *(("--data", images) if images.exists() else ()),
                *("--out", self.last_run, "--workers", str(workers)),
            ],
            cores=cores,
            environment=os.environ | {"MEDFED_CACHE": str(self._folder / "cache")},
        )

    def figures(self) -> dict[str, float]:
        lines = (self.last_run / "arms" / "federated" / "rounds.jsonl").read_text().splitlines()
        metrics = json.loads(lines[-1])["metrics"]
        return {name: metrics[name] for name in self._figures}


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
    return BenchmarkStudy(**{name: getattr(options, name) for name in names if name in options})


def first_run(study: BenchmarkStudy, data: Path, cores: Sequence[int]) -> tuple[Sample, int]:
    """Write the study, let medfed prepare its store and make the sites; return steps a round."""
    study.write(data)
    medfed = Medfed(data, FIGURES[study.model])
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
