"""Gradient inversion: from an update back to the image that made it.

Cosine distance between the gradient of a guessed image and the update, plus total variation, by
Adam on the signs of the image's gradient, within the range of pixels. Needs nothing but the
network, its weights and the update; the image's label (mask, text) is taken as known, the worst
case: of one image, the sign of the last bias gives a class away.

Reference: Geiping et al. 2020, https://arxiv.org/abs/2003.14053

Shapes: C channels of all views, *S spatial, P parameters that train.
"""

from dataclasses import replace

import torch
from monai.metrics.regression import SSIMMetric
from torch import Tensor

from medfed.common.seeding import torch_rng
from medfed.common.tasks import Batch
from medfed.simulations.auditing.attacks.updates import Target, gradient, restore

_STEP = 0.1
"""First step of a pixel, of the range; it falls to 0 along a cosine."""
_TOTAL_VARIATION = 0.04
_SSIM_WINDOW = 11


def invert(target: Target, update_P: Tensor, known: Batch, *, steps: int, seed: int) -> Tensor:
    """Return the image [C, *S] in 0..1 whose gradient points most nearly along `update_P`.

    Args:
        target: Network and weights.
        update_P: What the attacker saw.
        known: Batch of one: its targets and inputs are known, but for the image, which is not
            looked at.
        steps: Optimiser steps; each costs about two gradients.
        seed: Of the first guess, grey with a little noise.
    """
    restore(target)
    section = target.study.data
    start = torch.randn(known.inputs[0].shape, generator=torch_rng(seed, "first guess"))
    guess = (0.5 + 0.02 * start).requires_grad_(True)
    optimizer = torch.optim.Adam([guess], lr=_STEP)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        seen = (guess - section.mean) / section.std
        batch = replace(known, inputs=(seen, *known.inputs[1:]))
        own_P = gradient(target, batch, differentiable=True)
        distance = 1 - torch.nn.functional.cosine_similarity(own_P, update_P, dim=0)
        loss = distance + _TOTAL_VARIATION * total_variation(guess)
        [slope] = torch.autograd.grad(loss, guess)
        guess.grad = slope.sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            guess.clamp_(0.0, 1.0)
    return guess.detach()[0]


def pixels_of(batch: Batch, target: Target) -> Tensor:
    """Return the image [C, *S] of a batch of one, in 0..1."""
    section = target.study.data
    return (batch.inputs[0][0] * section.std + section.mean).clamp(0.0, 1.0)


def total_variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbours, summed over the axes of [B, C, *S]."""
    axes = range(2, images.dim())
    return torch.stack([images.diff(dim=axis).abs().mean() for axis in axes]).sum()


def psnr(image: Tensor, truth: Tensor) -> float:
    """Return the peak signal-to-noise ratio of pixels in 0..1, dB; 100 at most."""
    error = float(((image - truth) ** 2).mean())
    return 100.0 if error < 1e-10 else -10 * float(torch.log10(torch.tensor(error)))


def ssim(image: Tensor, truth: Tensor) -> float:
    """Return the structural similarity of [C, *S] in 0..1; 1 for equal images.

    Reference: Wang et al. 2004, https://doi.org/10.1109/TIP.2003.819861
    """
    window = min(_SSIM_WINDOW, *image.shape[1:])
    metric = SSIMMetric(spatial_dims=image.dim() - 1, data_range=1.0, win_size=window)
    return float(metric(image[None], truth[None]))
