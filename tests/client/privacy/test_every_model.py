"""Every model and task under patient-level DP through the one engine.

For each: per-patient gradients are those of a plain autograd loop; removing a patient moves the
clipped sum by at most the bound; buffers do not change; an empty sample steps; training on a small
real set lowers the loss.

Shapes: P patients, K images a patient.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medfed.client.batches import BatchLoader
from medfed.client.data.prepare import prepare_store
from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.client.data.site_data import ImageSet
from medfed.client.privacy.book_keeping import BookKeeping, keeps_books
from medfed.client.privacy.dp_sgd import (
    NoisyOptimizer,
    PatientBatch,
    clipped_sums,
    dp_step,
    patient_gradients,
)
from medfed.common.models import build_model, set_training_mode
from medfed.common.study import StudyConfig
from medfed.common.tasks import Task, make_task
from medfed.common.text import tokenise
from medfed.simulations.phantom import load_phantom

CPU = torch.device("cpu")
REAL_DATA = Path(
    os.environ.get("MEDFED_TEST_DATA", Path(__file__).resolve().parents[3] / "../shared/data")
)
FINDINGS = {"nodule": ["nodule"], "effusion": ["effusion"]}
CLASSES = ["normal", "nodule", "effusion", "cardiomegaly"]


@dataclass(frozen=True)
class Case:
    """One model with one task.

    Attributes:
        task: `[task]`.
        model: `[model]`.
        data: `[data]`.
        slow: Whether it takes a minute.
        deep: Whether float32 gradients jump when one ReLU input of many crosses zero, in a plain
            loop too: such networks are compared in float64.
    """

    task: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any] = field(default_factory=lambda: {"image_size": 32})
    slow: bool = False
    deep: bool = False

    def study(self, **sections: Any) -> StudyConfig:
        return StudyConfig.model_validate(
            {
                "study": {"name": "case", "seed": 4},
                "task": self.task,
                "model": self.model,
                "data": self.data,
                "training": {"local_steps": 1},
                "simulation": {
                    "dataset": "phantom",
                    "phantom": {"num_patients": 24, "co_occurrence": 0.5},
                },
                **sections,
            }
        )


MULTICLASS = {"classes": CLASSES}
MULTILABEL = {"classes": CLASSES, "mode": "multilabel"}
ORDINAL = {"classes": ["none", "mild", "severe"], "mode": "ordinal"}
STRUCTURES = {"type": "segmentation", "classes": CLASSES[1:]}
REGIONS = {"type": "segmentation", "classes": ["whole", "core"], "mode": "multilabel"}
LESION = {"type": "segmentation", "classes": ["lesion"]}
REPORT = {
    "type": "report",
    "report": {"max_words": 20, "findings": FINDINGS, "words_noise_multiplier": 2.0},
}
SMALL_UNET = {"name": "unet", "widths": [4, 8, 16]}
SMALL_LSTM = {"embedding_size": 8, "hidden_size": 12, "attention_size": 6}
VOLUME = {"image_size": 16, "dimensions": 3}

CASES = {
    "cnn": Case(MULTICLASS, {"name": "cnn"}),
    "cnn multilabel": Case(MULTILABEL, {"name": "cnn"}),
    "cnn ordinal": Case(ORDINAL, {"name": "cnn"}),
    "cnn four channels": Case(MULTICLASS, {"name": "cnn"}, {"image_size": 32, "channels": 4}),
    "cnn volumes": Case(MULTICLASS, {"name": "cnn"}, VOLUME),
    "vgg16": Case(MULTICLASS, {"name": "vgg16"}, slow=True),
    "resnet18": Case(MULTICLASS, {"name": "resnet18"}, deep=True),
    "resnet18 volumes": Case(
        MULTICLASS, {"name": "resnet18"}, {**VOLUME, "image_size": 32}, slow=True, deep=True
    ),
    "resnet50": Case(MULTICLASS, {"name": "resnet50"}, slow=True, deep=True),
    "inception_v3": Case(
        MULTICLASS, {"name": "inception_v3"}, {"image_size": 75}, slow=True, deep=True
    ),
    "densenet121": Case(MULTICLASS, {"name": "densenet121"}, slow=True, deep=True),
    "densenet121 frozen": Case(
        MULTILABEL, {"name": "densenet121", "freeze": "backbone"}, deep=True
    ),
    "late fusion": Case(
        MULTICLASS,
        {"name": "cnn", "fusion": "late", "hidden_size": 8},
        {
            "image_size": 32,
            "views": ["frontal", "lateral"],
            "tabular": {"age": {"mean": 50, "std": 20}, "sex": {"values": ["F", "M"]}},
        },
    ),
    "early fusion": Case(
        MULTILABEL, {"name": "cnn"}, {"image_size": 32, "views": ["frontal", "lateral"]}
    ),
    "unet": Case(STRUCTURES, SMALL_UNET),
    "unet regions": Case(REGIONS, SMALL_UNET),
    "unet cross entropy": Case({**LESION, "loss": "cross_entropy"}, SMALL_UNET),
    "unet dice": Case({**LESION, "loss": "dice"}, SMALL_UNET),
    "unet patches": Case(STRUCTURES, SMALL_UNET, {"image_size": 16, "fit": "patch"}),
    "unet volumes": Case(
        {"type": "segmentation", "classes": ["anterior", "posterior"]},
        SMALL_UNET,
        {**VOLUME, "fit": "patch"},
    ),
    "attention_unet": Case(STRUCTURES, {"name": "attention_unet", "widths": [4, 8, 16]}),
    "report": Case(REPORT, {"name": "report_lstm", **SMALL_LSTM}),
    "cnn standardised": Case(MULTICLASS, {"name": "cnn", "weight_standardisation": True}),
    "unet standardised": Case(STRUCTURES, {**SMALL_UNET, "weight_standardisation": True}),
    "unet volumes standardised": Case(
        {"type": "segmentation", "classes": ["anterior", "posterior"]},
        {**SMALL_UNET, "weight_standardisation": True},
        {**VOLUME, "fit": "patch"},
        slow=True,
    ),
    "resnet18 standardised": Case(
        MULTICLASS, {"name": "resnet18", "weight_standardisation": True}, slow=True, deep=True
    ),
    "cnn biases": Case(MULTICLASS, {"name": "cnn", "freeze": "weights"}),
    "unet biases": Case(STRUCTURES, {**SMALL_UNET, "freeze": "weights"}, slow=True),
    "report biases": Case(
        REPORT, {"name": "report_lstm", **SMALL_LSTM, "freeze": "weights"}, slow=True
    ),
    "cnn low rank": Case(MULTILABEL, {"name": "cnn", "low_rank": 2}),
    "unet low rank": Case(
        STRUCTURES, {**SMALL_UNET, "low_rank": 2, "weight_standardisation": True}
    ),
    "unet volumes low rank": Case(
        {"type": "segmentation", "classes": ["anterior", "posterior"]},
        {**SMALL_UNET, "low_rank": 2},
        {**VOLUME, "fit": "patch"},
        slow=True,
    ),
    "report low rank": Case(
        REPORT,
        {"name": "report_lstm", **SMALL_LSTM, "low_rank": 2, "freeze": ["encoder.*", "*_gates.*"]},
    ),
    "resnet18 low rank": Case(
        MULTICLASS, {"name": "resnet18", "low_rank": 2, "freeze": "weights"}, slow=True, deep=True
    ),
    "report resnet18": Case(
        REPORT, {"name": "report_lstm", "encoder": "resnet18", **SMALL_LSTM}, slow=True, deep=True
    ),
}
ALL = [
    pytest.param(case, id=name, marks=[pytest.mark.slow] if case.slow or case.deep else [])
    for name, case in CASES.items()
]


def invented(study: StudyConfig) -> SourceDataset:
    """Records of the kind that the study asks for, with pixels that mean something."""
    assert study.simulation is not None
    size, dimensions = study.data.image_size, study.data.dimensions
    phantom = load_phantom(study.simulation.phantom, image_size=max(size, 32), seed=4)
    rng = np.random.default_rng(5)
    records = []
    for number, record in enumerate(phantom.records):
        shape = (size + 3,) * dimensions
        noise = rng.integers(0, 256, shape).astype(np.uint8)
        mask = (noise // 64).clip(max=len(study.task.label_names)).astype(np.uint8)
        flat = dimensions == 2
        labels: tuple[str, ...] = record.labels[:1]
        if study.task.mode == "multilabel":
            labels = record.labels
        if study.task.mode == "ordinal":
            labels = (study.task.classes[number % 3],)
        phantom_mask = flat and study.task.classes == tuple(CLASSES[1:])
        views = {"frontal": record.read_image, "lateral": lambda noise=noise: noise}
        if number % 3 == 0:
            del views["lateral"]
        records.append(
            SourceRecord(
                record_id=record.record_id,
                patient_id=record.patient_id,
                labels=labels,
                source=record.source,
                read_image=record.read_image if flat else lambda noise=noise: noise,
                read_mask=record.read_mask
                if phantom_mask
                else lambda mask=mask, flat=flat: _mask_like(mask, flat, size),
                report=record.report,
                columns=record.columns,
                views=views if study.data.views else {},
                spacing_mm=None if flat else (1.0, 1.0, 1.0),
            )
        )
    return SourceDataset(
        name="invented",
        licence="",
        citation="",
        classes=study.task.classes,
        records=tuple(records),
        digest=repr(study.to_json()),
        structures=study.task.classes,
        dimensions=study.data.dimensions,
    )


def _mask_like(mask: np.ndarray, flat: bool, size: int) -> np.ndarray:
    return mask[: max(size, 32), : max(size, 32)] if flat else mask


@dataclass(frozen=True)
class Ready:
    """A model in front of its data."""

    study: StudyConfig
    model: nn.Module
    task: Task
    data: ImageSet
    loader: BatchLoader

    def patients(self, number: int) -> PatientBatch:
        """The first `number` patients who have two images, K = 2; the last has one only."""
        groups = [group for group in self.data.groups if len(group) >= 2][:number]
        assert len(groups) == number
        flat = np.concatenate([group[:2] for group in groups])
        batch = self.loader.training_batch(flat, np.random.default_rng(6))
        mask = torch.ones(number, 2)
        mask[-1, 1] = 0.0
        return PatientBatch(
            inputs=tuple(part.reshape(number, 2, *part.shape[1:]) for part in batch.inputs),
            targets_PK=batch.targets.reshape(number, 2, *batch.targets.shape[1:]),
            mask_PK=mask,
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture
def ready(folder: Path) -> Callable[[Case], Ready]:
    def make(case: Case) -> Ready:
        study = case.study()
        return _ready(study, invented(study), folder)

    return make


def _ready(study: StudyConfig, dataset: SourceDataset, folder: Path) -> Ready:
    store = prepare_store(dataset, study.task, study.data, parent=folder, pseudonym_key=b"key")
    data = ImageSet((store,), np.zeros(len(store), np.int64), np.arange(len(store)))
    words = sorted({word for report in store.reports for word in tokenise(report)})
    task = make_task(study, words)
    model = build_model(study, task.num_outputs)
    set_training_mode(model)
    return Ready(study, model, task, data, BatchLoader(data, task, study, CPU))


def plain_gradients(ready: Ready, batch: PatientBatch) -> dict[str, Tensor]:
    """One backward pass a patient over the patient's real images."""
    trainable = {n: p for n, p in ready.model.named_parameters() if p.requires_grad}
    rows = []
    for patient in range(len(batch)):
        real = batch.mask_PK[patient] == 1
        outputs = ready.model(*(part[patient][real] for part in batch.inputs))
        loss = ready.task.loss_per_image(outputs, batch.targets_PK[patient][real]).mean()
        rows.append(torch.autograd.grad(loss, list(trainable.values()), allow_unused=True))
    return {
        name: torch.stack([torch.zeros_like(p) if row[i] is None else row[i] for row in rows])
        for i, (name, p) in enumerate(trainable.items())
    }


