"""Losses of each unit under a model, and reference models trained by the study's own recipe.

A reference model has the study's network, loss, optimiser and number of passes over each image, but
is trained in one place, on a random half of the units, without privacy: its losses
show most clearly what having seen a unit does. They come in pairs, on a half and on the other half,
so that of every unit as many have seen it as have not.

Shapes: R reference models, U units, N images.
"""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medfed.client.batches import BatchLoader
from medfed.client.training import Round, train_without_privacy
from medfed.client.workspace import keep_freed_memory
from medfed.common.errors import RunError
from medfed.common.models import build_model
from medfed.common.seeding import numpy_rng
from medfed.common.state_dicts import read_state
from medfed.common.study import PrivacySection, StudyConfig
from medfed.common.tasks import Task
from medfed.simulations.auditing.attacks.units import Positions, Units, subset

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
_CPU = torch.device("cpu")
# A rate chosen for clipped gradients is often too high for plain ones: training stands still.
_RATE_CUTS = (1.0, 0.25, 0.0625)
_RATE_CUTS_AFTER_CLIPPING = (0.25, 1.0, 0.0625)


@dataclass(frozen=True)
class References:
    """What the reference models say.

    Attributes:
        losses_RN: Loss of each image under each.
        trained_on_RU: Which of them was trained on which unit.
        passes: How often each saw an image that it was trained on.
        rate_cut: What the study's learning rate was multiplied by (at the least) so that they
            learned.
    """

    losses_RN: Floats
    trained_on_RU: Bools
    passes: float
    rate_cut: float


def image_losses(model: nn.Module, task: Task, units: Units, study: StudyConfig) -> Floats:
    """Return the loss of every image, [N], of the model in evaluation mode.

    With data.fit = "patch" an image stands for one patch of it, the same for every model.
    """
    model.eval()
    plain = study.model_copy(update={"augmentation": type(study.augmentation)()})
    loader = BatchLoader(units.images, task, plain, _CPU)
    size = study.evaluation.batch_size
    parts = []
    with torch.inference_mode():
        for start in range(0, len(units.images), size):
            chosen = np.arange(start, min(start + size, len(units.images)))
            # Without augmentation the stream decides where patches lie, and nothing else.
            patches = numpy_rng(study.study.seed, "audit patches", start)
            batch = loader.training_batch(chosen, patches)
            parts.append(task.loss_per_image(model(*batch.inputs), batch.targets).double())
    losses: Floats = torch.cat(parts).numpy()
    return losses


def unit_means(values: Floats, units: Units) -> Floats:
    """Return the mean over each unit's images: [..., N] to [..., U]."""
    return np.stack([values[..., group].mean(axis=-1) for group in units.groups], axis=-1)


def train_references(
    units: Units,
    task: Task,
    study: StudyConfig,
    target_N: Floats,
    *,
    num_models: int,
    num_sites: int,
    seed: int,
) -> References:
    """Train `num_models` reference models (an even number, at least 4), as many at once as cores.

    Args:
        units: Whose halves they are trained on.
        task: The study's.
        study: Recipe; its privacy is left out.
        target_N: Losses of the attacked model: at the study's learning rate or a
            lower one they should learn half as much as it did, else the rate that learns most is
            taken.
        num_models: How many.
        num_sites: Sites that trained, for the number of passes.
        seed: Of the halves and the batches.

    Raises:
        RunError: One of them diverges, at a lower learning rate too.
        MedfedError: The study's pretrained weights are gone.
    """
    keep_freed_memory()
    halves_RU = _halves(len(units), num_models, seed)
    passes = _passes(units, study, num_sites)
    before = image_losses(build_model(study, task.num_outputs), task, units, study)
    goal_N = np.minimum(before, (before + target_N) / 2)
    cuts = _RATE_CUTS_AFTER_CLIPPING if study.privacy.at_sites else _RATE_CUTS

    def train(number: int) -> tuple[Floats, float]:
        chosen = np.concatenate([units.groups[u] for u in np.flatnonzero(halves_RU[number])])
        tried: list[tuple[float, Floats, float]] = []
        for cut in cuts:
            recipe = _recipe(study, len(chosen), passes, cut, seed)
            losses_N = _train_one(units, task, recipe, chosen, number)
            if np.isfinite(losses_N).all():
                tried.append((float(losses_N[chosen].mean()), losses_N, cut))
            if tried and tried[-1][0] < goal_N[chosen].mean():
                break
            log.info("Reference model %d learns little at %s of the rate.", number, cut)
        if not tried:
            raise RunError(
                "A reference model of the membership attack diverged. Lower the study's "
                "training.learning_rate."
            )
        _, losses_N, cut = min(tried, key=lambda one: one[0])
        return losses_N, cut

    workers = min(num_models, max(1, len(os.sched_getaffinity(0))))
    with ThreadPoolExecutor(workers, thread_name_prefix="reference") as pool:
        trained = list(pool.map(train, range(num_models)))
    losses_RN = np.stack([losses_N for losses_N, _ in trained])
    return References(losses_RN, halves_RU, passes, min(cut for _, cut in trained))


def _recipe(
    study: StudyConfig, num_images: int, passes: float, cut: float, seed: int
) -> StudyConfig:
    """The study without privacy, in one place, in one round."""
    batch_size = min(study.training.batch_size, num_images)
    if study.privacy.at_sites:
        batch_size = min(batch_size, max(1, round(study.privacy.expected_batch_size)))
    training = study.training.model_copy(
        update={
            "rounds": 1,
            "local_epochs": None,
            "local_steps": max(1, round(passes * num_images / batch_size)),
            "batch_size": batch_size,
            "learning_rate": study.training.learning_rate * cut,
        }
    )
    return study.model_copy(
        update={
            "study": study.study.model_copy(update={"seed": seed}),
            "training": training,
            "privacy": PrivacySection(unit="none"),
        }
    )


def _train_one(
    units: Units, task: Task, recipe: StudyConfig, chosen: Positions, number: int
) -> Floats:
    model = build_model(recipe, task.num_outputs)
    this = Round(recipe, f"reference-{number}", 1, _CPU)
    train_without_privacy(model, read_state(model), subset(units.images, chosen), task, this)
    return image_losses(model, task, units, recipe)


def _halves(num_units: int, num_models: int, seed: int) -> Bools:
    """Random halves [R, U] in complementary pairs."""
    if num_models < 4 or num_models % 2:
        raise ValueError(f"Expected an even number of at least 4 models, got {num_models}.")
    rows: Sequence[Bools] = []
    for pair in range(num_models // 2):
        order = numpy_rng(seed, "reference half", pair).permutation(num_units)
        half = np.zeros(num_units, dtype=bool)
        half[order[: num_units // 2]] = True
        rows = [*rows, half, ~half]
    return np.array(rows)


def _passes(units: Units, study: StudyConfig, num_sites: int) -> float:
    """How often the federation saw each training image, in the mean."""
    training = study.training
    rounds = training.rounds * study.federation.fraction
    if training.local_epochs is not None:
        return rounds * training.local_epochs
    assert training.local_steps is not None
    if study.privacy.at_sites:
        return rounds * training.local_steps * study.privacy.sample_rate
    members = [group for group, is_in in zip(units.groups, units.is_member, strict=True) if is_in]
    images_a_site = sum(len(group) for group in members) / num_sites
    return rounds * training.local_steps * training.batch_size / images_a_site
