"""A small but real run folder: written through the server's own records, metrics and ledgers."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medfed.common.accounting import GaussianEvent, epsilon
from medfed.common.files import write_json
from medfed.common.ledger import Ledger, Spend
from medfed.common.metrics import (
    MetricSums,
    add_sums,
    classification_sums,
    confusion_tables,
    segmentation_sums,
    text_sums,
)
from medfed.common.metrics.findings import FindingLabeller
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study, study_to_toml
from medfed.common.tasks import Task, make_task
from medfed.common.text import tokenise
from medfed.server.checkpoint import Checkpoint, save_checkpoint, write_weights
from medfed.server.records import ArmFolder, RoundRecord, RunPlan, SiteRound
from medfed.server.released_sums import ReleasedSums
from medfed.server.words import write_vocabulary
from medfed.simulations.reporting.report import write_report

CLASSES = ("normal", "nodule", "effusion", "pneumothorax")
EVENT = GaussianEvent(noise_multiplier=1.0, sample_rate=0.1, steps=4)
DELTA = 1e-5
WORDS = (".", "clear", "effusion", "is", "lungs", "no", "nodule", "there")


@dataclass
class RunMaker:
    """Writes a run folder; fields say how it differs from a finished run with everything."""

    folder: Path
    name: str = "phantom-demo"
    task_type: str = "classification"
    mode: str = "multiclass"
    classes: tuple[str, ...] = CLASSES
    findings: tuple[str, ...] = ("effusion", "nodule")
    words_noise: float | None = None
    public_words: bool = False
    model: dict[str, Any] = field(default_factory=dict)
    augmentation: dict[str, Any] = field(default_factory=dict)
    num_sites: int = 3
    rounds: int = 3
    private: bool = True
    finished: bool = True
    arms: tuple[str, ...] | None = None
    reason: str = "budget"
    learning_rate: float = 0.05
    num_images: int = 40
    federation: dict[str, Any] = field(default_factory=dict)
    study: StudyConfig = field(init=False)
    task: Task = field(init=False)

    def __post_init__(self) -> None:
        # Words that are named without noise are refused where training is private.
        if self.task_type == "report" and self.words_noise is None and not self.public_words:
            self.private = False

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(f"site-{i + 1}" for i in range(self.num_sites))

    def write(self) -> Path:
        self.folder.mkdir(parents=True)
        self.study = self._study()
        self.task = make_task(self.study)
        (self.folder / "study.toml").write_text(study_to_toml(self.study), encoding="utf-8")
        every = ("federated", "pooled", *(f"local-{site}" for site in self.sites))
        arms = every if self.arms is None else self.arms
        write_json(self.folder / "environment.json", _environment())
        write_json(self.folder / "simulation.json", self._simulation(every))
        for rank, arm in enumerate(arms):
            self._arm(arm, np.random.default_rng(100 + rank))
        if "federated" in arms:
            self._examples(np.random.default_rng(7))
        return self.folder

    def _study(self) -> StudyConfig:
        privacy = {"unit": "patient", "noise_multiplier": 1.0, "sample_rate": 0.1}
        networks = {"segmentation": "unet", "report": "report_lstm"}
        return parse_study(
            {
                "study": {"name": self.name, "description": "Findings in invented radiographs."},
                "task": self._task_table(),
                "model": {"name": networks.get(self.task_type, "cnn"), **self.model},
                "augmentation": self.augmentation,
                "training": {
                    "rounds": self.rounds,
                    "local_steps": 4,
                    "learning_rate": self.learning_rate,
                },
                "federation": self.federation,
                "privacy": privacy if self.private else {"unit": "none"},
                "simulation": {"dataset": "phantom", "max_epsilon": 8.0},
            },
            "test",
        )

    def _task_table(self) -> dict[str, Any]:
        if self.task_type != "report":
            return {"type": self.task_type, "mode": self.mode, "classes": list(self.classes)}
        report: dict[str, Any] = {"findings": {name: [name] for name in self.findings}}
        if self.words_noise is not None:
            report["words_noise_multiplier"] = self.words_noise
        if self.public_words:
            report["vocabulary"] = "/home/somebody/secret/words.txt"
        return {"type": "report", "report": report}

    def _simulation(self, arms: tuple[str, ...]) -> dict[str, Any]:
        rng = np.random.default_rng(3)
        sites = {}
        for site in self.sites:
            labels = [int(n) for n in rng.integers(20, 200, len(self.study.task.label_names))]
            held_out = [n // 4 for n in labels]
            sites[site] = {
                "train": _side(labels),
                "test": _side(held_out),
                "public_num_patients": None,
                "expected_batch": 16.0,
            }
        return {
            "run": self.folder.name,
            "dataset": {
                "name": "Phantom cohort",
                "licence": "CC0",
                "citation": "medfed",
                "num_images": 2400,
                "num_patients": 1200,
                "num_quarantined": 2,
                "quarantine_list": "/home/somebody/secret/quarantine.txt",
                "quarantine_reasons": {"not an image": 2},
            },
            "partition": {"method": "natural", "column": "scanner", "alpha": 0.5},
            "sites": sites,
            "left_out": {"scanner-9": "5 patients, fewer than min_patients = 8"},
            "arms": list(arms),
        }

    def _arm(self, arm: str, rng: np.random.Generator) -> None:
        folder = ArmFolder(self.folder / "arms" / arm)
        trainers = self.sites if arm == "federated" else (arm.removeprefix("local-"),)
        folder.write_plan(RunPlan(run=self.folder.name, arm=arm, train_sites=trainers))
        (folder.folder / "study.json").write_text(self.study.to_json())
        done = self.rounds if self.finished else max(self.rounds - 1, 1)
        ledgers = {
            site: Ledger(folder.folder / "sites" / site / "state")
            for site in (trainers if self.private else ())
        }
        best = {"federated": 2.2, "pooled": 2.5}.get(arm, 1.3)
        for number in range(1, done + 1):
            skill = best * (1 - np.exp(-number / 4)) / (1 - np.exp(-self.rounds / 4))
            evaluated = not arm.startswith("local-") or number == self.rounds
            sums = {site: self._sums(rng, skill) for site in self.sites} if evaluated else {}
            folder.append_round(self._record(arm, number, trainers, sums, rng))
            for site, ledger in ledgers.items():
                if self._answers(arm, site, number):
                    with ledger.locked() as locked:
                        locked.append(self._spend(arm, number))
            if sums:
                released = ReleasedSums()
                for site, own in sums.items():
                    released.add(site, own)
                write_json(folder.folder / "final_sums.json", {"groups": released.table()})
        if self.task_type == "report":
            self._vocabulary(folder.folder, trainers)
        self._weights(folder, trainers)
        if self.finished:
            folder.write_outcome("finished")

    def _weights(self, folder: ArmFolder, trainers: tuple[str, ...]) -> None:
        """A model of 6 numbers that train and 4 that do not."""
        trained = {"head.weight": np.ones((2, 2), np.float32), "head.bias": np.ones(2, np.float32)}
        last = folder.read_rounds()[-1]
        save_checkpoint(folder.checkpoint, Checkpoint(trained, last), self.study.digest())
        if self.finished:
            frozen = {"stem.weight": np.ones(4, np.float32)}
            write_weights(folder.folder / "model.safetensors", frozen | trained)

    def _vocabulary(self, folder: Path, trainers: tuple[str, ...]) -> None:
        if self.public_words:
            write_vocabulary(folder, WORDS)
            return
        cost = None if self.words_noise is None else 0.25
        named: dict[str, dict[str, Any]] = {
            site: {"status": "ok", "words": 6, "bytes": 1200, "epsilon": cost} for site in trainers
        }
        named[trainers[-1]] = {"status": "refused", "bytes": 90, "reason": "policy"}
        write_vocabulary(folder, WORDS, named)

    def _answers(self, arm: str, site: str, number: int) -> bool:
        return not (arm == "federated" and number == self.rounds and site == self.sites[-1])

    def _record(
        self,
        arm: str,
        number: int,
        trainers: tuple[str, ...],
        sums: dict[str, MetricSums],
        rng: np.random.Generator,
    ) -> RoundRecord:
        sites: dict[str, SiteRound] = {}
        for site in sorted({*trainers, *sums}):
            row = SiteRound(status="ok", bytes_down=251_000, bytes_up=250_000)
            if site not in trainers:
                row.reason = "evaluation only"
            elif self._answers(arm, site, number):
                row.weight, row.seconds = 1, 0.4 + 0.1 * float(rng.random())
                if self.private:
                    row.epsilon = epsilon([EVENT] * number, DELTA)
                    row.noise = "seeded"
                else:
                    row.loss = 1.0
            else:
                row.status, row.reason, row.bytes_up = "refused", self.reason, 900
            if site in sums:
                row.metrics = self.task.metrics(sums[site])
            sites[site] = row
        total = self.task.metrics(add_sums(sums.values())) if sums else None
        return RoundRecord(
            round_number=number,
            started="2026-11-23T22:00:00.000+00:00",
            seconds=1.5 + 0.3 * float(rng.random()),
            sites=sites,
            metrics=total,
            weights_sha256=f"{number:02d}" + "ab" * 31,
        )

    def _sums(self, rng: np.random.Generator, skill: float) -> MetricSums:
        if self.task_type == "segmentation":
            return self._segmentation_sums(rng, skill)
        if self.task_type == "report":
            return self._report_sums(rng, skill)
        labels = rng.integers(0, len(self.classes), self.num_images)
        logits = rng.normal(size=(self.num_images, len(self.classes)))
        logits[np.arange(self.num_images), labels] += skill
        odds = np.exp(logits)
        probabilities = odds / odds.sum(axis=1, keepdims=True)
        losses = -np.log(probabilities[np.arange(self.num_images), labels])
        if self.mode == "multilabel":
            labels = np.eye(len(self.classes), dtype=np.uint8)[labels]
        return classification_sums(probabilities, labels, losses, self.mode)  # type: ignore[arg-type]

    def _segmentation_sums(self, rng: np.random.Generator, skill: float) -> MetricSums:
        """Squares of 4 by 4 pixels in half of the images, found the less displaced, the better."""
        shape = (self.num_images, len(self.classes), 16, 16)
        truth, predicted = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        for image, structure in np.ndindex(*shape[:2]):
            y, x, shift = (int(n) for n in rng.integers(0, 9, 3))
            there = rng.random() < 0.5
            truth[image, structure, y : y + 4, x : x + 4] = there
            x += round(shift / (1 + skill))
            predicted[image, structure, y : y + 4, x : x + 4] = there ^ (rng.random() > 0.9)
        losses = 1 / (1 + skill + rng.random(self.num_images))
        return segmentation_sums(predicted, truth, losses, spacing=1.0, tolerance=1.0)

    def _report_sums(self, rng: np.random.Generator, skill: float) -> MetricSums:
        texts = ("No effusion. There is a nodule.", "There is an effusion.", "The lungs are clear.")
        true = [tokenise(texts[i]) for i in rng.integers(0, 3, self.num_images)]
        right = rng.random(self.num_images) < skill / 3
        written = [
            own if well else tokenise(texts[2]) for own, well in zip(true, right, strict=True)
        ]
        sums = text_sums(written, true, 3 / (1 + skill + rng.random(self.num_images)))
        if self.findings:
            labeller = FindingLabeller(self.study.task.report.findings)
            sums["findings"] = confusion_tables(
                np.array([labeller(words) for words in true]),
                np.array([labeller(words) for words in written]),
            )
        return sums

    def _spend(self, arm: str, number: int) -> Spend:
        return Spend(
            release=f"{arm}/{number}",
            study=self.study.digest(),
            run=self.folder.name,
            round_number=number,
            unit="patient",
            images_per_patient=4,
            noise_multiplier=EVENT.noise_multiplier,
            sample_rate=EVENT.sample_rate,
            steps=EVENT.steps,
            max_grad_norm=1.0,
            noise="seeded",
        )

    def _examples(self, rng: np.random.Generator) -> None:
        folder = self.folder / "examples"
        folder.mkdir()
        rows = []
        for index in range(8):
            name = f"{index:03d}.png"
            (folder / name).write_bytes(_blob(rng))
            row = {"image": name, "site": self.sites[index % self.num_sites], "note": ""}
            rows.append(row | self._example(index, rng))
        (folder / "examples.json").write_text(json.dumps(rows))

    def _example(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        if self.task_type == "segmentation":
            return {
                "dice": {name: round(float(rng.random()), 4) for name in self.classes},
                "present": [self.classes[0]] if index else [],
                "missed": [self.classes[0]] if index % 2 else [],
                "false_alarms": [],
            }
        if self.task_type == "report":
            return {
                "true": [{"text": "There is a <nodule>.", "findings": ["nodule"]}],
                "written": [{"text": "The lungs are clear.", "findings": []}] if index else [],
                "findings": {"nodule": "missed", "effusion": "invented"} if index % 2 else {},
                "rouge_l": 0.25,
            }
        weights = rng.dirichlet(np.ones(len(self.classes)))
        truth = self.classes[index % len(self.classes)]
        guess = self.classes[int(weights.argmax())]
        return {
            "truth": [truth],
            "predicted": [guess],
            "probabilities": dict(zip(self.classes, weights.tolist(), strict=True)),
            "correct": guess == truth,
        }


def _side(labels: list[int]) -> dict[str, Any]:
    images = sum(labels) or 60
    return {"patients": images // 2, "images": images, "labels": labels}


def _blob(rng: np.random.Generator) -> bytes:
    y, x = np.mgrid[0:64, 0:64]
    lungs = 150 - 110 * np.exp(-(((x - 20) / 9) ** 2 + ((y - 32) / 20) ** 2))
    lungs -= 110 * np.exp(-(((x - 44) / 9) ** 2 + ((y - 32) / 20) ** 2))
    noisy = np.clip(lungs + rng.normal(0, 9, lungs.shape), 0, 255).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(noisy).save(file, format="PNG")
    return file.getvalue()


def _environment() -> dict[str, Any]:
    return {
        "medfed": "0.1.0",
        "python": "3.11.9",
        "torch": "2.13.0",
        "flwr": "1.41.0",
        "opacus": "1.6.0",
        "numpy": "2.3.0",
        "platform": "Linux",
        "processor": "x86_64",
        "cores": 2,
        "git": None,
        "command": "medfed simulate studies/phantom.toml --workers 2",
        "grid": "local",
        "workers": 2,
        "started": "2026-11-23T22:00:00Z",
        "finished": "2026-11-23T22:03:00Z",
    }


@dataclass
class Page(HTMLParser):
    """A page taken apart: its text, its tables by section, and everything that links."""

    links: list[str] = field(default_factory=list)
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)
    rows: dict[str, list[list[str]]] = field(default_factory=dict)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._section = ""
        self._cell: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        self.links += [
            str(value)
            for name, value in attrs
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster")
        ]
        if tag == "h2":
            self._section = str(values["id"])
            self.headings.append(self._section)
        if tag == "tr":
            self.rows.setdefault(self._section, []).append([])
        if tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self.rows[self._section][-1].append("".join(self._cell))
            self._cell = None

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell is not None:
            self._cell.append(data)

    def row(self, section: str, first: str) -> list[str]:
        return next(row for row in self.rows[section] if row[0] == first)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its report; for tests that only read."""
    run = RunMaker(tmp_path_factory.mktemp("finished") / "run-a").write()
    write_report(run)
    return run


@pytest.fixture(scope="session")
def finished_segmentation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of another task with its report; for tests that only read."""
    folder = tmp_path_factory.mktemp("segmentation") / "run-a"
    run = RunMaker(folder, task_type="segmentation", classes=("core", "rim")).write()
    write_report(run)
    return run


@pytest.fixture(scope="session")
def finished_reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of another task with its report; for tests that only read."""
    run = RunMaker(tmp_path_factory.mktemp("reports") / "run-a", task_type="report").write()
    write_report(run)
    return run


@pytest.fixture
def read_page() -> Callable[[Path], Page]:
    """Parse a page."""

    def read(path: Path) -> Page:
        page = Page()
        page.feed(path.read_text(encoding="utf-8"))
        page.close()
        return page

    return read


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run folder; keyword arguments are those of `RunMaker`."""

    def make(folder: str = "run-a", **options: Any) -> Path:
        return RunMaker(tmp_path / folder, **options).write()

    return make
