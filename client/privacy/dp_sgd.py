"""Patient-level DP-SGD: one gradient a patient, clipped, summed, noised, over a public batch size.

    sample patients (Poisson, public rate) -> at most K images each -> gradient of the mean loss
    over a patient's images -> clip to max_grad_norm -> sum -> + N(0, (noise_multiplier *
    max_grad_norm)^2) -> / public expected batch -> optimiser step

Clipped sums of chunks that bound memory are made by book-keeping, or from gradients by
`torch.func.vmap(grad)` where `keeps_books` says that a network is not fit for it (ADR 27); an
optimiser derived from Opacus's `DPOptimizer` adds the noise and steps. An empty sample is legal and
steps with noise only.

Reference: Abadi et al. 2016, https://arxiv.org/abs/1607.00133; groups of records per user:
McMahan et al. 2018, https://arxiv.org/abs/1710.06963.

Shapes: P patients in a chunk, K images a patient (padded), [P, K] mask of real images.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from medfed.client.privacy.book_keeping import BookKeeping, keeps_books
from medfed.client.privacy.clipping import (
    Clipping,
    LossPerImage,
    PatientBatch,
    clip_factors,
    clipped_sums,
)
from medfed.client.privacy.noise import NoiseSource, SecureNoise
from medfed.client.privacy.noise_ahead import NoiseAhead, has_a_core_to_spare

if TYPE_CHECKING:
    from medfed.client.privacy.recorded_sums import RecordedSums

__all__ = [
    "Clipping",
    "LossPerImage",
    "NoisyOptimizer",
    "PatientBatch",
    "clip_factors",
    "clipped_sums",
    "dp_step",
    "gradient_function",
    "patient_gradients",
    "sum_function",
]

# Numbers at a time that noise is drawn for: it then stays in a processor's cache.
_BLOCK = 1 << 17


class NoisyOptimizer(DPOptimizer):  # type: ignore[misc] # Opacus ships no types
    """Opacus's optimiser, clipping as the study says, with the noise drawn from a `NoiseSource`.

    Clipping and scaling are Opacus's arithmetic with fewer passes over the parameters: its own cost
    as much as a chunk's gradients where a network has many small ones. On some processors patients
    are added up in another order than Opacus's, so last bits differ there.

    Args:
        optimizer: Steps by the noisy gradient.
        noise_multiplier: Noise standard deviation over `max_grad_norm`.
        max_grad_norm: L2 bound on one patient's part of the sum.
        expected_batch_size: Public divisor of the noisy sum.
        noise: Standard normals.
        clipping: flat or automatic; see `clip_factors`.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        expected_batch_size: float,
        noise: NoiseSource,
        clipping: Clipping = "flat",
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
            loss_reduction="mean",
        )
        self._noise = noise
        self._thread = ThreadPoolExecutor(1, "noise")
        self._ahead: NoiseAhead | None = None
        self.clipping: Clipping = clipping

    def begin_noise(self) -> None:
        """Begin to draw the noise of this step, where it may be drawn in any order."""
        on_cpu = all(p.device.type == "cpu" and p.dtype is torch.float32 for p in self.params)
        if isinstance(self._noise, SecureNoise) and on_cpu and has_a_core_to_spare():
            sizes = [parameter.numel() for parameter in self.params]
            self._ahead = NoiseAhead(self._noise, sizes, self._thread)

    def clip_and_accumulate(self) -> None:
        """Add the clipped gradients in `p.grad_sample` to the sum."""
        parameters = self.params
        num_patients = len(parameters[0].grad_sample)
        if num_patients == 0 and parameters[0].summed_grad is not None:
            return  # The empty chunk that ends a step.
        gradients = [p.grad_sample for p in parameters]
        clipped = clipped_sums(gradients, self.max_grad_norm, self.clipping)
        for parameter, part in zip(parameters, clipped, strict=True):
            if parameter.summed_grad is None:
                parameter.summed_grad = part
            else:
                parameter.summed_grad += part

    def add_noise(self) -> None:
        """Put clipped sum plus noise into `p.grad` for every parameter, in the sum's memory."""
        std = self.noise_multiplier * self.max_grad_norm
        # Noise is drawn in the order of the numbers, however the sum is laid out.
        for parameter in self.params:
            parameter.grad = parameter.summed_grad.contiguous()
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            sums = [p.grad.view(-1) for p in self.params]
            torch._foreach_add_(sums, ahead.parts(), alpha=std)
            return
        for parameter in self.params:
            for part in _blocks(parameter.grad):
                part.add_(self._noise.normal_like(part), alpha=std)

    def scale_grad(self) -> None:
        """Divide `p.grad` by the public expected batch, once for all chunks of a step."""
        torch._foreach_div_([p.grad for p in self.params], self.expected_batch_size)