def doubled(batch: PatientBatch) -> PatientBatch:
    def double(part: Tensor) -> Tensor:
        return part.double() if part.is_floating_point() else part

    return PatientBatch(
        tuple(map(double, batch.inputs)), double(batch.targets_PK), double(batch.mask_PK)
    )


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.reshape(len(g), -1) for g in gradients.values()], dim=1)


@pytest.mark.parametrize("case", ALL)
def test_per_patient_gradients_equal_a_plain_loop(
    case: Case, ready: Callable[[Case], Ready]
) -> None:
    here = ready(case)
    batch = here.patients(3)
    if case.deep:
        here.model.double()
        batch = doubled(batch)
    buffers = {name: buffer.clone() for name, buffer in here.model.named_buffers()}
    ours = flat(patient_gradients(here.model, here.task.loss_per_image, batch))
    theirs = flat(plain_gradients(here, batch))
    assert theirs.norm(dim=1).min() > 0
    error = (ours - theirs).norm(dim=1) / theirs.norm(dim=1)
    assert error.max() <= 1e-4, error
    for name, buffer in here.model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


@pytest.mark.parametrize("case", ALL)
def test_book_keeping_makes_the_sum_of_per_patient_gradients(
    case: Case, ready: Callable[[Case], Ready]
) -> None:
    here = ready(case)
    standardised = case.model.get("weight_standardisation", False)
    assert keeps_books(here.model) == (not standardised or "low_rank" in case.model)
    if not keeps_books(here.model):
        return
    single, loss = here.patients(3), here.task.loss_per_image
    here.model.double()
    batch = doubled(single)
    gradients = patient_gradients(here.model, loss, batch)
    bound = float(flat(gradients).norm(dim=1).median())

    def error(sums: Iterable[Tensor]) -> float:
        return (
            float(torch.cat([part.double().flatten() for part in sums]).sub(exact).norm()) / bound
        )

    exact = torch.cat([p.flatten() for p in clipped_sums(list(gradients.values()), bound, "flat")])
    assert error(BookKeeping(here.model, loss, bound, "flat")(batch).values()) <= 1e-10
    if not case.deep:
        here.model.float()
        gradients = patient_gradients(here.model, loss, single)
        theirs = error(clipped_sums(list(gradients.values()), bound, "flat"))
        ours = error(BookKeeping(here.model, loss, bound, "flat")(single).values())
        assert ours <= 1e-5 + 2 * theirs


