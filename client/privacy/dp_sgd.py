"""Patient-level DP-SGD: one gradient a patient, clipped, summed, noised, over a public batch size.

    sample patients (Poisson, public rate) -> at most K images each -> gradient of the mean loss
    over a patient's images -> clip to max_grad_norm -> sum -> + N(0, (noise_multiplier *
    max_grad_norm)^2) -> / public expected batch -> optimiser step

`torch.func.vmap(grad)` writes `p.grad_sample`, in chunks that bound memory; Opacus's `DPOptimizer`
clips, accumulates, noises and steps. An empty sample is legal and steps with noise only.

Reference: Abadi et al. 2016, https://arxiv.org/abs/1607.00133; groups of records per user:
McMahan et al. 2018, https://arxiv.org/abs/1710.06963.

Shapes: P patients in a chunk, K images a patient (padded), [P, K] mask of real images.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from medfed.client.privacy.noise import NoiseSource

LossPerImage = Callable[[Tensor, Tensor], Tensor]
"""(outputs [B, ...], targets [B, ...]) -> losses [B]; must not couple the images."""


@dataclass(frozen=True)
class PatientBatch:
    """Patients of one chunk, padded to the same number of images.

    Attributes:
        inputs: What the model is called with, each [P, K, ...].
        targets_PK: Targets of each image, [P, K, ...].
        mask_PK: 1.0 for a real image, 0.0 for padding; each row has at least one 1.
    """

    inputs: tuple[Tensor, ...]
    targets_PK: Tensor
    mask_PK: Tensor

    def __len__(self) -> int:
        return self.mask_PK.shape[0]


class NoisyOptimizer(DPOptimizer):  # type: ignore[misc] # Opacus ships no types
    """Opacus's optimiser with the noise drawn from a `NoiseSource`."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        expected_batch_size: float,
        noise: NoiseSource,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
            loss_reduction="mean",
        )
        self._noise = noise

    def clip_and_accumulate(self) -> None:
        """Add the clipped gradients to the sum; one that is not finite counts as zero.

        Clipping cannot bound it: its factor is 0 or NaN, and 0 * inf is NaN, so a single patient
        would turn the whole release into NaN and be seen by it.
        """
        before = [parameter.summed_grad for parameter in self.params]
        self._clip_alone()
        if not all(parameter.summed_grad.isfinite().all() for parameter in self.params):
            _zero_patients_that_are_not_finite(self.params)
            self._clip_alone()
        for parameter, earlier in zip(self.params, before, strict=True):
            if earlier is not None:
                parameter.summed_grad += earlier

    def _clip_alone(self) -> None:
        for parameter in self.params:
            parameter.summed_grad = None
        super().clip_and_accumulate()

    def add_noise(self) -> None:
        """Put clipped sum plus noise into `p.grad` for every parameter."""
        std = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            drawn = self._noise.normal_like(parameter.summed_grad)
            parameter.grad = (parameter.summed_grad + std * drawn).view_as(parameter)


def _zero_patients_that_are_not_finite(parameters: list[Any]) -> None:
    finite_P = torch.stack(
        [p.grad_sample.reshape(len(p.grad_sample), -1).isfinite().all(dim=1) for p in parameters]
    ).all(dim=0)
    for parameter in parameters:
        gradients = parameter.grad_sample
        keep = finite_P.reshape(-1, *[1] * (gradients.dim() - 1))
        # A new tensor: Opacus refuses to clip one that it has clipped before.
        parameter.grad_sample = torch.where(keep, gradients, torch.zeros_like(gradients))


def patient_gradients(
    model: nn.Module, loss_per_image: LossPerImage, batch: PatientBatch
) -> dict[str, Tensor]:
    """Return each trainable parameter's gradient for each patient, [P, *parameter.shape].

    A patient's loss is the mean over that patient's own images; padding has weight zero.
    """
    trainable = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    frozen = {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}
    frozen |= {n: b.detach() for n, b in model.named_buffers()}

    def loss_of_patient(
        parameters: dict[str, Tensor],
        inputs: tuple[Tensor, ...],
        targets_K: Tensor,
        mask_K: Tensor,
    ) -> Tensor:
        outputs = torch.func.functional_call(model, {**parameters, **frozen}, inputs)
        losses_K = loss_per_image(outputs, targets_K)
        return (losses_K * mask_K).sum() / mask_K.sum()

    gradients = torch.func.vmap(torch.func.grad(loss_of_patient), in_dims=(None, 0, 0, 0))(
        trainable, batch.inputs, batch.targets_PK, batch.mask_PK
    )
    return cast(dict[str, Tensor], gradients)


def dp_step(
    model: nn.Module,
    optimizer: NoisyOptimizer,
    loss_per_image: LossPerImage,
    chunks: Iterable[PatientBatch],
) -> None:
    """Take one differentially private step over the `chunks` of one Poisson sample (or none)."""
    optimizer.zero_grad(set_to_none=True)
    # Opacus keeps its per-sample gradients in an attribute that torch does not know.
    parameters: dict[str, Any] = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for chunk in chunks:
        gradients = patient_gradients(model, loss_per_image, chunk)
        for name, parameter in parameters.items():
            parameter.grad_sample = gradients[name]
        optimizer.clip_and_accumulate()
        for parameter in parameters.values():
            parameter.grad_sample = None
    # The empty chunk makes Opacus add noise and step, whether or not anyone was sampled.
    for parameter in parameters.values():
        parameter.grad_sample = parameter.new_empty((0, *parameter.shape))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
