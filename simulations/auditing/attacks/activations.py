"""Split learning: from what a site sends in a step back to its labels and images.

Labels: the gradient that comes back is that of the loss with respect to what the last layer puts
out, times that layer's weights, which the server knows in a round's first step. For all of medfed's
classification losses its signs are the label: falling where the answer should rise.

Images: the picture whose activations are nearest to those that the site sent, by Adam within the
range of pixels. The server knows the front's weights at the beginning of each round, too.

References: Li et al. 2021, https://arxiv.org/abs/2102.08504 (labels from gradients in split
learning); He et al. 2019, https://doi.org/10.1145/3359789.3359824 (inverting activations)

Shapes: B images, C channels of all views, *S spatial, F features, K outputs, L labels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from medfed.client.batches import BatchLoader
from medfed.client.data.site_data import ImageSet, SiteData
from medfed.client.split import SplitTraining
from medfed.client.training import Round, step_positions, views_rng
from medfed.client.workspace import Network, Workspace
from medfed.common.models import set_training_mode
from medfed.common.models.stages import cut
from medfed.common.seeding import torch_rng
from medfed.common.state_dicts import read_state, write_state
from medfed.common.study import StudyConfig
from medfed.common.tasks import Task
from medfed.common.trained_part import Array, to_array, to_tensor
from medfed.simulations.auditing.attacks.inversion import total_variation

_CPU = torch.device("cpu")
_SITE = "attacked"
_STEP = 0.05
"""First step of a pixel, of the range; it falls to 0 along a cosine."""
_TOTAL_VARIATION = 0.002


@dataclass(frozen=True)
class Seen:
    """A round's first step: what the server sees of a batch, and what it cannot know.

    Attributes:
        activations: What the site sent first, [B, ...].
        gradient: What it sent next, [B, F].
        labels: int64 [B] or uint8 [B, L].
        images: As training saw them, [B, C, *S] in 0..1.
    """

    activations: Array
    gradient: Array
    labels: Array
    images: Tensor


def first_step(model: nn.Module, images: ImageSet, task: Task, study: StudyConfig) -> Seen:
    """Take the first step of a round as the installed site and an honest server do.

    Args:
        model: The network with the weights that the round begins from; it has them afterwards, too.
        images: All of them are in the batch.
        task: The study's.
        study: With split learning; no image is augmented.
    """
    study = _one_batch(study, len(images))
    this, start = Round(study, _SITE, 1, _CPU), read_state(model)
    parts = cut(model, study)
    data = SiteData(train=images, test=images)
    training = SplitTraining(Workspace(data, task, Network(model, start, "")), this)
    state = training.begin(read_state(model, parts.at_site), _SITE, "")
    activations, state = training.activations(state)
    with torch.no_grad():
        features = parts.middle(to_tensor(activations, model, _CPU))
    gradient, _ = training.learn(state, to_array(features))
    write_state(model, start)
    [chosen] = step_positions(len(images), study.training, this)
    batch = BatchLoader(images, task, study, _CPU).training_batch(chosen, views_rng(this))
    pixels = (batch.inputs[0] * study.data.std + study.data.mean).clamp(0.0, 1.0)
    return Seen(activations, gradient, images.labels[chosen], pixels)


def labels_of(gradient: Array, weight_KF: Array, mode: str) -> Array:
    """Return the labels behind a gradient, [B] or with `mode` multilabel [B, K].

    Args:
        gradient: What the site sent, [B, F].
        weight_KF: Of the last layer, as the round begins.
        mode: task.mode: multiclass, ordinal or multilabel.
    """
    # gradient = slope @ weight; of more features than outputs that has one solution.
    slope_BK = gradient.astype(np.float64) @ np.linalg.pinv(weight_KF.astype(np.float64))
    if mode == "multiclass":
        return np.asarray(slope_BK.argmin(axis=1))
    rises_BK = slope_BK < 0
    return np.asarray(rises_BK.sum(axis=1) if mode == "ordinal" else rises_BK.astype(np.uint8))


def invert_activations(
    model: nn.Module, study: StudyConfig, seen: Seen, *, steps: int, seed: int
) -> Tensor:
    """Return the images [B, C, *S] in 0..1 whose activations are nearest to those that were sent.

    Args:
        model: The network with the weights that the round began from; it has them afterwards, too.
        study: With split learning.
        seen: Of it the activations alone are looked at, and the images' shape.
        steps: Optimiser steps; each goes through the front twice.
        seed: Of the first guess, grey with a little noise.
    """
    section, start = study.data, read_state(model)
    set_training_mode(model)  # as at the site: a BatchNorm's statistics are the batch's
    front = cut(model, study).front
    wanted = to_tensor(seen.activations, model, _CPU)
    scale = wanted.square().mean().clamp_min(1e-12)
    noise = torch.randn(seen.images.shape, generator=torch_rng(seed, "first guess"))
    guess = (0.5 + 0.02 * noise).requires_grad_(True)
    optimizer = torch.optim.Adam([guess], lr=_STEP)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        made = front((guess - section.mean) / section.std)
        loss = (made - wanted).square().mean() / scale
        loss = loss + _TOTAL_VARIATION * total_variation(guess)
        [guess.grad] = torch.autograd.grad(loss, guess)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            guess.clamp_(0.0, 1.0)
    write_state(model, start)
    return guess.detach()


def _one_batch(study: StudyConfig, size: int) -> StudyConfig:
    changes = {"local_epochs": None, "local_steps": 1, "batch_size": size}
    training = study.training.model_copy(update=changes)
    plain = type(study.augmentation)()
    return study.model_copy(update={"training": training, "augmentation": plain})