class NoNoise:
    """A source of zeros: what remains of a step is the clipped sum."""

    def normal_like(self, reference: Tensor) -> Tensor:
        return torch.zeros_like(reference)


def optimizer_of(model: nn.Module, *, max_grad_norm: float, batch: float, rate: float) -> Any:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return NoisyOptimizer(
        torch.optim.SGD(parameters, lr=rate),
        noise_multiplier=1.0,
        max_grad_norm=max_grad_norm,
        expected_batch_size=batch,
        noise=NoNoise(),
    )


def clipped_sum(here: Ready, chunks: list[PatientBatch], bound: float) -> Tensor:
    """The step of a noiseless optimiser at rate 1 and batch 1: minus the clipped sum."""
    start = {name: value.clone() for name, value in here.model.state_dict().items()}
    optimizer = optimizer_of(here.model, max_grad_norm=bound, batch=1.0, rate=1.0)
    dp_step(here.model, optimizer, here.task.loss_per_image, chunks)
    moved = torch.cat([(p.detach() - start[n]).flatten() for n, p in here.model.named_parameters()])
    here.model.load_state_dict(start)
    return moved


def pick(batch: PatientBatch, chosen: list[int]) -> PatientBatch:
    return PatientBatch(
        tuple(part[chosen] for part in batch.inputs),
        batch.targets_PK[chosen],
        batch.mask_PK[chosen],
    )


