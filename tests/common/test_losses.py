"""Losses of single images: closed forms, plain twins, independence, finite gradients."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor

from medfed.common.losses import (
    exclusive_pixel_losses,
    grade_losses,
    overlapping_pixel_losses,
    soft_dice_losses,
    word_losses,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_planes(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.3


@pytest.mark.parametrize("spatial", [(9, 7), (5, 4, 6)])
def test_soft_dice_of_each_image_agrees_with_monai_on_that_image(spatial: tuple[int, ...]) -> None:
    probabilities = random(3, 2, *spatial).sigmoid()
    truth = random_planes(3, 2, *spatial)
    losses = soft_dice_losses(probabilities, truth)
    # MONAI adds the smoothing to numerator and denominator alike.
    reference = DiceLoss(smooth_nr=1.0, smooth_dr=1.0)
    for image in range(3):
        alone = reference(probabilities[image][None], truth[image][None].float())
        assert float(losses[image]) == pytest.approx(float(alone), abs=1e-6)


def test_soft_dice_of_empty_masks_falls_with_what_is_predicted() -> None:
    truth = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    nothing, little, much = (torch.full((1, 1, 4, 4), p) for p in (0.0, 0.1, 1.0))
    assert float(soft_dice_losses(nothing, truth)) == 0.0
    # 1 - 1 / (0.1 * 16 + 1) and 1 - 1 / 17.
    assert float(soft_dice_losses(little, truth)) == pytest.approx(1 - 1 / 2.6)
    assert float(soft_dice_losses(much, truth)) == pytest.approx(1 - 1 / 17)


def test_pixel_losses_are_pytorchs_mean_over_each_image() -> None:
    logits, classes = random(3, 4, 6, 5), torch.randint(0, 4, (3, 6, 5))
    planes = torch.stack([classes == index for index in range(4)], dim=1)
    expected = F.cross_entropy(logits, classes, reduction="none").mean(dim=(1, 2))
    torch.testing.assert_close(exclusive_pixel_losses(logits, planes), expected)
    overlapping = random_planes(3, 4, 6, 5)
    expected = torch.stack(
        [F.binary_cross_entropy_with_logits(logits[i], overlapping[i].float()) for i in range(3)]
    )
    torch.testing.assert_close(overlapping_pixel_losses(logits, overlapping), expected)


def test_grade_loss_asks_at_every_threshold_whether_the_grade_is_above() -> None:
    logits = random(4, 3)
    grades = torch.tensor([0, 1, 3, 2])
    answers = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]], dtype=torch.float32)
    expected = F.binary_cross_entropy(logits.sigmoid(), answers, reduction="none").mean(dim=1)
    torch.testing.assert_close(grade_losses(logits, grades), expected)


def test_grade_loss_is_larger_the_further_off() -> None:
    sure_of_zero = torch.full((4, 3), -3.0)
    losses = grade_losses(sure_of_zero, torch.tensor([0, 1, 2, 3]))
    assert losses.tolist() == sorted(losses.tolist())
    assert float(losses[0]) < float(losses[1])


def test_word_loss_is_the_mean_over_a_reports_own_words() -> None:
    logits = random(3, 5, 7)
    tokens = torch.tensor([[4, 5, 2, 0, 0], [4, 4, 6, 6, 2], [2, 0, 0, 0, 0]])
    losses = word_losses(logits, tokens, padding=0)
    for report, length in enumerate((3, 5, 1)):
        chosen = logits[report, :length].log_softmax(dim=1)
        expected = -np.mean([float(chosen[t, tokens[report, t]]) for t in range(length)])
        assert float(losses[report]) == pytest.approx(expected, abs=1e-6)


def test_word_loss_of_nothing_is_zero() -> None:
    logits = random(1, 4, 6).requires_grad_()
    loss = word_losses(logits, torch.zeros(1, 4, dtype=torch.int64), padding=0)
    loss.sum().backward()
    assert float(loss.detach()) == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


CASES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]] = {
    "soft dice": (
        lambda outputs, truth: soft_dice_losses(outputs.sigmoid(), truth),
        random(4, 2, 6, 6), random_planes(4, 2, 6, 6),
    ),
    "exclusive pixels": (
        exclusive_pixel_losses, random(4, 2, 6, 6), random_planes(4, 1, 6, 6).repeat(1, 2, 1, 1)
        ^ torch.tensor([True, False]).reshape(1, 2, 1, 1),
    ),
    "overlapping pixels": (
        overlapping_pixel_losses, random(4, 2, 6, 6), random_planes(4, 2, 6, 6),
    ),
    "grades": (grade_losses, random(4, 3), torch.tensor([0, 3, 1, 2])),
    "words": (
        lambda outputs, tokens: word_losses(outputs, tokens, 0),
        random(4, 3, 6), torch.tensor([[5, 4, 2], [3, 2, 0], [2, 0, 0], [3, 3, 2]]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_no_image_moves_another_ones_loss_or_gradient(name: str) -> None:
    loss, outputs, targets = CASES[name]
    changed, others = outputs.clone(), targets.clone()
    changed[0] = 50 * random(*outputs.shape[1:], seed=9)
    others[0] = targets[1]
    assert loss(outputs, targets).shape == (4,)
    assert torch.equal(loss(outputs, targets)[1:], loss(changed, others)[1:])
    outputs = outputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(outputs, targets)[2], outputs)
    assert gradient[2].any()
    assert not gradient[[0, 1, 3]].any()


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_patients_under_vmap_are_those_of_a_loop(name: str) -> None:
    loss, outputs, targets = CASES[name]
    # Two patients with two images each.
    outputs_PK, targets_PK = (part.reshape(2, 2, *part.shape[1:]) for part in (outputs, targets))
    gradient_of = torch.func.grad(lambda o, t: loss(o, t).mean())
    together = torch.func.vmap(gradient_of)(outputs_PK, targets_PK)
    alone = torch.stack([gradient_of(o, t) for o, t in zip(outputs_PK, targets_PK, strict=True)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("full", [False, True])
def test_gradients_are_finite_on_empty_and_full_masks_however_sure_the_model(full: bool) -> None:
    truth = torch.full((1, 1, 5, 5), full)
    for level in (-200.0, 0.0, 200.0):
        logits = torch.full((1, 1, 5, 5), level, requires_grad=True)
        loss = soft_dice_losses(logits.sigmoid(), truth) + overlapping_pixel_losses(logits, truth)
        both = torch.cat([logits, -logits], dim=1)
        loss = loss + exclusive_pixel_losses(both, torch.cat([~truth, truth], dim=1))
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()
