"""Why a classifier gave a class its probability: Grad-CAM, and a check of what it points at.

Grad-CAM weighs each feature map by the mean of its gradient over the grid. Where the network itself
averages over the grid, that is exact. The CNN and VGG-16 do not: they give each place weights of
its own, which the mean would mix up, so each place is weighed by its own gradient (HiResCAM). For
all other networks the two are the same.

Reference: Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391 (MONAI's `GradCAM`); Draelos and
Carin 2020, https://arxiv.org/abs/2011.08891 (HiResCAM).

Shapes: one image; C channels, *S spatial, L classes.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medfed.common.models.encoders import Encoder
from medfed.common.models.fusion import Fusion
from medfed.common.tasks import Classification

Map = npt.NDArray[np.float32]
Inputs = tuple[Tensor, ...]
# The part of the image that is covered: the brightest of its map.
COVERED = 0.1
# The same shape is moved by thirds of the image to so many other places, to compare with.
_ELSEWHERE = 8
_LOWEST = 1e-12


@dataclass(frozen=True)
class Evidence:
    """What in one image, or in one view of it, speaks for one class.

    Attributes:
        map: float32 *S, 0 to 1 where the largest is 1; all 0 where nothing speaks for the class.
        grid: Cells of the network's last grid, which the map is enlarged from.
        when_covered: Probability of the class with the brightest tenth of `map` covered by the
            image's mean; None where nothing speaks for it.
        when_covered_elsewhere: The same, with the covered shape moved elsewhere; mean.
    """

    map: Map
    grid: tuple[int, ...]
    when_covered: float | None
    when_covered_elsewhere: float | None


@dataclass(frozen=True)
class ClassExplanation:
    """One class of one image.

    Attributes:
        name: The class.
        probability: What the model says.
        evidence: For each encoder: one, or one a view where each view has its own.
    """

    name: str
    probability: float
    evidence: tuple[Evidence, ...]


def explain_classes(
    model: nn.Module, task: Classification, inputs: Inputs, num_classes: int, least: float = 0.0
) -> tuple[dict[str, float], list[ClassExplanation]]:
    """Return each class' probability, and for the most probable ones what speaks for them.

    Args:
        model: In evaluation mode.
        task: What its outputs mean.
        inputs: What the model is called with, each [1, ...].
        num_classes: Most classes that are explained, most probable first.
        least: No other class than the first is explained below this probability.
    """
    probabilities_L = _probabilities(model, task, inputs)
    first, *others = np.argsort(-probabilities_L, kind="stable")[:num_classes].tolist()
    chosen = [first, *(index for index in others if probabilities_L[index] >= least)]
    explained = [
        ClassExplanation(
            name=task.classes[index],
            probability=float(probabilities_L[index]),
            evidence=tuple(_evidence(model, task, inputs, index)),
        )
        for index in chosen
    ]
    return dict(zip(task.classes, probabilities_L.tolist(), strict=True)), explained


def grad_cam(
    model: nn.Module, inputs: Inputs, score: Callable[[Tensor], Tensor], index: int
) -> list[tuple[Map, tuple[int, ...]]]:
    """Return for each encoder what in its last grid raises a score.

    Args:
        model: A classifier, or a `Fusion` of several.
        inputs: What it is called with, each [1, ...].
        score: From the model's outputs to one number a class, [1, L].
        index: The class.

    Returns:
        The map in the image's size, *S, 0 to 1, and the cells of the grid.
    """
    # Asking for the image's gradient makes features have one in a frozen network as well.
    images = inputs[0].detach().clone().requires_grad_()
    maps = []
    with _tapped(model) as taps, torch.enable_grad():
        scorer = _Scorer(model, taps, inputs[1:], score)
        for number in range(len(taps)):
            cam = _place_by_place(scorer, f"taps.{number}")
            values = cam(images, class_idx=index)[0, 0].detach().float().numpy()
            grid = tuple(cam.nn_module.activations[f"taps.{number}"].shape[2:])
            maps.append((values, grid))
    model.zero_grad(set_to_none=True)
    return maps


def _place_by_place(scorer: nn.Module, layer: str) -> Any:
    """Return MONAI's Grad-CAM with each place of the grid weighed by its own gradient."""
    # MONAI takes seconds to import.
    from monai.visualize import GradCAM

    class PlaceByPlace(GradCAM):  # type: ignore[misc] # MONAI ships no types
        def compute_map(
            self,
            x: Tensor,
            class_idx: int | None = None,
            retain_graph: bool = False,
            layer_idx: int = -1,
        ) -> Tensor:
            _, activations, gradients = self.nn_module(
                x, class_idx=class_idx, retain_graph=retain_graph
            )
            product: Tensor = activations[layer_idx] * gradients[layer_idx]
            return product.sum(dim=1, keepdim=True).relu()

    return PlaceByPlace(scorer, layer, postprocessing=_to_one)


