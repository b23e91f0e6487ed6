"""A chunk of patients, and what each one's gradient is multiplied by before they are added up.

Shapes: P patients in a chunk, K images a patient (padded), [P, K] mask of real images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LossPerImage = Callable[[Tensor, Tensor], Tensor]
"""(outputs [B, ...], targets [B, ...]) -> losses [B]; must not couple the images."""

Clipping = Literal["flat", "automatic"]

# Gamma of the paper, its default: a shorter gradient than this gets less than its full weight.
_AUTOMATIC_STABILITY = 0.01


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


def clipped_sums(
    gradients: Sequence[Tensor], max_grad_norm: float, clipping: Clipping
) -> list[Tensor]:
    """Return the sum over patients of their clipped gradients; one not finite counts as zero.

    Clipping cannot bound that one: its factor is 0 or NaN, and 0 * inf is NaN, so a single patient
    would turn the whole release into NaN and be seen by it.

    Args:
        gradients: Of each parameter, [P, *parameter.shape].
        max_grad_norm: L2 bound on one patient's part, over all parameters together.
        clipping: flat or automatic; see `clip_factors`.
    """
    rows = [
        gradient.flatten(1) if gradient.dim() > 1 else gradient[:, None] for gradient in gradients
    ]
    norms_P = torch.stack([row.norm(2, dim=1) for row in rows], dim=1).norm(2, dim=1)
    factors_P = clip_factors(norms_P, max_grad_norm, clipping)
    # A norm is finite only if everything in it is.
    finite_P = norms_P.isfinite()
    # A GPU need not be waited for: there it costs less to do it than to ask.
    if norms_P.device.type != "cpu" or not finite_P.all():
        factors_P = torch.where(finite_P, factors_P, 0.0)
        rows = [torch.where(finite_P[:, None], row, 0.0) for row in rows]
    return [
        (factors_P @ row).view(gradient.shape[1:])
        for row, gradient in zip(rows, gradients, strict=True)
    ]


def clip_factors(norms_P: Tensor, max_grad_norm: float, clipping: Clipping) -> Tensor:
    """Return what each patient's gradient is multiplied by; its norm is then <= `max_grad_norm`.

    flat: longer gradients are cut to the bound (Abadi et al. 2016). automatic (AUTO-S): every
    gradient of norm n is scaled to bound * n / (n + 0.01), so that the bound no longer chooses
    among patients and stands beside the learning rate as one factor.

    Reference: Bu et al. 2022, equation 4.1, https://arxiv.org/abs/2206.07136
    """
    if clipping == "automatic":
        return max_grad_norm / (norms_P + _AUTOMATIC_STABILITY)
    # The constant is Opacus's: a gradient of zero stays one.
    return (max_grad_norm / (norms_P + 1e-6)).clamp(max=1.0)
