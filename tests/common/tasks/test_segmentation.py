"""Structures and regions: planes, losses, whole images and windows, figures."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medfed.common.errors import DataError
from medfed.common.losses import (
    exclusive_pixel_losses,
    overlapping_pixel_losses,
    soft_dice_losses,
)
from medfed.common.study import StudyConfig
from medfed.common.tasks.protocol import Batch, Examples
from medfed.common.tasks.segmentation import Segmentation

MakeStudy = Callable[..., StudyConfig]
SIZE = 16


def task_of(
    make_study: MakeStudy, *structures: str, mode: str = "multiclass", loss: str = "auto"
) -> Segmentation:
    task = {"type": "segmentation", "classes": list(structures), "mode": mode, "loss": loss}
    return Segmentation(make_study(task=task, data={"image_size": SIZE}))


def examples_of(masks: np.ndarray | None, size: int = 2) -> Examples:
    return Examples(np.zeros((size, 1), dtype=np.uint8), masks, ("",) * size)


def random_masks(highest: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, highest + 1, shape).astype(np.uint8)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def perfect(planes: Tensor, *, background: bool) -> Tensor:
    """Logits that are sure of `planes` [B, L, *S]."""
    if background:
        planes = torch.cat([~planes.any(dim=1, keepdim=True), planes], dim=1)
    return torch.where(planes, 30.0, -30.0)


@pytest.mark.parametrize(
    ("structures", "mode", "outputs"),
    [
        (("lesion",), "multiclass", 1),
        (("anterior", "posterior"), "multiclass", 3),
        (("whole", "core", "enhancing"), "multilabel", 3),
        (("lesion",), "multilabel", 1),
    ],
)
@pytest.mark.parametrize("spatial", [(SIZE, SIZE), (SIZE, SIZE, SIZE)])
def test_a_perfect_answer_has_dice_one_and_nearly_no_loss(
    make_study: MakeStudy,
    answers: nn.Module,
    structures: tuple[str, ...],
    mode: str,
    outputs: int,
    spatial: tuple[int, ...],
) -> None:
    task = task_of(make_study, *structures, mode=mode)
    assert task.num_outputs == outputs
    highest = 2 ** len(structures) - 1 if mode == "multilabel" else len(structures)
    masks = random_masks(highest, 2, *spatial)
    targets = task.targets(examples_of(masks))
    if mode == "multilabel":
        planes = torch.from_numpy(
            np.stack([masks >> i & 1 == 1 for i in range(len(structures))], 1)
        )
    else:
        planes = torch.from_numpy(np.stack([masks == i + 1 for i in range(len(structures))], 1))
    logits = perfect(planes, background=outputs > len(structures))
    assert float(task.loss_per_image(logits, targets).max()) < 1e-4
    figures = task.metrics(task.evaluate(answers, Batch((logits,), targets)))
    assert figures["dice"] == figures["iou"] == figures["surface_dice"] == 1.0
    assert figures["hd95"] == 0.0
    # The opposite answer is wrong everywhere.
    if len(structures) == 1:
        wrong = task.metrics(task.evaluate(answers, Batch((-logits,), targets)))
        assert wrong["dice"] == wrong["iou"] == 0.0
    assert {figure.key for figure in task.figures} <= set(figures)
    assert task.predict(answers, (logits,)).shape == (2, len(structures), *spatial)


def test_losses_are_those_that_the_study_names(make_study: MakeStudy) -> None:
    logits = random(2, 3, SIZE, SIZE)
    masks = random_masks(2, 2, SIZE, SIZE)
    planes = torch.from_numpy(np.stack([masks == index for index in range(3)], 1))
    dice = soft_dice_losses(logits.softmax(dim=1)[:, 1:], planes[:, 1:])
    entropy = exclusive_pixel_losses(logits, planes)
    for name, expected in (
        ("dice", dice), ("cross_entropy", entropy), ("dice_ce", dice + entropy),
        ("auto", dice + entropy),
    ):  # fmt: skip
        task = task_of(make_study, "a", "b", loss=name)
        targets = task.targets(examples_of(masks))
        torch.testing.assert_close(task.loss_per_image(logits, targets), expected)
    one = task_of(make_study, "a")
    targets = one.targets(examples_of(np.minimum(masks, 1)))
    expected = soft_dice_losses(logits[:, :1].sigmoid(), targets[:, None] == 1)
    expected = expected + overlapping_pixel_losses(logits[:, :1], targets[:, None] == 1)
    torch.testing.assert_close(one.loss_per_image(logits[:, :1], targets), expected)


def test_overlapping_regions_are_bits_of_the_mask(
    make_study: MakeStudy, answers: nn.Module
) -> None:
    task = task_of(make_study, "whole", "core", mode="multilabel")
    masks = np.zeros((2, SIZE, SIZE), dtype=np.uint8)
    masks[:, 2:10, 2:10] = 1
    masks[:, 4:8, 4:8] = 3
    targets = task.targets(examples_of(masks))
    logits = torch.where(targets[:, None] > 0, 5.0, -5.0).repeat(1, 2, 1, 1)
    figures = task.metrics(task.evaluate(answers, Batch((logits,), targets)))
    assert figures["dice/whole"] == 1.0
    # 16 of the 64 predicted pixels are core: 2 * 16 / (64 + 16).
    assert figures["dice/core"] == pytest.approx(0.4, abs=1e-6)
    assert figures["precision/core"] == 0.25
    assert figures["sensitivity/core"] == 1.0


def test_targets_refuse_masks_that_are_missing_or_hold_other_values(make_study: MakeStudy) -> None:
    with pytest.raises(DataError, match="Expected masks"):
        task_of(make_study, "lesion").targets(examples_of(None))
    with pytest.raises(DataError, match="from 0 to 2 for a, b, got 3"):
        task_of(make_study, "a", "b").targets(examples_of(random_masks(3, 2, 9, 9)))
    regions = task_of(make_study, "a", "b", mode="multilabel")
    assert regions.targets(examples_of(random_masks(3, 2, 9, 9))).max() == 3
    with pytest.raises(DataError, match="from 0 to 3"):
        regions.targets(examples_of(random_masks(4, 2, 9, 9)))


@pytest.mark.parametrize("structures", [("lesion",), ("a", "b")])
def test_empty_masks_have_finite_losses_and_gradients(
    make_study: MakeStudy, structures: tuple[str, ...]
) -> None:
    task = task_of(make_study, *structures)
    targets = task.targets(examples_of(np.zeros((2, SIZE, SIZE), dtype=np.uint8)))
    logits = random(2, task.num_outputs, SIZE, SIZE).requires_grad_()
    losses = task.loss_per_image(logits, targets)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.any()


class Local(nn.Module):
    """Answers from each pixel alone, so windows must give what the whole image gives."""

    def __init__(self) -> None:
        super().__init__()
        self.largest: tuple[int, ...] = ()
        self.most = 0

    def forward(self, images: Tensor) -> Tensor:
        self.largest = max(self.largest, tuple(images.shape[2:]))
        self.most = max(self.most, len(images))
        return 3 * images - 1


@pytest.mark.parametrize("shape", [(40, 23), (16, 16), (9, 50), (20, 18, 25), (7, 16, 33)])
def test_images_of_another_size_than_the_patch_are_seen_in_windows(
    make_study: MakeStudy, shape: tuple[int, ...]
) -> None:
    study = make_study(
        task={"type": "segmentation", "classes": ["lesion"]},
        data={"image_size": SIZE, "fit": "patch", "dimensions": len(shape)},
        evaluation={"batch_size": 3},
    )
    task = Segmentation(study)
    images = random(1, 1, *shape)
    masks = (images[:, 0] > 0.5).numpy().astype(np.uint8)
    targets = task.targets(examples_of(masks, 1))
    model = Local()
    with torch.inference_mode():
        figures = task.metrics(task.evaluate(model, Batch((images,), targets)))
        probabilities = task.predict(model, (images,))
    assert model.largest == (SIZE,) * len(shape)
    assert model.most <= 3
    torch.testing.assert_close(probabilities, (3 * images - 1).sigmoid())
    truth, predicted = images > 0.5, 3 * images - 1 >= 0
    dice = 2 * int((truth & predicted).sum()) / int(truth.sum() + predicted.sum())
    assert figures["dice"] == pytest.approx(dice, abs=1e-3)


def test_distances_are_in_millimetres_where_the_study_has_a_spacing(
    make_study: MakeStudy, answers: nn.Module
) -> None:
    masks = np.zeros((1, SIZE, SIZE, SIZE), dtype=np.uint8)
    masks[:, 2:6, 2:6, 2:6] = 1
    shifted = np.roll(masks, 4, axis=1)
    found = {}
    for spacing in (None, 2.0):
        data = {"image_size": SIZE, "fit": "patch", "dimensions": 3, "spacing_mm": spacing}
        study = make_study(
            task={"type": "segmentation", "classes": ["lesion"]},
            data=data,
            evaluation={"surface_tolerance": 4.0},
        )
        task = Segmentation(study)
        targets = task.targets(examples_of(masks, 1))
        logits = torch.where(torch.from_numpy(shifted[:, None] > 0), 9.0, -9.0)
        found[spacing] = task.metrics(task.evaluate(answers, Batch((logits,), targets)))
        unit = "px" if spacing is None else "mm"
        assert any(unit in figure.title for figure in task.figures)
    assert found[None]["hd95"] == 4.0
    assert found[2.0]["hd95"] == 8.0
    assert found[None]["surface_dice"] == 1.0
    assert found[2.0]["surface_dice"] < 1.0
