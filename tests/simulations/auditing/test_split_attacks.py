"""Attacks on what split learning sends: in whole runs, by closed form, and sabotaged."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medfed.client.split import SplitState, SplitTraining
from medfed.common.losses import grade_losses
from medfed.common.state_dicts import digest, read_state
from medfed.common.trained_part import Array
from medfed.simulations.auditing.attacks.activations import Seen, labels_of
from medfed.simulations.auditing.attacks.units import load_units, site_files
from medfed.simulations.auditing.findings import PartResult, Status
from medfed.simulations.auditing.reconstruction import audit_reconstruction
from medfed.simulations.auditing.split_attacks import BUDGETS, attack_split, success
from medfed.simulations.explaining.load import load_trained
from medfed.simulations.study import Options, run_study

STUDY = """
[study]
name = "split"
seed = 3
[task]
classes = ["normal", "nodule", "effusion", "cardiomegaly"]
[data]
image_size = 24
mean = 0.4
std = 0.3
[training]
rounds = 2
local_steps = 4
batch_size = 8
learning_rate = 0.05
[federation]
algorithm = "split"
min_sites = 2
[privacy]
unit = "none"
[simulation]
dataset = "phantom"
arms = ["federated"]
resamples = 2
[simulation.phantom]
num_patients = 60
max_images_per_patient = 1
[simulation.partition]
num_sites = 2
"""
LABELS, IMAGES = "labels from split gradients", "images from split activations"


@pytest.fixture(scope="module")
def split_run(prepared_run: Callable[..., Path]) -> Path:
    folder = prepared_run(STUDY)
    run_study(folder, Options(workers=1))
    return folder


def numbers_of(part: PartResult, check: str) -> dict[str, float]:
    [finding] = [finding for finding in part.findings if finding.check == check]
    assert finding.status is Status.NOTE
    return {name: float(value) for name, value in finding.numbers.items() if value is not None}


def test_the_audit_of_a_split_run_shows_its_labels_and_images(split_run: Path) -> None:
    part = audit_reconstruction(split_run, seed=1, budget="quick")
    labels = numbers_of(part, LABELS)
    assert labels["share"] == 1.0
    assert labels["baseline"] < 0.6 < labels["low"]
    images = numbers_of(part, IMAGES)
    assert images["made_ssim"] > 0.95 > 0.9 > images["mean_ssim"]
    assert images["made_psnr_db"] > images["mean_psnr_db"] + 5
    assert [table.title for table in part.tables][1].startswith("Split learning")
    assert len(part.tables[1].rows) == 2 * BUDGETS["quick"].pictures
    assert part.figures[1].png.startswith(b"\x89PNG")


def attacked(run: Path) -> Any:
    trained = load_trained(run)
    before = digest(read_state(trained.model))
    images = load_units(site_files(run), trained.study).images
    found = attack_split(trained, images, replace(BUDGETS["quick"], steps=60), seed=1)
    assert digest(read_state(trained.model)) == before
    return {finding.check: finding.numbers for finding in found[0]}


def test_the_attacks_find_nothing_where_nothing_is(
    split_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they find is in what the site sends, and in nothing that they were given besides."""
    real = attacked(split_run)
    assert real == attacked(split_run)
    rng = np.random.default_rng(0)

    def nothing(make: Callable[..., tuple[Array, SplitState]]) -> Callable[..., Any]:
        def sent(*arguments: Any) -> tuple[Array, SplitState]:
            array, state = make(*arguments)
            return rng.normal(size=array.shape).astype(np.float32), state

        return sent

    for name in ("activations", "learn"):
        monkeypatch.setattr(SplitTraining, name, nothing(getattr(SplitTraining, name)))
    silent = attacked(split_run)
    assert real[LABELS]["share"] == 1.0
    assert silent[LABELS]["low"] < silent[LABELS]["baseline"] + 0.1
    assert real[IMAGES]["made_ssim"] > silent[IMAGES]["made_ssim"] + 0.2
    assert silent[IMAGES]["made_ssim"] < silent[IMAGES]["mean_ssim"]


@pytest.mark.parametrize("mode", ["multiclass", "multilabel", "ordinal"])
def test_labels_are_those_of_every_loss(mode: str) -> None:
    rng = np.random.default_rng(5)
    num_outputs, features = 4, torch.tensor(rng.normal(size=(40, 9)), requires_grad=True)
    weight, bias = (torch.tensor(rng.normal(size=shape)) for shape in ((num_outputs, 9), (4,)))
    outputs = features @ weight.T + bias
    if mode == "multiclass":
        labels = rng.integers(0, 4, 40)
        loss = torch.nn.functional.cross_entropy(outputs, torch.from_numpy(labels))
    elif mode == "multilabel":
        labels = rng.integers(0, 2, (40, 4))
        truth = torch.from_numpy(labels).double()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(outputs, truth)
    else:
        labels = rng.integers(0, 5, 40)
        loss = grade_losses(outputs, torch.from_numpy(labels)).mean()
    [gradient] = torch.autograd.grad(loss, features)
    np.testing.assert_array_equal(labels_of(gradient.numpy(), weight.numpy(), mode), labels)


def test_success_counts_each_label_and_the_most_common_answer() -> None:
    # Slopes that are the gradient itself: the weight is the identity.
    gradient = np.array([[-1.0, 1.0], [1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    labels = np.array([[1, 0], [0, 0], [0, 0], [0, 0]], dtype=np.uint8)
    seen = Seen(gradient, gradient, labels, torch.zeros(4, 1, 2, 2))
    share, baseline = success([seen], np.eye(2), "multilabel")
    assert share.value == 7 / 8
    assert baseline == 7 / 8  # three of four, and four of four
    one = Seen(gradient, gradient, np.array([0, 1, 1, 1]), seen.images)
    share, baseline = success([one], np.eye(2), "multiclass")
    assert (share.value, baseline) == (2 / 4, 3 / 4)
