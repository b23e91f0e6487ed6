"""Losses of single images. Each returns [B], and an image's loss depends on that image alone.

Differential privacy needs this: a loss that averages over the pixels, words or classes of a whole
batch lets one patient move another's gradient, and no clipping bounds that. Everything here runs
under `torch.func.vmap` and has finite gradients where a mask or a report is empty.

Shapes: B images, L channels or structures, K thresholds, *S spatial, T tokens, V words.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# In pixels. Makes the Dice of two empty masks 1, and its gradient finite.
_SMOOTH = 1.0


def soft_dice_losses(probabilities_BL: Tensor, truth_BL: Tensor) -> Tensor:
    """Return 1 minus the soft Dice coefficient, mean over structures, [B].

    Args:
        probabilities_BL: [B, L, *S].
        truth_BL: Bool [B, L, *S].

    Reference: Milletari et al. 2016, https://arxiv.org/abs/1606.04797 (sums, not squares)
    """
    truth = truth_BL.to(probabilities_BL.dtype).flatten(2)
    probabilities = probabilities_BL.flatten(2)
    both_BL = (probabilities * truth).sum(dim=2)
    either_BL = probabilities.sum(dim=2) + truth.sum(dim=2)
    return (1 - (2 * both_BL + _SMOOTH) / (either_BL + _SMOOTH)).mean(dim=1)


def exclusive_pixel_losses(logits_BL: Tensor, truth_BL: Tensor) -> Tensor:
    """Return the cross entropy of softmax, mean over an image's pixels, [B].

    Written out: PyTorch's own loss over pixels has no deterministic form on a GPU.

    Args:
        logits_BL: [B, L, *S].
        truth_BL: Bool [B, L, *S], true in one channel of each pixel.
    """
    log_probabilities = logits_BL.log_softmax(dim=1)
    chosen = torch.where(truth_BL, log_probabilities, torch.zeros_like(log_probabilities))
    return -chosen.sum(dim=1).flatten(1).mean(dim=1)


def overlapping_pixel_losses(logits_BL: Tensor, truth_BL: Tensor) -> Tensor:
    """Return the binary cross entropy, mean over an image's pixels and structures, [B]."""
    losses = F.binary_cross_entropy_with_logits(
        logits_BL, truth_BL.to(logits_BL.dtype), reduction="none"
    )
    return losses.flatten(1).mean(dim=1)


def grade_losses(logits_BK: Tensor, grades_B: Tensor) -> Tensor:
    """Return the mean over thresholds of the binary cross entropy of "above it", [B].

    Reference: Niu et al. 2016, https://doi.org/10.1109/CVPR.2016.532
    """
    thresholds_K = torch.arange(logits_BK.shape[1], device=grades_B.device)
    above_BK = (grades_B.unsqueeze(1) > thresholds_K).to(logits_BK.dtype)
    return F.binary_cross_entropy_with_logits(logits_BK, above_BK, reduction="none").mean(dim=1)


def word_losses(logits_BTV: Tensor, tokens_BT: Tensor, padding: int) -> Tensor:
    """Return the cross entropy of the next word, mean over a report's own tokens, [B].

    The mean over the batch's tokens, as is usual, would let a long report weigh down another's.

    Args:
        logits_BTV: For each position.
        tokens_BT: The token that comes there; `padding` after a report's end, which counts nothing.
        padding: The id of padding.
    """
    losses_N = F.cross_entropy(
        logits_BTV.flatten(0, 1), tokens_BT.flatten(), ignore_index=padding, reduction="none"
    )
    lengths_B = (tokens_BT != padding).sum(dim=1)
    return losses_N.reshape(tokens_BT.shape).sum(dim=1) / lengths_B.clamp(min=1)
