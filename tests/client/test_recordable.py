"""A step that is to be recorded asks the processor for nothing: every network, without a GPU."""

import gc
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
from watching import META, Watcher, stand_in

from medfed.client.plain_steps import PlainSteps
from medfed.client.privacy.clipping import PatientBatch
from medfed.client.privacy.recorded_sums import RecordedSums
from medfed.common.models import build_model, set_training_mode
from medfed.common.models.without_weights import without_weights
from medfed.common.plugins.apart import made_up
from medfed.common.study import StudyConfig
from medfed.common.tasks import Batch, ImageLoss, Task, make_task

GPU = torch.device("cuda")
WORDS = ("chest", "is", "lungs", "no", "nodule", "the")
CLASSES = ["normal", "nodule", "effusion"]
LABELS = {"classes": CLASSES}
MASKS = {"type": "segmentation", "classes": CLASSES[1:]}
TEXTS = {"type": "report", "report": {"max_words": 4, "words_noise_multiplier": 1.0}}
SMALL = {"name": "unet", "widths": [4, 8]}
LSTM = {"name": "report_lstm", "embedding_size": 8, "hidden_size": 12, "attention_size": 6}
VOLUMES = {"image_size": 16, "dimensions": 3}


@dataclass(frozen=True)
class Case:
    """`[task]`, `[model]`, `[data]`, and what else of the study is not as it usually is."""

    task: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=lambda: {"momentum": 0.9})
    federation: dict[str, Any] = field(default_factory=dict)
    units: tuple[str, ...] = ("none", "patient")

    def study(self, unit: str) -> StudyConfig:
        return StudyConfig.model_validate(
            {
                "study": {"name": "recorded"},
                "task": self.task,
                "model": self.model,
                "data": {"image_size": 32, **self.data},
                "training": {"local_steps": 1, **self.training},
                "federation": self.federation,
                "privacy": {"unit": unit},
            }
        )


CASES = {
    "cnn": Case(LABELS, {"name": "cnn"}),
    "cnn multilabel": Case({**LABELS, "mode": "multilabel"}, {"name": "cnn"}),
    "cnn ordinal": Case({**LABELS, "mode": "ordinal"}, {"name": "cnn"}),
    "cnn volumes": Case(LABELS, {"name": "cnn"}, VOLUMES),
    "cnn adam": Case(
        LABELS, {"name": "cnn"}, training={"optimizer": "adam", "weight_decay": 0.1},
        units=("none",),
    ),
    "cnn fedprox": Case(
        LABELS, {"name": "cnn"}, federation={"algorithm": "fedprox"}, units=("none",)
    ),
    "cnn scaffold": Case(
        LABELS, {"name": "cnn"}, training={"momentum": 0.0},
        federation={"algorithm": "scaffold"}, units=("none",),
    ),
    "late fusion": Case(
        LABELS, {"name": "cnn", "fusion": "late", "hidden_size": 8},
        {"views": ["frontal", "lateral"], "tabular": {"age": {"mean": 50, "std": 20}}},
    ),
    "vgg16": Case(LABELS, {"name": "vgg16"}),
    "resnet18": Case(LABELS, {"name": "resnet18"}),
    "resnet18 volumes": Case(LABELS, {"name": "resnet18"}, VOLUMES),
    "resnet18 batch norm": Case(
        LABELS, {"name": "resnet18", "norm": "batch"}, {"image_size": 40}, units=("none",)
    ),
    "resnet18 low rank": Case(LABELS, {"name": "resnet18", "low_rank": 2}, units=("patient",)),
    "inception_v3": Case(LABELS, {"name": "inception_v3"}, {"image_size": 75}),
    "densenet121": Case(LABELS, {"name": "densenet121"}),
    "unet": Case(MASKS, {"name": "unet"}),
    "unet regions": Case({**MASKS, "mode": "multilabel"}, SMALL),
    "unet volumes": Case(MASKS, SMALL, {**VOLUMES, "fit": "patch"}),
    "attention_unet": Case(MASKS, {"name": "attention_unet", "widths": [4, 8]}),
    "unet standardised": Case(MASKS, {**SMALL, "weight_standardisation": True}),
    "report": Case(TEXTS, LSTM),
}  # fmt: skip


@pytest.fixture
def watcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watcher]:
    """Watches instead of recording, and has optimisers step on shapes as they do on a GPU."""
    watcher = Watcher()
    monkeypatch.setattr("medfed.client.plain_steps.recorder", stand_in(watcher))
    # Not by a dotted name: torch.optim takes the names of its modules away.
    adam, base = (import_module(f"torch.optim.{name}") for name in ("adam", "optimizer"))
    monkeypatch.setattr(adam, "_get_capturable_supported_devices", lambda **_: [META.type])
    monkeypatch.setattr(base, "_get_foreach_kernels_supported_devices", lambda: [META.type])
    before = torch.get_deterministic_debug_mode()
    # As a study sets it; torch then writes some functions in other operations.
    torch.set_deterministic_debug_mode("error")
    yield watcher
    torch.set_deterministic_debug_mode(before)


def network_and_task(study: StudyConfig) -> tuple[nn.Module, Task]:
    task = make_task(study, WORDS)
    with without_weights():
        model = build_model(study, task.num_outputs)
    set_training_mode(model)
    return model, task