@pytest.mark.parametrize("case", ALL)
def test_removing_a_patient_moves_the_clipped_sum_by_at_most_the_bound(
    case: Case, ready: Callable[[Case], Ready]
) -> None:
    here = ready(case)
    batch = here.patients(3)
    norms = flat(patient_gradients(here.model, here.task.loss_per_image, batch)).norm(dim=1)
    # Small enough that every patient is clipped: the bound is then reached, not only kept.
    bound = 0.5 * float(norms.min())
    everyone = clipped_sum(here, [pick(batch, [0, 1]), pick(batch, [2])], bound)
    for patient in range(3):
        others = [p for p in range(3) if p != patient]
        change = float((everyone - clipped_sum(here, [pick(batch, others)], bound)).norm())
        assert change <= bound * (1 + 1e-3)
        assert change >= bound * (1 - 1e-2)


@pytest.mark.parametrize("case", ALL)
def test_an_empty_sample_steps_with_noise_only(case: Case, ready: Callable[[Case], Ready]) -> None:
    here = ready(case)

    class Ones:
        def normal_like(self, reference: Tensor) -> Tensor:
            return torch.ones_like(reference)

    start = {n: p.detach().clone() for n, p in here.model.named_parameters()}
    optimizer = optimizer_of(here.model, max_grad_norm=0.5, batch=4.0, rate=1.0)
    optimizer._noise = Ones()
    dp_step(here.model, optimizer, here.task.loss_per_image, [])
    for name, parameter in here.model.named_parameters():
        step = 0.5 / 4.0 if parameter.requires_grad else 0.0
        torch.testing.assert_close(parameter.detach(), start[name] - step)


