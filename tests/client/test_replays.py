"""A replay does what was recorded, with the numbers and in the memory of then: here on a CPU.

In place of a GPU's recorder one that runs the work at each replay and holds it to the first time:
the same operations, the same numbers of Python's, the same memory besides the arguments. So what
belongs to a round, or a buffer that is made anew for each, would show.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).parent))
from patients import SIDE, Image, images_of

from medfed.client import plain_steps as plain
from medfed.client import training
from medfed.client.data.site_data import ImageSet
from medfed.client.fedprox import ProximalTerm
from medfed.client.plain_steps import PlainSteps
from medfed.client.privacy import recorded_sums as sums
from medfed.client.recording import Body, Replay
from medfed.client.training import Round, train_with_privacy, train_without_privacy
from medfed.common.models import build_model, trained_parameters, trained_state
from medfed.common.state_dicts import StateDict
from medfed.common.study import StudyConfig
from medfed.common.tasks import ImageLoss, make_task

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ROUNDS = (1, 9)
CLASSES = ["normal", "nodule", "effusion"]


class Trace(TorchDispatchMode):
    """Writes down what is done to what: operations, numbers, and where tensors come from."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[Any, ...]] = []
        self._made: dict[int, int] = {}
        self._given: set[int] = set()
        # Held, so that none of their memory is given to another while this lives.
        self._held: list[Any] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        line = tuple(map(self._told, tree_leaves((args, named))))
        result = func(*args, **named)
        for storage in self._storages(tree_leaves(result)):
            if storage._cdata not in self._given:
                self._made.setdefault(storage._cdata, len(self.lines))
        if func.namespace != "profiler":
            self.lines.append((str(func), *line))
        return result

    def _told(self, leaf: Any) -> Any:
        for storage in self._storages([leaf]):
            made = self._made.get(storage._cdata)
            if made is None:
                self._given.add(storage._cdata)
            place = ("memory", storage.data_ptr()) if made is None else ("result", made)
            return (*place, leaf.storage_offset(), tuple(leaf.shape), leaf.stride())
        return repr(leaf)

    def _storages(self, leaves: Iterable[Any]) -> list[Any]:
        found = [leaf.untyped_storage() for leaf in leaves if isinstance(leaf, Tensor)]
        self._held += found
        return found


class Retracing:
    """A recorder: each replay runs the work again, and must do what the first one did."""

    def __init__(self) -> None:
        self.replays = 0

    def __call__(self, body: Body) -> tuple[Replay, Tensor]:
        result = torch.empty(0)
        first: list[Trace] = []

        def replay() -> None:
            with Trace() as trace:
                found = body()
            first.append(trace)
            assert trace.lines == first[0].lines
            del first[1:]
            self.replays += 1
            result.resize_(found.shape).copy_(found)

        return replay, result


@pytest.fixture
def retracing(monkeypatch: pytest.MonkeyPatch) -> Retracing:
    """Has training on a CPU keep and record its steps as on a GPU."""
    retracing = Retracing()
    plain_steps, recorded_sums = plain.plain_steps, sums.recorded_sums

    def as_on_a_gpu(
        model: nn.Module,
        loss: ImageLoss,
        study: StudyConfig,
        device: torch.device,
        correction: StateDict | None = None,
    ) -> PlainSteps:
        return plain_steps(model, loss, study, GPU, correction)

    monkeypatch.setattr(plain, "recorder", lambda *_, **__: retracing)
    monkeypatch.setattr(sums, "recorder", lambda *_, **__: retracing)
    monkeypatch.setattr(training, "plain_steps", as_on_a_gpu)
    monkeypatch.setattr(
        sums, "recorded_sums", lambda model, loss, study, _: recorded_sums(model, loss, study, GPU)
    )
    adam = import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "_get_capturable_supported_devices", lambda **_: [CPU.type])
    return retracing


def study_of(sections: dict[str, Any]) -> StudyConfig:
    steps = {"local_epochs": 3, "batch_size": 4, "learning_rate": 0.1, "momentum": 0.9}
    return StudyConfig.model_validate(
        {
            "study": {"name": "replays", "seed": 3},
            "task": {"classes": CLASSES},
            "data": {"image_size": SIDE},
            "privacy": {"unit": "none"},
            **sections,
            "training": sections.get("training", steps),
        }
    )


