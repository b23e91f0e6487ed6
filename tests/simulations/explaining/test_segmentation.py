"""Uncertainty of masks: closed forms, and models whose mirrored answers are known."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study
from medfed.common.tasks import Segmentation
from medfed.simulations.explaining.segmentation import (
    explain_mask,
    mirrored_axes,
    pixel_entropy,
    prediction_margins,
)


def study(classes: int = 1, mode: str = "multiclass", **sections: object) -> StudyConfig:
    return parse_study(
        {
            "study": {"name": "tiny"},
            "task": {
                "type": "segmentation",
                "mode": mode,
                "classes": [f"structure {number}" for number in range(classes)],
            },
            "model": {"name": "unet"},
            "data": {"image_size": 16},
            "training": {"local_steps": 1},
            "privacy": {"unit": "none"},
            **sections,
        },
        "the test's study",
    )


def test_entropy_is_zero_where_sure_and_one_at_a_half() -> None:
    probabilities = np.array([[0.0, 1.0, 0.5, 0.25]])
    entropy = pixel_entropy(probabilities, exclusive=False)
    # In bits: 2 - 3/4 log2 3 at one quarter.
    np.testing.assert_allclose(entropy, [0, 0, 1, 2 - 0.75 * np.log2(3)], atol=1e-12)
    assert (pixel_entropy(np.linspace(0, 1, 101)[None], exclusive=False) <= 1).all()


def test_entropy_of_exclusive_structures_counts_the_background_as_one_more() -> None:
    thirds = np.full((2, 1), 1 / 3)
    sure = np.array([[1.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(pixel_entropy(thirds, exclusive=True), 1)
    np.testing.assert_allclose(pixel_entropy(sure, exclusive=True), 0)
    half = np.array([[0.5], [0.5]])
    np.testing.assert_allclose(pixel_entropy(half, exclusive=True), np.log(2) / np.log(3))


def test_entropy_of_overlapping_regions_is_that_of_the_one_in_most_doubt() -> None:
    probabilities = np.array([[0.5, 1.0], [0.0, 1.0]])
    np.testing.assert_allclose(pixel_entropy(probabilities, exclusive=False), [1, 0])


@pytest.mark.parametrize(
    ("classes", "mode"), [(1, "multiclass"), (3, "multiclass"), (2, "multilabel")]
)
def test_margins_say_what_the_task_predicts(classes: int, mode: str) -> None:
    task = Segmentation(study(classes, mode))
    exclusive = mode == "multiclass" and classes > 1
    outputs = torch.randn(
        1, task.num_outputs, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    margins = prediction_margins(task.probabilities(outputs)[0].numpy(), exclusive)
    if exclusive:
        expected = [(outputs[0].argmax(dim=0) == index + 1).numpy() for index in range(classes)]
    else:
        expected = list((outputs[0] >= 0).numpy())
    np.testing.assert_array_equal(margins >= 0, np.stack(expected))


class PixelByPixel(nn.Module):
    """A logit that is the pixel: mirroring the image mirrors the answer."""

    def forward(self, images: Tensor) -> Tensor:
        return 3 * images


class LeftHalf(nn.Module):
    """Sure of the left half, whatever the image."""

    def forward(self, images: Tensor) -> Tensor:
        outputs = torch.full_like(images, -50.0)
        outputs[..., : images.shape[-1] // 2] = 50.0
        return outputs


def test_explain_mask_of_a_model_that_mirrors_is_its_own_prediction() -> None:
    task = Segmentation(study())
    image = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    explained = explain_mask(PixelByPixel(), task, image, (0, 1), exclusive=False)
    expected = (3 * image[0].double()).sigmoid().numpy()
    np.testing.assert_allclose(explained.probabilities, expected, atol=1e-6)
    np.testing.assert_allclose(explained.entropy, pixel_entropy(expected, False), atol=1e-5)
    assert explained.mirrored == ((), (0,), (1,), (0, 1))


def test_explain_mask_is_in_doubt_where_mirrored_versions_disagree() -> None:
    task, image = Segmentation(study()), torch.zeros(1, 1, 16, 16)
    sideways = explain_mask(LeftHalf(), task, image, (1,), exclusive=False)
    np.testing.assert_allclose(sideways.probabilities, 0.5)
    np.testing.assert_allclose(sideways.entropy, 1)
    upright = explain_mask(LeftHalf(), task, image, (0,), exclusive=False)
    np.testing.assert_allclose(upright.entropy, 0, atol=1e-12)


def test_mirrored_axes_are_those_of_training() -> None:
    assert mirrored_axes(study()) == (1,)
    assert mirrored_axes(study(augmentation={"flip": "both"})) == (0, 1)
    assert mirrored_axes(study(augmentation={"flip": "vertical"})) == (0,)
    volumes = {"image_size": 16, "dimensions": 3}
    assert mirrored_axes(study(data=volumes)) == (0,)
