"""How sure a segmentation is of each pixel: entropy of its mean over mirrored versions.

Reference: Wang et al. 2019, https://arxiv.org/abs/1807.07356 (test-time augmentation).

Shapes: one image; L structures, *S spatial.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medfed.client.augmentation.drawing import FLIP_AXES
from medfed.common.study import StudyConfig
from medfed.common.tasks import Segmentation

_LOWEST = 1e-300


@dataclass(frozen=True)
class MaskExplanation:
    """A segmentation and how sure it is.

    Attributes:
        probabilities: float64 [L, *S], mean over the mirrored versions.
        margins: float64 [L, *S], 0 or more where the structure is predicted.
        entropy: float64 *S, 0 where the model is sure to 1 where it could be anything.
        mirrored: The spatial axes mirrored in each version; the first is the image itself.
    """

    probabilities: npt.NDArray[np.float64]
    margins: npt.NDArray[np.float64]
    entropy: npt.NDArray[np.float64]
    mirrored: tuple[tuple[int, ...], ...]


def mirrored_axes(study: StudyConfig) -> tuple[int, ...]:
    """Return the axes along which training mirrored images; left and right if it did not."""
    flip = study.augmentation.flip
    return FLIP_AXES[study.data.dimensions]["horizontal" if flip == "none" else flip]


def explain_mask(
    model: nn.Module, task: Segmentation, images: Tensor, axes: Sequence[int], *, exclusive: bool
) -> MaskExplanation:
    """Segment one image and its mirror images, and say where they leave doubt.

    Args:
        model: In evaluation mode.
        task: What its outputs mean.
        images: [1, C, *S].
        axes: Spatial axes along which to mirror; all combinations of them are averaged.
        exclusive: Whether the structures exclude one another and the background.
    """
    versions = tuple(
        chosen for number in range(len(axes) + 1) for chosen in itertools.combinations(axes, number)
    )
    total = torch.zeros(1, dtype=torch.float64)
    with torch.inference_mode():
        for version in versions:
            dims = [axis + 2 for axis in version]
            mirrored = task.predict(model, (images.flip(dims),)).double()
            total = total + mirrored.flip(dims)
    probabilities = (total / len(versions))[0].numpy()
    return MaskExplanation(
        probabilities=probabilities,
        margins=prediction_margins(probabilities, exclusive),
        entropy=pixel_entropy(probabilities, exclusive),
        mirrored=versions,
    )


def prediction_margins(
    probabilities_L: npt.NDArray[np.float64], exclusive: bool
) -> npt.NDArray[np.float64]:
    """Return by how much each structure leads over the most probable alternative, [L, *S].

    The alternative is any other structure or the background where they exclude one another, and
    otherwise that the region is not there.
    """
    if not exclusive:
        return np.asarray(2 * probabilities_L - 1)
    choices = _with_background(probabilities_L)
    others = [np.delete(choices, index, axis=0).max(axis=0) for index in range(1, len(choices))]
    return np.asarray(probabilities_L - np.stack(others))


def pixel_entropy(
    probabilities_L: npt.NDArray[np.float64], exclusive: bool
) -> npt.NDArray[np.float64]:
    """Return the entropy of each pixel, as a share of the largest possible.

    Structures that exclude one another are one choice, with the background as one more
    possibility. Regions that overlap are a choice each: the one in most doubt counts.
    """
    if exclusive:
        choices = _with_background(probabilities_L)
        return np.asarray(_surprise(choices).sum(axis=0) / np.log(len(choices)))
    both = _surprise(probabilities_L) + _surprise(1 - probabilities_L)
    return np.asarray(both.max(axis=0) / np.log(2))


def _with_background(probabilities_L: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    background = np.clip(1 - probabilities_L.sum(axis=0, keepdims=True), 0, 1)
    return np.concatenate([background, probabilities_L])


def _surprise(probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """-p log p, 0 at 0."""
    return -probabilities * np.log(np.maximum(probabilities, _LOWEST))