def _blocks(total: Tensor) -> Sequence[Tensor]:
    if total.device.type != "cpu" or total.numel() <= _BLOCK:
        return (total,)
    numbers = total.view(-1)
    return [numbers[start : start + _BLOCK] for start in range(0, len(numbers), _BLOCK)]


def patient_gradients(
    model: nn.Module, loss_per_image: LossPerImage, batch: PatientBatch
) -> dict[str, Tensor]:
    """Return each trainable parameter's gradient for each patient, [P, *parameter.shape].

    A patient's loss is the mean over that patient's own images; padding has weight zero.
    """
    return gradient_function(model, loss_per_image)(batch)


def gradient_function(
    model: nn.Module, loss_per_image: LossPerImage
) -> Callable[[PatientBatch], dict[str, Tensor]]:
    """Return `patient_gradients` for all chunks of a step: walking a deep network takes a while."""
    trainable = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    frozen = {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}
    frozen |= {n: b.detach() for n, b in model.named_buffers()}
    num_names = sum(1 for _ in model.named_parameters(remove_duplicate=False))
    num_names += sum(1 for _ in model.named_buffers(remove_duplicate=False))
    tied = num_names > len(trainable) + len(frozen)

    def loss_of_patient(
        parameters: dict[str, Tensor],
        inputs: tuple[Tensor, ...],
        targets_K: Tensor,
        mask_K: Tensor,
    ) -> Tensor:
        outputs = torch.func.functional_call(
            model, {**parameters, **frozen}, inputs, tie_weights=tied
        )
        losses_K = loss_per_image(outputs, targets_K)
        # The maximum is for rows that are padding as a whole: they have no gradient.
        return (losses_K * mask_K).sum() / mask_K.sum().clamp(min=1.0)

    gradients = torch.func.vmap(torch.func.grad(loss_of_patient), in_dims=(None, 0, 0, 0))

    def of(batch: PatientBatch) -> dict[str, Tensor]:
        found = gradients(trainable, batch.inputs, batch.targets_PK, batch.mask_PK)
        return cast(dict[str, Tensor], found)

    return of


def sum_function(
    model: nn.Module, loss_per_image: LossPerImage, max_grad_norm: float, clipping: Clipping
) -> Callable[[PatientBatch], dict[str, Tensor]]:
    """Return what adds up the clipped gradients of a chunk, by the name of the parameter.

    By book-keeping where `keeps_books` allows it, else by `torch.func.vmap`: which of the two
    depends on nothing but the model, so that all grids and deployments of a study agree.
    """
    if keeps_books(model):
        return BookKeeping(model, loss_per_image, max_grad_norm, clipping)
    gradients_of = gradient_function(model, loss_per_image)

    def of(batch: PatientBatch) -> dict[str, Tensor]:
        gradients = gradients_of(batch)
        sums = clipped_sums(list(gradients.values()), max_grad_norm, clipping)
        return dict(zip(gradients, sums, strict=True))

    return of


def dp_step(
    model: nn.Module,
    optimizer: NoisyOptimizer,
    loss_per_image: LossPerImage,
    chunks: Iterable[PatientBatch],
    recorded: "RecordedSums | None" = None,
) -> None:
    """Take one differentially private step over the `chunks` of one Poisson sample (or none).

    Args:
        model: What is trained.
        optimizer: Over the parameters of `model` that train.
        loss_per_image: Loss of each image.
        chunks: The sampled patients.
        recorded: Adds up the chunks' clipped gradients, where that is recorded on a GPU.
    """
    optimizer.zero_grad(set_to_none=True)
    optimizer.begin_noise()
    # Opacus keeps its per-sample gradients in an attribute that torch does not know.
    parameters: dict[str, Any] = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if recorded is not None:
        for name, total in recorded.of(chunks).items():
            parameters[name].summed_grad = total
    else:
        sum_of = sum_function(model, loss_per_image, optimizer.max_grad_norm, optimizer.clipping)
        for chunk in chunks:
            for name, part in sum_of(chunk).items():
                total = parameters[name].summed_grad
                parameters[name].summed_grad = part if total is None else total.add_(part)
    # The empty chunk makes Opacus add noise and step, whether or not anyone was sampled.
    for parameter in parameters.values():
        parameter.grad_sample = parameter.new_empty((0, *parameter.shape))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