def batch_of(task: Task, study: StudyConfig) -> Batch:
    if study.task.type != "report":
        return Batch(*made_up(task, study, META))
    tokens = torch.zeros(5, study.task.report.max_words + 4, dtype=torch.int64, device=META)
    side = study.data.image_size
    return Batch(task.inputs(torch.zeros(5, 1, side, side, device=META), (), tokens), tokens)


def step_of(
    study: StudyConfig, watcher: Watcher, model: nn.Module, task: Task, loss: ImageLoss
) -> Callable[[], object]:
    """What a site does with one batch, or one chunk of patients, on a GPU."""
    batch = batch_of(task, study)
    if study.privacy.unit == "none":
        steps = PlainSteps(model, loss, study, GPU)
        steps.begin()
        return lambda: steps(batch)
    sums = RecordedSums(
        model, loss.loss_per_image, max_grad_norm=1.0, clipping="flat", record=watcher
    )

    def by_patient(part: Tensor) -> Tensor:
        return part[:4].reshape(2, 2, *part.shape[1:])

    patients = PatientBatch(
        tuple(map(by_patient, batch.inputs)),
        by_patient(batch.targets),
        torch.ones(2, 2, device=META),
    )
    return lambda: sums.of([patients])


@pytest.mark.parametrize(
    ("case", "unit"),
    [
        pytest.param(case, unit, id=f"{name}-{unit}")
        for name, case in CASES.items()
        for unit in case.units
    ],
)
def test_a_step_that_is_to_be_recorded_asks_the_processor_for_nothing(
    case: Case, unit: str, watcher: Watcher, caplog: pytest.LogCaptureFixture
) -> None:
    study = case.study(unit)
    model, task = network_and_task(study)
    step = step_of(study, watcher, model, task, task)
    with caplog.at_level(logging.WARNING):
        step()
        step()
    assert watcher.recorded == 1
    assert caplog.records == []


class Spoilt:
    """A task's loss, to which something is added that a recording cannot hold."""

    def __init__(self, task: Task, spoil: Callable[[Tensor, Tensor], Any]) -> None:
        self._task, self._spoil = task, spoil

    def loss_per_image(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._task.loss_per_image(outputs, targets) + self._spoil(outputs, targets)


def enlarged(outputs: Tensor, targets: Tensor) -> Tensor:
    images = outputs.unflatten(-1, (1, 1, -1))
    return F.interpolate(images, scale_factor=2, mode="bilinear").flatten(1).sum(1)


SPOILS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a number": lambda outputs, _: outputs.sum().item(),
    "a question": lambda outputs, _: 1.0 if outputs.sum() > 0 else 0.0,
    "a list": lambda outputs, _: outputs.tolist()[0][0],
    "numpy": lambda outputs, _: float(outputs.detach().numpy().sum()),
    "a mask": lambda outputs, _: outputs[outputs > 0].sum(),
    "places": lambda outputs, _: (outputs > 0).nonzero().sum(),
    "python's numbers": lambda outputs, _: torch.tensor([0.1], device=outputs.device),
    "no device": lambda outputs, _: outputs.sum(1) * torch.ones(1),
    "a list of places": lambda outputs, _: outputs[:, [0, 1]].sum(1),
    "chance": lambda outputs, _: F.dropout(outputs).sum(1),
    "interpolation": enlarged,
    "gather": lambda outputs, targets: outputs.gather(1, targets[:, None]).squeeze(1),
}  # fmt: skip


@pytest.mark.parametrize("unit", ["none", "patient"])
@pytest.mark.parametrize("spoil", SPOILS)
def test_a_step_that_asks_is_found(spoil: str, unit: str, watcher: Watcher) -> None:
    """The twin of the above: it would pass if nothing were watched."""
    study = CASES["cnn"].study(unit)
    model, task = network_and_task(study)
    step = step_of(study, watcher, model, task, Spoilt(task, SPOILS[spoil]))

    def twice() -> None:
        step()
        step()

    with pytest.raises((AssertionError, RuntimeError, TypeError)):
        twice()
    assert watcher.recorded == 0


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("unit", ["none", "patient"])
@pytest.mark.parametrize("name", ["cnn", "unet", "report"])
def test_no_node_of_autograd_outlives_a_step(
    name: str, unit: str, watcher: Watcher, no_collection: None
) -> None:
    """A weight's node remembers the stream that it was made on: kept from the first step, which is
    not recorded, it would draw that stream into the recording, which fails.
    """
    study = CASES[name].study(unit)
    model, task = network_and_task(study)
    trained = [p for p in model.parameters() if p.requires_grad]

    def nodes() -> list[dict[Any, Any]]:
        return [torch.autograd.graph.get_gradient_edge(p).node.metadata for p in trained]

    def mark(*_: object) -> None:
        for metadata in nodes():
            metadata["of"] = "an earlier step"

    step = step_of(study, watcher, model, task, task)
    kept = [p.expand_as(p) for p in trained]
    mark()
    assert all(nodes())
    kept.clear()
    model.register_forward_hook(mark)
    step()
    assert not any(nodes())
