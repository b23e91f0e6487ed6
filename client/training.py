"""One site's training of one round. Plain functions: neither Flower nor Ray is known here.

Shapes: B images in a batch, P patients in a chunk, K images a patient (padded).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medfed.client.batches import BatchLoader
from medfed.client.data.site_data import ImageSet, groups_of
from medfed.client.fairness import loss_of
from medfed.client.gradient_terms import GradientTerms
from medfed.client.guessing import GuessingLoader
from medfed.client.plain_steps import plain_steps
from medfed.client.plugins import check_only_parameters_moved, repeatable_draws
from medfed.common.models import set_training_mode
from medfed.common.optimizer import make_optimizer
from medfed.common.seeding import numpy_rng, torch_rng
from medfed.common.state_dicts import StateDict, change_of, write_state
from medfed.common.study import StudyConfig, TrainingSection
from medfed.common.tasks import Batch, Task

if TYPE_CHECKING:
    from medfed.client.privacy.dp_sgd import PatientBatch


class Uniform(Protocol):
    """Draws uniforms in [0, 1): NumPy's generator, or the operating system's."""

    def random(self, size: int) -> npt.NDArray[np.float64]:
        """Return `size` independent uniforms."""
        ...


class Beside(Protocol):
    """A personal model that is trained beside the global one (`client.personal`)."""

    def step(self, batch: Batch) -> None:
        """Take one step; the global model takes its own on the same batch after it."""
        ...

    def state(self) -> StateDict:
        """Return what of it is kept."""
        ...


@dataclass(frozen=True)
class Round:
    """Which round of which study a site is training.

    `correction` is what the server adds to every gradient, with scaffold.
    """

    study: StudyConfig
    site: str
    round_number: int
    device: torch.device
    correction: StateDict | None = None


@dataclass(frozen=True)
class TrainingResult:
    """What training made: new minus old weights, and the mean loss of its steps.

    With qfedavg `loss` is that of the weights it began with. It is None under DP: not for release.
    """

    update: StateDict
    loss: float | None


def train_without_privacy(
    model: nn.Module,
    weights: StateDict,
    data: ImageSet,
    task: Task,
    this: Round,
    unlabelled: ImageSet | None = None,
    beside: Beside | None = None,
) -> TrainingResult:
    """Train from `weights` by plain mini-batches; the update is new minus `weights`.

    Steps and passes are those over `data`, the labelled images. With semi-supervised learning each
    step also sees some of the `unlabelled`. `beside` sees every batch first.
    """
    training = this.study.training
    write_state(model, weights)
    counts_by = None
    names = (this.round_number, this.site)
    if this.study.federation.algorithm == "qfedavg":
        counts_by = loss_of(model, data, task, this.study, this.device, names=names)
    set_training_mode(model)
    guessing = _guessing(model, task, data, unlabelled, this, balanced=True)
    loss = task if guessing is None else guessing.loss
    step = plain_steps(model, loss, this.study, this.device, this.correction)
    loader = guessing or BatchLoader(data, task, this.study, this.device)
    views, multiplicity = views_rng(this), this.study.augmentation.multiplicity
    total, count = torch.zeros((), device=this.device), 0
    others = _others(len(data), unlabelled, this) if guessing else None
    with repeatable_draws(model, task, this.study, this.device, *names):
        for own in step_positions(len(data), training, this):
            chosen = own if others is None else np.concatenate([own, next(others)])
            batch = loader.training_batch(np.repeat(chosen, multiplicity), views)
            if beside is not None:
                beside.step(batch)
            losses_B = step(batch)
            total += losses_B.sum()
            count += len(losses_B)
            if guessing:
                guessing.follow()
    mean_loss = float(total) / count if counts_by is None else counts_by
    return TrainingResult(change_of(model, weights), mean_loss)


def train_with_privacy(
    model: nn.Module,
    weights: StateDict,
    data: ImageSet,
    task: Task,
    this: Round,
    *,
    seeded: bool,
    public_num_patients: int | None,
    unlabelled: ImageSet | None = None,
) -> TrainingResult:
    """Train from `weights` under DP-SGD at the study's unit; see `client.privacy.dp_sgd`.

    Args:
        model: Network whose weights are overwritten.
        weights: Where training starts.
        data: The site's training images.
        task: Loss of an image.
        this: Study, site, round and device.
        seeded: Noise and sampling from the study's seed (simulation) instead of the operating
            system. Not private.
        public_num_patients: What the site states publicly; sets the expected batch.
        unlabelled: Training images without labels. With semi-supervised learning their patients
            are drawn, clipped and noised with all others.
    """
    # Opacus takes seconds to import and is needed under DP only.
    from medfed.client.privacy.dp_sgd import NoisyOptimizer, dp_step
    from medfed.client.privacy.noise import NoiseSource, SecureNoise, SecureUniform, SeededNoise
    from medfed.client.privacy.recorded_sums import recorded_sums

    study, privacy = this.study, this.study.privacy
    names = (this.round_number, this.site)
    noise: NoiseSource = (
        SeededNoise(torch_rng(study.study.seed, "dp noise", *names, device=this.device))
        if seeded
        else SecureNoise()
    )
    write_state(model, weights)
    set_training_mode(model)
    inner = make_optimizer(model, study.training, this.device)
    # On the optimiser within: it sees gradients that have their noise.
    GradientTerms(model, inner, study.federation).begin(this.correction)
    optimizer = NoisyOptimizer(
        inner,
        noise_multiplier=privacy.noise_multiplier,
        max_grad_norm=privacy.max_grad_norm,
        expected_batch_size=expected_batch(study, public_num_patients),
        noise=noise,
        clipping=privacy.clipping,
    )
    rng: Uniform = numpy_rng(study.study.seed, "dp sampling", *names) if seeded else SecureUniform()
    guessing = _guessing(model, task, data, unlabelled, this, balanced=False)
    loss = task if guessing is None else guessing.loss
    patients = data.patients
    if guessing is not None and unlabelled is not None:
        patients += unlabelled.patients
    groups = groups_of(patients) if privacy.unit == "patient" else _each_alone(len(patients))
    loader = guessing or BatchLoader(data, task, study, this.device)
    views = views_rng(this)
    recorded = recorded_sums(model, loss, study, this.device)
    assert study.training.local_steps is not None  # StudyConfig requires it under DP
    for _ in range(study.training.local_steps):
        sampled = np.flatnonzero(rng.random(len(groups)) < privacy.sample_rate)
        chosen = [_at_most(groups[unit], privacy.images_per_patient, rng) for unit in sampled]
        chunks = (
            _patient_batch(chosen[start : start + privacy.chunk], loader, views, study)
            for start in range(0, len(chosen), privacy.chunk)
        )
        dp_step(model, optimizer, loss.loss_per_image, chunks, recorded)
        if guessing:
            guessing.follow()
    update = change_of(model, weights)
    check_only_parameters_moved(model, update)
    return TrainingResult(update, None)


def expected_batch(study: StudyConfig, public_num_patients: int | None) -> float:
    """Return the public divisor of a DP step's noisy sum, in units a step."""
    if public_num_patients is None:
        return study.privacy.expected_batch_size
    return study.privacy.sample_rate * public_num_patients