HAM = {"image_size": 32, "channels": 3}
REAL_CASES = {
    "cnn": ("ham10000", {}, {"name": "cnn"}, HAM),
    "cnn multilabel": ("covid_chestxray", {"mode": "multilabel"}, {"name": "cnn"}, {}),
    "cnn ordinal": ("busi", {"mode": "ordinal"}, {"name": "cnn"}, {}),
    "cnn with age and sex": (
        "ham10000",
        {},
        {"name": "cnn", "hidden_size": 8},
        {
            **HAM,
            "tabular": {"age": {"mean": 50, "std": 20}, "sex": {"values": ["female", "male"]}},
        },
    ),
    "vgg16": ("ham10000", {}, {"name": "vgg16", "freeze": ["classifier.0.*"]}, HAM),
    "resnet18": ("ham10000", {}, {"name": "resnet18"}, HAM),
    "resnet50": ("ham10000", {}, {"name": "resnet50"}, HAM),
    "inception_v3": ("ham10000", {}, {"name": "inception_v3"}, {**HAM, "image_size": 75}),
    "densenet121": ("ham10000", {}, {"name": "densenet121"}, HAM),
    "unet": ("ham10000", LESION, SMALL_UNET, HAM),
    "attention_unet": ("lgg", LESION, {"name": "attention_unet", "widths": [4, 8, 16]}, HAM),
    "unet patches": (
        "chase_db1",
        {"type": "segmentation", "classes": ["vessel"]},
        SMALL_UNET,
        {**HAM, "fit": "patch", "stored_size": 200},
    ),
    "unet volumes": (
        "msd",
        {"type": "segmentation", "classes": ["anterior", "posterior"]},
        SMALL_UNET,
        {"image_size": 16, "dimensions": 3, "fit": "patch"},
    ),
    "report": (
        "covid_chestxray",
        {"type": "report", "report": {"max_words": 20, "words_noise_multiplier": 2.0}},
        {"name": "report_lstm", **SMALL_LSTM},
        {},
    ),
}
SLOW_ON_REAL = ("vgg16", "resnet18", "resnet50", "inception_v3", "densenet121")
SETS = {
    "ham10000": "ham10000_200x150",
    "lgg": "lgg_mri_kaggle_3m",
    "msd": "msd_hippocampus",
    "covid_chestxray": "covid_chestxray",
    "busi": "busi",
    "chase_db1": "chase_db1",
}


@lru_cache
def real_records(name: str) -> SourceDataset:
    """The first records of a real data set that can be read, a few patients only."""
    from importlib import import_module

    folder = REAL_DATA / SETS[name]
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MEDFED_TEST_DATA")
    loader = import_module(f"medfed.simulations.datasets.{name}")
    dataset: SourceDataset = getattr(loader, f"load_{name}")(folder)
    return dataset


def first_records(name: str, task: dict[str, Any]) -> tuple[SourceDataset, list[str]]:
    dataset = real_records(name)
    usable: Iterator[SourceRecord] = (
        record
        for record in dataset.records
        if (record.report if task.get("type") == "report" else True)
        and (record.read_mask if task.get("type") == "segmentation" else True)
    )
    records = tuple(record for record, _ in zip(usable, range(24), strict=False))
    classes = sorted({label for record in records for label in record.labels})
    return SourceDataset(**{**vars(dataset), "records": records}), classes


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW_ON_REAL else [])
        for name in REAL_CASES
    ],
)
def test_training_under_dp_lowers_the_loss_on_real_images(name: str, folder: Path) -> None:
    dataset_name, task, model, data = REAL_CASES[name]
    dataset, classes = first_records(dataset_name, task)
    if "type" not in task:
        task = {"classes": classes, **task}
    study = StudyConfig.model_validate(
        {
            "study": {"name": "real", "seed": 4},
            "task": task,
            "model": model,
            "data": {"image_size": 32, **data},
            "training": {"local_steps": 1},
        }
    )
    here = _ready(study, dataset, folder)
    everyone = np.arange(len(here.data))
    batch = here.loader.training_batch(everyone, np.random.default_rng(7))
    patients = PatientBatch(
        tuple(part[:, None] for part in batch.inputs),
        batch.targets[:, None],
        torch.ones(len(everyone), 1),
    )

    def loss() -> float:
        with torch.no_grad():
            return float(here.task.loss_per_image(here.model(*batch.inputs), batch.targets).mean())

    before = loss()
    optimizer = optimizer_of(here.model, max_grad_norm=1.0, batch=len(everyone), rate=0.2)
    for _ in range(12):
        dp_step(here.model, optimizer, here.task.loss_per_image, [patients])
    assert loss() < 0.97 * before
