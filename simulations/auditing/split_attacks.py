"""Split learning: how much of labels and images is in what a site sends at each step.

There is no noise that could be held to a claim: the findings are notes, with what an attacker gets
who does not look at all beside them. Images are the run's own, weights those that it ended with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from medfed.client.data.site_data import ImageSet
from medfed.common.trained_part import Array
from medfed.simulations.auditing.attacks.activations import (
    Seen,
    first_step,
    invert_activations,
    labels_of,
)
from medfed.simulations.auditing.attacks.inversion import psnr, ssim
from medfed.simulations.auditing.attacks.rates import Interval, clopper_pearson
from medfed.simulations.auditing.attacks.units import subset
from medfed.simulations.auditing.findings import Figure, Finding, Status, Table
from medfed.simulations.auditing.reconstruction_page import NAME, shown
from medfed.simulations.explaining.load import Trained
from medfed.simulations.reporting.drawing import draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


@dataclass(frozen=True)
class Budget:
    """How much is tried: images whose label is worked out, images inverted, steps of that."""

    labels: int
    pictures: int
    steps: int


BUDGETS = {"quick": Budget(64, 3, 500), "full": Budget(512, 6, 2000)}


@dataclass(frozen=True)
class Inverted:
    """One image, what was made of its activations, and what an attacker has who saw none."""

    truth: Tensor
    made: Tensor
    mean: Tensor


def attack_split(
    trained: Trained, images: ImageSet, budget: Budget, seed: int
) -> tuple[list[Finding], Table, Figure]:
    """Work out the labels of `images`, and invert the activations of the first of them.

    Args:
        trained: A run with split learning; its model's weights stay as they are.
        images: That it trained on, in an order by chance.
        budget: How much is tried.
        seed: Of first guesses.
    """
    model, study = trained.model, trained.study
    size = min(study.training.batch_size, len(images))
    # Whole batches: a BatchNorm cannot train on one image that is left over.
    starts = range(0, max(size, min(len(images), budget.labels)) // size * size, size)
    steps = [
        first_step(model, subset(images, np.arange(n, n + size)), trained.task, study)
        for n in starts
    ]
    mean = torch.cat([seen.images for seen in steps]).mean(dim=0)
    few = subset(images, np.arange(min(len(images), budget.pictures)))
    seen = first_step(model, few, trained.task, study)
    made = invert_activations(model, study, seen, steps=budget.steps, seed=seed)
    inverted = [Inverted(*pair, mean) for pair in zip(seen.images, made, strict=True)]
    findings = [
        _labels_finding(steps, _last_weight(model), study.task.mode),
        _pictures_finding(inverted, study.federation.front_stages or 1),
    ]
    caption = (
        "Split learning. Each row one image that was trained on: the image, what its activations "
        "give away, and the mean of all images, which takes no attack."
    )
    return findings, _table(inverted), Figure(caption, _figure(inverted))


def success(steps: Sequence[Seen], weight_KF: Array, mode: str) -> tuple[Interval, float]:
    """Return the share of labels that are worked out, and that of the most common answer.

    Of several labels an image, each counts.
    """
    truth = np.concatenate([seen.labels for seen in steps])
    found = np.concatenate([labels_of(seen.gradient, weight_KF, mode) for seen in steps])
    right = int((found == truth).sum())
    columns = truth.reshape(len(truth), -1).T
    most = sum(int(np.unique(column, return_counts=True)[1].max()) for column in columns)
    return clopper_pearson(right, truth.size), most / truth.size


def _labels_finding(steps: Sequence[Seen], weight_KF: Array, mode: str) -> Finding:
    share, baseline = success(steps, weight_KF, mode)
    weak = "" if share.low > baseline else " The attack is weak here, which proves little."
    return Finding(
        NAME,
        "labels from split gradients",
        Status.NOTE,
        f"From the gradients of a round's first step the server works out {share.value:.0%} of "
        f"labels (95 % interval {share.low:.0%} to {share.high:.0%}); who always names the most "
        f"common answer has {baseline:.0%}. It needs the last layer's weights, which it sends "
        f"itself, and nothing else: labels stay at a site only if the server does not look.{weak}",
        {"share": share.value, "low": share.low, "high": share.high, "baseline": baseline},
    )


def _pictures_finding(inverted: Sequence[Inverted], front_stages: int) -> Finding:
    numbers = {
        f"{name}_{unit}": float(
            np.mean([measure(getattr(one, name), one.truth) for one in inverted])
        )
        for name in ("made", "mean")
        for unit, measure in (("psnr_db", psnr), ("ssim", ssim))
    }
    near = numbers["made_ssim"] > numbers["mean_ssim"]
    weak = "" if near else " The attack is weak here, which proves little: others may do better."
    stages = "one stage" if front_stages == 1 else f"{front_stages} stages"
    return Finding(
        NAME,
        "images from split activations",
        Status.NOTE,
        f"From the activations that a front of {stages} sends in every step the server makes "
        f"pictures of {numbers['made_psnr_db']:.1f} dB and structural similarity "
        f"{numbers['made_ssim']:.2f}; the mean image, which takes no attack, comes to "
        f"{numbers['mean_psnr_db']:.1f} dB and {numbers['mean_ssim']:.2f}.{weak}",
        numbers,
    )


def _table(inverted: Sequence[Inverted]) -> Table:
    rows = [
        (number, name, round(psnr(image, one.truth), 1), round(ssim(image, one.truth), 2))
        for number, one in enumerate(inverted, start=1)
        for name, image in (("its activations", one.made), ("nothing: the mean image", one.mean))
    ]
    columns = ("Image", "Reconstructed from", "PSNR, dB", "SSIM")
    return Table("Split learning: reconstruction from activations", columns, tuple(rows))


def _last_weight(model: nn.Module) -> Array:
    [head] = cast("tuple[str, ...]", model.head)
    array: Array = model.get_parameter(f"{head}.weight").detach().numpy()
    return array


def _figure(inverted: Sequence[Inverted]) -> bytes:
    drawing = draw("split", "Reconstructions from activations.", lambda: _plot(inverted))
    assert drawing is not None
    return drawing.png


def _plot(inverted: Sequence[Inverted]) -> "Drawing":
    from matplotlib.figure import Figure as Drawing

    titles = ("Original", "From activations", "Mean image")
    figure = Drawing(figsize=(1.9 * len(titles), 2.0 * len(inverted) + 0.2))
    axes = figure.subplots(len(inverted), len(titles), squeeze=False)
    for one, cells in zip(inverted, axes, strict=True):
        for title, image, cell in zip(titles, (one.truth, one.made, one.mean), cells, strict=True):
            cell.imshow(shown(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            cell.set_axis_off()
            if one is inverted[0]:
                cell.set_title(title)
    return figure