def views_rng(this: Round) -> np.random.Generator:
    """Which part or version of each image is seen: no secret, so seeded in deployments too."""
    return numpy_rng(this.study.study.seed, "views", this.round_number, this.site)


def _guessing(
    model: nn.Module,
    task: Task,
    data: ImageSet,
    unlabelled: ImageSet | None,
    this: Round,
    *,
    balanced: bool,
) -> GuessingLoader | None:
    """What makes batches with guesses; None where nobody guesses, or about nothing."""
    if this.study.semi_supervised.method == "none" or unlabelled is None:
        return None
    return GuessingLoader(
        model,
        task,
        data,
        unlabelled,
        this.study,
        this.device,
        round_number=this.round_number,
        balanced=balanced,
    )


def _others(
    num_labelled: int, unlabelled: ImageSet | None, this: Round
) -> Iterator[npt.NDArray[np.int64]]:
    """Positions of each step's images without labels, behind those with: shuffled passes."""
    assert unlabelled is not None
    study = this.study
    size = study.semi_supervised.batch_size or study.training.batch_size
    rng = numpy_rng(study.study.seed, "unlabelled batches", this.round_number, this.site)
    while True:
        order = num_labelled + rng.permutation(len(unlabelled))
        for start in range(0, len(order), size):
            yield order[start : start + size]


def step_positions(
    num_images: int, training: TrainingSection, this: Round
) -> Iterator[npt.NDArray[np.int64]]:
    """Positions of each step's images: shuffled passes, ended by steps or by passes."""
    rng = numpy_rng(this.study.study.seed, "batches", this.round_number, this.site)
    step = 0
    epoch = 0
    while True:
        order = rng.permutation(num_images)
        for start in range(0, num_images, training.batch_size):
            if training.local_steps is not None and step == training.local_steps:
                return
            yield order[start : start + training.batch_size]
            step += 1
        epoch += 1
        if training.local_epochs is not None and epoch == training.local_epochs:
            return


def _each_alone(num_images: int) -> tuple[npt.NDArray[np.int64], ...]:
    """Groups of one image each, for record-level privacy."""
    return tuple(np.array([position], dtype=np.int64) for position in range(num_images))


def _at_most(positions: npt.NDArray[np.int64], limit: int, rng: Uniform) -> npt.NDArray[np.int64]:
    """Choose at most `limit` of a unit's images, uniformly and independently of their content."""
    if len(positions) <= limit:
        return positions
    return np.sort(positions[np.argsort(rng.random(len(positions)))[:limit]])


def _patient_batch(
    chosen: Sequence[npt.NDArray[np.int64]],
    loader: BatchLoader | GuessingLoader,
    views: np.random.Generator,
    study: StudyConfig,
) -> "PatientBatch":
    """Decode and pad the images of a chunk of patients; padding repeats the last with mask 0.

    With augmentation.multiplicity M, each image stands M times in its patient's row, each time in
    another random version; the patient's loss is the mean over all of them.
    """
    from medfed.client.privacy.dp_sgd import PatientBatch

    width = max(len(positions) for positions in chosen)
    padded_PK = np.stack(
        [np.pad(positions, (0, width - len(positions)), mode="edge") for positions in chosen]
    )
    mask_PK = np.stack([np.arange(width) < len(positions) for positions in chosen])
    multiplicity = study.augmentation.multiplicity
    batch = loader.training_batch(np.repeat(padded_PK.reshape(-1), multiplicity), views)
    shape = (len(chosen), width * multiplicity)
    return PatientBatch(
        inputs=tuple(part.reshape(*shape, *part.shape[1:]) for part in batch.inputs),
        targets_PK=batch.targets.reshape(*shape, *batch.targets.shape[1:]),
        mask_PK=torch.from_numpy(np.repeat(mask_PK, multiplicity, axis=1))
        .float()
        .to(batch.targets.device),
    )