class _Scorer(nn.Module):
    """From an image to one number a class, with the features in reach of MONAI's hooks."""

    def __init__(
        self,
        model: nn.Module,
        taps: nn.ModuleList,
        extras: Inputs,
        score: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.model, self.taps = model, taps
        self._extras, self._score = extras, score

    def forward(self, images: Tensor) -> Tensor:
        """Return scores [1, L]."""
        return self._score(self.model(images, *self._extras))


@contextmanager
def _tapped(model: nn.Module) -> Iterator[nn.ModuleList]:
    """Lead each encoder's last feature map through a module of its own, where hooks can see it."""
    encoders = list(model.encoders) if isinstance(model, Fusion) else [model]
    taps = nn.ModuleList(nn.Identity() for _ in encoders)
    for encoder, tap in zip(encoders, taps, strict=True):
        # On the object, not the class: it goes before the method and can be taken away again.
        encoder.__dict__["grid"] = _through(tap, cast(Encoder, encoder).grid)
    try:
        yield taps
    finally:
        for encoder in encoders:
            del encoder.__dict__["grid"]


def _through(tap: nn.Module, grid: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def tapped(images: Tensor) -> Tensor:
        features: Tensor = tap(grid(images))
        return features

    return tapped


def _to_one(values: Tensor) -> Tensor:
    """Scale so that the largest is 1. MONAI's own turns bright and dark around."""
    largest = values.amax()
    return values / largest if largest > 0 else values


def class_scores(task: Classification) -> Callable[[Tensor], Tensor]:
    """Return what turns outputs into the numbers whose gradients are taken, one a class.

    A finding's output as it is. A class' output over the mean of all, since softmax sees
    differences only: with all outputs negative, nothing would seem to speak for any class. Grades
    have no output of their own, but thresholds between them: the logarithm of a grade's
    probability.
    """
    if task.mode == "multilabel":
        return lambda outputs: outputs
    if task.mode == "multiclass":
        return lambda outputs: outputs - outputs.mean(dim=1, keepdim=True)
    return lambda outputs: task.probabilities(outputs).clamp(min=_LOWEST).log()


def _evidence(
    model: nn.Module, task: Classification, inputs: Inputs, index: int
) -> Iterator[Evidence]:
    maps = grad_cam(model, inputs, class_scores(task), index)
    channels = inputs[0].shape[1] // len(maps)
    for number, (values, grid) in enumerate(maps):
        if not values.any():
            yield Evidence(values, grid, None, None)
            continue
        # An encoder of one view says something about that view only.
        own = slice(number * channels, (number + 1) * channels)
        shape = brightest(values, COVERED)

        def covered(places: npt.NDArray[np.bool_], own: slice = own, values: Map = values) -> float:
            images = cover(inputs[0], own, places)
            return float(_probabilities(model, task, (images, *inputs[1:]))[index])

        elsewhere = [covered(moved) for moved in moved_shapes(shape)]
        yield Evidence(values, grid, covered(shape), float(np.mean(elsewhere)))


def brightest(values: Map, share: float) -> npt.NDArray[np.bool_]:
    """Return where the brightest `share` of all pixels is; fewer where the rest is zero."""
    count = max(1, round(share * values.size))
    order = np.argsort(-values, axis=None, kind="stable")[:count]
    chosen = np.zeros(values.size, dtype=bool)
    chosen[order] = True
    return chosen.reshape(values.shape) & (values > 0)


def moved_shapes(shape: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.bool_]]:
    """Return the shape moved by thirds of the image, round its edges: the same size elsewhere."""
    steps = itertools.product(range(3), repeat=shape.ndim)
    moves = [[n * side // 3 for n, side in zip(s, shape.shape, strict=True)] for s in steps]
    axes = tuple(range(shape.ndim))
    return [np.roll(shape, move, axes) for move in moves[1 : _ELSEWHERE + 1]]


def cover(images: Tensor, channels: slice, places: npt.NDArray[np.bool_]) -> Tensor:
    """Return a copy of images [1, C, *S] with each channel's mean in `places` of `channels`."""
    covered = images.clone()
    part = covered[:, channels]
    means = part.mean(dim=tuple(range(2, part.dim())), keepdim=True)
    covered[:, channels] = torch.where(torch.from_numpy(places), means, part)
    return covered


def _probabilities(
    model: nn.Module, task: Classification, inputs: Sequence[Tensor]
) -> npt.NDArray[np.float64]:
    with torch.inference_mode():
        return task.predict(model, tuple(inputs))[0].numpy()