def images(number: int, study: StudyConfig, *, unlabelled: bool = False) -> ImageSet:
    """Images of noise, two of each patient, classes in turn."""
    rng = np.random.default_rng(number)
    made = [
        Image(f"{number}-{n // 2}", (n % 3,), rng.integers(0, 255, (SIDE, SIDE), np.uint8))
        for n in range(number)
    ]
    found = images_of(made, study)
    return ImageSet(found.stores, found.store_index, found.row_index, unlabelled=unlabelled)


def rounds(study: StudyConfig) -> list[StateDict]:
    """Updates of a few rounds of one site, from one network, as a site's process keeps it."""
    task = make_task(study)
    model = build_model(study, task.num_outputs)
    start, data = trained_state(model), images(10, study)
    others = images(6, study, unlabelled=True) if study.semi_supervised.method != "none" else None
    updates = []
    for number in ROUNDS:
        weights = {name: array * np.float32(1 + 0.01 * number) for name, array in start.items()}
        weights = {n: w.astype(start[n].dtype) for n, w in weights.items()}
        correction = None
        if study.federation.algorithm == "scaffold":
            names = trained_parameters(model)
            correction = {n: np.full_like(start[n], 0.01 * number) for n in names}
        this = Round(study, "one", number, CPU, correction)
        if study.privacy.unit == "none":
            result = train_without_privacy(model, weights, data, task, this, others)
        else:
            result = train_with_privacy(
                model, weights, data, task, this,
                seeded=True, public_num_patients=None, unlabelled=others,
            )  # fmt: skip
        updates.append(result.update)
    return updates


PRIVATE = {
    "training": {"local_steps": 6, "learning_rate": 0.1},
    "privacy": {"unit": "patient", "sample_rate": 0.9, "chunk": 2, "images_per_patient": 2},
}
STUDIES: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adam": {"training": {"local_epochs": 3, "batch_size": 4, "optimizer": "adam"}},
    "fedprox": {"federation": {"algorithm": "fedprox", "proximal_mu": 0.3}},
    "scaffold": {
        "federation": {"algorithm": "scaffold"},
        "training": {"local_epochs": 3, "batch_size": 4, "momentum": 0.0},
    },
    "qfedavg": {"federation": {"algorithm": "qfedavg"}},
    "batch norm": {
        "model": {"name": "resnet18", "norm": "batch"},
        "data": {"image_size": 34},
        "training": {"local_epochs": 2, "batch_size": 5},
    },
    "views": {"augmentation": {"rotate_degrees": 20, "noise": 0.1}},
    "pseudo-labels": {"semi_supervised": {"method": "pseudo_labels", "ramp_up_rounds": 5}},
    "mean teacher": {"semi_supervised": {"method": "mean_teacher", "ramp_up_rounds": 5}},
    "private": PRIVATE,
    "private pseudo-labels": {**PRIVATE, "semi_supervised": {"method": "pseudo_labels"}},
    "private by vmap": {**PRIVATE, "model": {"name": "cnn", "weight_standardisation": True}},
}


@pytest.mark.parametrize("name", STUDIES)
def test_recorded_steps_are_the_same_work_round_after_round(
    name: str, retracing: Retracing
) -> None:
    rounds(study_of(STUDIES[name]))
    assert retracing.replays >= 5


def begin_elsewhere(term: ProximalTerm) -> None:
    term._start = [parameter.detach().clone() for parameter in term._parameters]


def test_memory_that_is_made_anew_each_round_is_found(
    retracing: Retracing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProximalTerm, "begin", begin_elsewhere)
    with pytest.raises(AssertionError):
        rounds(study_of(STUDIES["fedprox"]))


def test_a_number_of_the_round_is_found(
    retracing: Retracing, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = PlainSteps.begin

    def slower(steps: PlainSteps, correction: StateDict | None = None) -> None:
        begin(steps, correction)
        steps._optimizer.param_groups[0]["lr"] *= 0.9

    monkeypatch.setattr(PlainSteps, "begin", slower)
    with pytest.raises(AssertionError):
        rounds(study_of(STUDIES["sgd"]))
