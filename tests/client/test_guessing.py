"""Training on images without labels: against plain loops and closed forms, and under DP."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from patients import CLASSES, SIDE, Image, images_of

from medfed.client.batches import scaled, standardised
from medfed.client.data.site_data import ImageSet
from medfed.client.guessing import GuessedLoss, GuessingLoader, hard_answers, ramp
from medfed.client.privacy.dp_sgd import PatientBatch, clipped_sums, patient_gradients
from medfed.client.training import (
    Round,
    TrainingResult,
    train_with_privacy,
    train_without_privacy,
)
from medfed.common.models import build_model
from medfed.common.seeding import numpy_rng
from medfed.common.state_dicts import StateDict, read_state
from medfed.common.study import StudyConfig
from medfed.common.tasks import make_task

CPU = torch.device("cpu")
MODES = ("multiclass", "multilabel", "ordinal")


def study_of(
    method: str, *, mode: str = "multiclass", unit: str = "none", **sections: Any
) -> StudyConfig:
    semi = {"method": method, **sections.pop("semi", {})}
    return StudyConfig.model_validate(
        {
            "study": {"name": "guessing", "seed": 3},
            "task": {"classes": CLASSES, "mode": mode},
            "data": {"image_size": SIDE},
            "augmentation": {"flip": "horizontal"},
            "training": {"local_steps": 3, "batch_size": 4, "learning_rate": 0.1},
            "privacy": {"unit": unit, "sample_rate": 0.5, "images_per_patient": 2},
            "semi_supervised": semi,
            **sections,
        }
    )


def images(number: int, study: StudyConfig, *, seed: int = 1, each: int = 1) -> ImageSet:
    """`number` images of noise, `each` of them a patient, classes in turn."""
    rng = np.random.default_rng(seed)
    return images_of(
        [
            Image(f"{seed}-{n // each:03d}", (n % 3,), rng.integers(0, 255, (SIDE, SIDE), np.uint8))
            for n in range(number)
        ],
        study,
    )


def without_labels(data: ImageSet) -> ImageSet:
    return replace(data, unlabelled=True)


def trained(
    study: StudyConfig, labelled: ImageSet, unlabelled: ImageSet | None, round_number: int = 2
) -> TrainingResult:
    task = make_task(study)
    model = build_model(study, task.num_outputs)
    start, this = read_state(model), Round(study, "one", round_number, CPU)
    if study.privacy.at_sites:
        return train_with_privacy(
            model,
            start,
            labelled,
            task,
            this,
            seeded=True,
            public_num_patients=None,
            unlabelled=unlabelled,
        )
    return train_without_privacy(model, start, labelled, task, this, unlabelled)


def same(one: StateDict, other: StateDict) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("mode", MODES)
def test_loss_of_a_label_is_the_loss_of_the_task(mode: str) -> None:
    study = study_of("pseudo_labels", mode=mode)
    task, loss = make_task(study), GuessedLoss(study)
    torch.manual_seed(0)
    outputs = torch.randn(6, task.num_outputs)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    if mode == "multilabel":
        labels = (torch.randn(6, 3) > 0).float()
    answers = loss.answers(labels, task.num_outputs)
    weights = torch.full_like(answers, 2.0)
    targets = torch.stack([answers, weights, torch.zeros_like(answers)], dim=1)
    expected = 2 * task.loss_per_image(outputs, labels)
    assert torch.allclose(loss.loss_per_image(outputs, targets), expected)


def test_mean_teacher_loss_is_the_mean_squared_distance_of_probabilities() -> None:
    loss = GuessedLoss(study_of("mean_teacher"))
    outputs = torch.tensor([[0.3, -1.0, 0.7]])
    teacher = torch.tensor([[0.2, 0.5, 0.3]])
    targets = torch.stack([teacher, torch.zeros(1, 3), torch.full((1, 3), 0.5)], dim=1)
    expected = 0.5 * F.mse_loss(outputs.softmax(dim=1), teacher)
    assert torch.allclose(loss.loss_per_image(outputs, targets), expected[None])


def test_hard_answers_are_those_that_the_model_is_sure_of() -> None:
    shares = torch.tensor([[0.96, 0.03, 0.01], [0.5, 0.3, 0.2]])
    answers, sure = hard_answers(shares, 0.95, exclusive=True)
    assert answers.tolist() == [[1, 0, 0], [1, 0, 0]]
    assert sure.tolist() == [[1, 1, 1], [0, 0, 0]]
    # Each a question of its own: sure that it is there, sure that it is not, unsure.
    answers, sure = hard_answers(torch.tensor([[0.97, 0.01, 0.6]]), 0.95, exclusive=False)
    assert answers.tolist() == [[1, 0, 1]]
    assert sure.tolist() == [[1, 1, 0]]


def test_ramp_grows_to_one() -> None:
    assert ramp(1, 0) == 1.0
    assert ramp(4, 4) == 1.0
    assert ramp(2, 4) == pytest.approx(math.exp(-5 * 0.25))
    assert ramp(1, 4) < ramp(2, 4) < ramp(3, 4) < 1


def test_pseudo_labels_are_a_plain_loop() -> None:
    study = study_of("pseudo_labels", semi={"threshold": 0.34, "weight": 0.7}, augmentation={})
    labelled, unlabelled = images(6, study), images(9, study, seed=2)
    found = trained(study, labelled, without_labels(unlabelled))

    model = build_model(study, 3)
    before = read_state(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    seed = study.study.seed
    own = numpy_rng(seed, "batches", 2, "one")
    others = numpy_rng(seed, "unlabelled batches", 2, "one").permutation(9)
    batches = [*np.split(own.permutation(6), [4]), own.permutation(6)[:4]]
    sure = 0
    for number, chosen in enumerate(batches):
        guessed = others[4 * number : 4 * number + 4]
        seen = _pixels(unlabelled, guessed, study)
        with torch.no_grad():
            shares = model(seen).softmax(dim=1)
        highest, best = shares.max(dim=1)
        sure += int((highest >= 0.34).sum())
        of_guesses = F.cross_entropy(model(seen), best, reduction="none") * (highest >= 0.34)
        truth = torch.from_numpy(np.asarray(labelled.labels[chosen]))
        of_labels = F.cross_entropy(model(_pixels(labelled, chosen, study)), truth)
        optimizer.zero_grad()
        (of_labels + 0.7 * of_guesses.mean()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert sure > 0  # or the guesses took no part
    for name, array in read_state(model).items():
        assert np.allclose(found.update[name], array - before[name], atol=1e-6)


def _pixels(data: ImageSet, chosen: np.ndarray, study: StudyConfig) -> Tensor:
    return standardised(scaled(data.images_NCHW(chosen), CPU), study.data)


def test_teacher_is_a_running_average_of_the_model() -> None:
    study = study_of("mean_teacher", semi={"decay": 0.75})
    model = build_model(study, 3)
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    loader = GuessingLoader(
        model,
        make_task(study),
        images(4, study),
        without_labels(images(4, study, seed=2)),
        study,
        CPU,
        round_number=1,
        balanced=True,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    loader.follow()
    for name, mine in loader.teacher.named_parameters():
        assert torch.allclose(mine, first[name] + 0.25, atol=1e-6)


@pytest.mark.parametrize("unit", ["none", "patient", "record"])
@pytest.mark.parametrize("method", ["pseudo_labels", "mean_teacher"])
def test_labels_that_nobody_gave_are_never_read(method: str, unit: str) -> None:
    semi = {"threshold": 0.34} if method == "pseudo_labels" else {}
    study = study_of(method, unit=unit, semi=semi)
    labelled, truth = images(8, study, each=2), images(8, study, seed=2, each=2)
    [store] = truth.stores
    lied = replace(truth, stores=(replace(store, labels=(store.labels + 1) % 3),))
    one = trained(study, labelled, without_labels(truth)).update
    assert same(one, trained(study, labelled, without_labels(lied)).update)
    assert not same(one, trained(study, labelled, None).update)


@pytest.mark.parametrize("unit", ["none", "patient"])
def test_method_none_leaves_images_without_labels_alone(unit: str) -> None:
    study = study_of("none", unit=unit)
    labelled, others = images(8, study), without_labels(images(8, study, seed=2))
    assert same(trained(study, labelled, others).update, trained(study, labelled, None).update)


@pytest.mark.parametrize("method", ["pseudo_labels", "mean_teacher"])
@pytest.mark.parametrize("mode", MODES)
def test_one_patient_more_moves_the_clipped_sum_by_the_bound_at_most(
    method: str, mode: str
) -> None:
    semi = {"threshold": 0.34} if method == "pseudo_labels" else {}
    study = study_of(method, unit="patient", mode=mode, augmentation={}, semi=semi)
    task = make_task(study)
    model = build_model(study, task.num_outputs)
    loader = GuessingLoader(
        model,
        task,
        images(2, study),
        without_labels(images(4, study, seed=2)),
        study,
        CPU,
        round_number=1,
        balanced=False,
    )

    # A model that has learned since: a teacher that is the model itself teaches nothing.
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))

    def clipped_sum(patients: list[list[int]]) -> Tensor:
        chosen = np.array(patients)
        batch = loader.training_batch(chosen.reshape(-1), np.random.default_rng(0))
        shape = chosen.shape
        inputs = tuple(part.reshape(*shape, *part.shape[1:]) for part in batch.inputs)
        targets = batch.targets.reshape(*shape, *batch.targets.shape[1:])
        gradients = patient_gradients(
            model, loader.loss.loss_per_image, PatientBatch(inputs, targets, torch.ones(shape))
        )
        sums = clipped_sums(list(gradients.values()), 0.01, "flat")
        return torch.cat([part.reshape(-1) for part in sums])

    # Two images each: with labels, without, one of each.
    whole, fewer = clipped_sum([[0, 1], [2, 3], [1, 4]]), clipped_sum([[0, 1], [1, 4]])
    alone = clipped_sum([[2, 3]])
    assert 0 < float(alone.norm()) <= 0.01 * (1 + 1e-5)
    assert torch.allclose(whole - fewer, alone, atol=1e-6)
