"""Training on images without labels: what a model says of one view is learned on another.

pseudo_labels (FixMatch: Sohn et al. 2020, https://arxiv.org/abs/2001.07685; with one kind of view,
Lee 2013): the model in training answers for the weak view; where it is sure, its answer is the
label of the strong view. mean_teacher (Tarvainen & Valpola 2017, https://arxiv.org/abs/1703.01780):
a running average of the model answers, and the squared distance from its probabilities is the loss.

Under DP a guess is a function of weights that have their noise and of the one image it is about.
So an image without a label is part of its patient's loss like any other: clipped with it, covered
by the same noise, and no other patient's gradient depends on it. For the same reason nothing here
looks at a batch as a whole.

The running average starts each round from the global model, which is an average over all sites
already. No site keeps anything, so a round can be asked for again, or at another place.

Shapes: B images, A answers of the model (its outputs), L classes.
"""

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medfed.client.batches import BatchLoader, Positions
from medfed.client.data.site_data import ImageSet
from medfed.common.models import set_training_mode
from medfed.common.study import StudyConfig
from medfed.common.tasks import Batch, Task


class GuessedLoss:
    """Losses of labelled images and of guesses, from targets [B, 3, A].

    The targets are the answers that the model should give, and for each of them its weight as a
    label and as a guess.

    Args:
        study: Method and mode of the task.
    """

    def __init__(self, study: StudyConfig) -> None:
        self.exclusive = study.task.mode == "multiclass"
        self._squared = study.semi_supervised.method == "mean_teacher"

    def loss_per_image(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return losses [B] from outputs [B, A]."""
        answers, of_label, of_guess = targets.unbind(dim=1)
        num_answers = outputs.shape[1]
        # As the task's own loss: a sum over classes that exclude one another, else a mean.
        if self.exclusive:
            losses = -answers * outputs.log_softmax(dim=1)
        else:
            losses = F.binary_cross_entropy_with_logits(outputs, answers, reduction="none")
            losses = losses / num_answers
        guesses = losses
        if self._squared:
            guesses = (self.probabilities(outputs) - answers).square() / num_answers
        return (of_label * losses + of_guess * guesses).sum(dim=1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the probability of each answer, [B, A]: shares of one, or each for itself."""
        return outputs.softmax(dim=1) if self.exclusive else outputs.sigmoid()

    def answers(self, labels: Tensor, num_answers: int) -> Tensor:
        """Return the task's targets as answers, float32 [B, A]."""
        if labels.dim() == 2:
            return labels.float()
        if self.exclusive:
            return F.one_hot(labels, num_answers).float()
        # Grades: "is it above grade k?", for each k but the highest.
        return (labels[:, None] > torch.arange(num_answers, device=labels.device)).float()


class GuessingLoader:
    """Makes training batches of images with labels, followed by images without.

    Positions count the labelled images first: those from `len(labelled)` on have no label.

    Args:
        model: The network that is trained, with the weights that a round starts from.
        task: What it is trained to do.
        labelled: Images with labels.
        unlabelled: Images without.
        study: Method, preprocessing and views.
        device: Where batches go.
        round_number: Of the study.
        balanced: Weigh as a mean over the labelled images of a batch plus one over the others, for
            a step on the mean of all. Not under DP, where a patient's loss is its own affair.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        labelled: ImageSet,
        unlabelled: ImageSet,
        study: StudyConfig,
        device: torch.device,
        *,
        round_number: int,
        balanced: bool,
    ) -> None:
        section = study.semi_supervised
        self.loss = GuessedLoss(study)
        self._model = model
        self._num_outputs = task.num_outputs
        self._section = section
        self._num_labelled = len(labelled)
        self._weight = section.weight * ramp(round_number, section.ramp_up_rounds)
        self._balanced = balanced
        strong = section.strong if section.strong.enabled else study.augmentation
        seen_hard = study.model_copy(update={"augmentation": strong})
        self._labelled = BatchLoader(labelled, task, study, device)
        self._weak = BatchLoader(unlabelled, task, study, device)
        self._strong = BatchLoader(unlabelled, task, seen_hard, device)
        self.teacher = copy.deepcopy(model) if section.method == "mean_teacher" else model

    def training_batch(self, chosen: Positions, rng: np.random.Generator) -> Batch:
        """Return images as training sees them, in the order of `chosen`, with their targets."""
        guessed = chosen >= self._num_labelled
        parts, places = [], []
        for is_guessed, make in ((False, self._with_labels), (True, self._with_guesses)):
            where = np.flatnonzero(guessed == is_guessed)
            if len(where):
                # A mean over all of the batch is then a mean over these alone.
                share = len(chosen) / len(where) if self._balanced else 1.0
                offset = self._num_labelled if is_guessed else 0
                parts.append(make(chosen[where] - offset, rng, share))
                places.append(where)
        order = torch.from_numpy(np.argsort(np.concatenate(places), kind="stable"))
        order = order.to(parts[0].targets.device)
        inputs = tuple(
            torch.cat(same)[order] for same in zip(*(part.inputs for part in parts), strict=True)
        )
        return Batch(inputs, torch.cat([part.targets for part in parts])[order])

    @torch.no_grad()
    def follow(self) -> None:
        """Move the average towards the model, which has just made a step."""
        decay = self._section.decay
        if decay is None:
            return
        ours = dict(self.teacher.named_parameters())
        for name, theirs in self._model.named_parameters():
            if theirs.requires_grad:
                ours[name].lerp_(theirs, 1 - decay)
        for mine, new in zip(self.teacher.buffers(), self._model.buffers(), strict=True):
            mine.copy_(new)

    def _with_labels(self, chosen: Positions, rng: np.random.Generator, share: float) -> Batch:
        batch = self._labelled.training_batch(chosen, rng)
        answers = self.loss.answers(batch.targets, self._num_outputs)
        weights = torch.full_like(answers, share)
        return Batch(
            batch.inputs, torch.stack([answers, weights, torch.zeros_like(answers)], dim=1)
        )

    def _with_guesses(self, chosen: Positions, rng: np.random.Generator, share: float) -> Batch:
        probabilities = self._guess(self._weak.training_batch(chosen, rng))
        answers, sure = probabilities, torch.ones_like(probabilities)
        threshold = self._section.threshold
        if threshold is not None:
            answers, sure = hard_answers(probabilities, threshold, exclusive=self.loss.exclusive)
        weights = share * self._weight * sure
        seen = self._strong.training_batch(chosen, rng)
        return Batch(seen.inputs, torch.stack([answers, torch.zeros_like(answers), weights], dim=1))

    @torch.no_grad()
    def _guess(self, batch: Batch) -> Tensor:
        self.teacher.eval()
        probabilities = self.loss.probabilities(self.teacher(*batch.inputs))
        if self.teacher is self._model:
            set_training_mode(self._model)
        return probabilities


def hard_answers(
    probabilities: Tensor, threshold: float, *, exclusive: bool
) -> tuple[Tensor, Tensor]:
    """Return the likeliest answers as 0 and 1, and 1 where the model is sure of them, each [B, A].

    Args:
        probabilities: Of each answer, [B, A].
        threshold: Least probability of an answer that counts as sure.
        exclusive: Whether one of the answers is right; else each is a question of its own.
    """
    if exclusive:
        highest_B, best_B = probabilities.max(dim=1)
        answers = F.one_hot(best_B, probabilities.shape[1]).to(probabilities.dtype)
        sure = (highest_B >= threshold).to(probabilities.dtype)[:, None].expand_as(answers)
        return answers, sure
    answers = (probabilities >= 0.5).to(probabilities.dtype)
    of_answer = torch.maximum(probabilities, 1 - probabilities)
    return answers, (of_answer >= threshold).to(probabilities.dtype)


def ramp(round_number: int, ramp_up_rounds: int) -> float:
    """Return the share of the weight of guesses in a round: exp(-5 (1 - t)^2) up to t = 1.

    Reference: Tarvainen & Valpola 2017, appendix B.1
    """
    if round_number >= ramp_up_rounds:
        return 1.0
    return math.exp(-5.0 * (1.0 - round_number / ramp_up_rounds) ** 2)
