"""What the page says of a segmentation."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from medfed.common.study import StudyConfig
from medfed.common.tasks import Segmentation
from medfed.simulations.explaining.load import Examination, Trained, model_inputs
from medfed.simulations.explaining.page import Content, Plate
from medfed.simulations.explaining.pictures import structure_colour
from medfed.simulations.explaining.plates import (
    as_seen,
    centre_of,
    contour_picture,
    highest_point,
    map_picture_at,
    plain_picture,
)
from medfed.simulations.explaining.segmentation import MaskExplanation, explain_mask, mirrored_axes
from medfed.simulations.reporting.tables import Table, figure, whole

# The smallest and the largest size that a structure may well have.
_SURE, _POSSIBLE = 0.9, 0.1


@dataclass(frozen=True)
class _Size:
    """How large a structure is, pixels or voxels.

    Attributes:
        size: As predicted.
        share: Of the image.
        sure: With a probability of 0.9 or more.
        possible: With a probability of 0.1 or more.
        entropy: Mean inside; None without any inside.
    """

    size: int
    share: float
    sure: int
    possible: int
    entropy: float | None


def about_masks(trained: Trained, task: Segmentation, examination: Examination) -> Content:
    """Explain the segmentation of one examination."""
    study = trained.study
    images = model_inputs(examination, study)[0]
    explained = explain_mask(
        trained.model,
        task,
        images,
        mirrored_axes(study),
        exclusive=study.task.mode == "multiclass" and len(task.structures) > 1,
    )
    sizes = [_size(explained, index) for index in range(len(task.structures))]
    found = [name for name, size in zip(task.structures, sizes, strict=True) if size.size]
    return Content(
        title="Where, and how surely",
        headline="Found: " + ", ".join(found) if found else "No structure found",
        plates=_plates(examination, explained),
        scale=("sure", "any answer is as likely"),
        legend=tuple((structure_colour(i), name) for i, name in enumerate(task.structures)),
        shows=_shows(explained),
        hides=_hides(study),
        table=_table(task.structures, sizes, "Pixels" if images.dim() == 4 else "Voxels"),
        facts={
            "structures": {
                name: asdict(size) for name, size in zip(task.structures, sizes, strict=True)
            },
            "mean_entropy": float(explained.entropy.mean()),
            "mirrored_axes": [list(axes) for axes in explained.mirrored],
        },
    )


def _size(explained: MaskExplanation, index: int) -> _Size:
    probabilities, inside = explained.probabilities[index], explained.margins[index] >= 0
    return _Size(
        size=int(inside.sum()),
        share=float(inside.mean()),
        sure=int((probabilities >= _SURE).sum()),
        possible=int((probabilities >= _POSSIBLE).sum()),
        entropy=float(explained.entropy[inside].mean()) if inside.any() else None,
    )


def _plates(examination: Examination, explained: MaskExplanation) -> tuple[Plate, ...]:
    inside = np.asarray((explained.margins >= 0).any(axis=0))
    point = centre_of(inside) or highest_point(explained.entropy)
    return (
        Plate("image", plain_picture(examination, point), "The image", as_seen(examination)),
        Plate(
            "contour",
            contour_picture(examination, explained.margins, point),
            "Predicted contour",
            "The border of what the model takes for the structure.",
        ),
        Plate(
            "uncertainty",
            map_picture_at(examination, explained.entropy, point),
            "Uncertainty",
            f"Mean over the image: {figure(float(explained.entropy.mean()))}.",
        ),
    )


def _shows(explained: MaskExplanation) -> tuple[str, ...]:
    return (
        "Contour: inside it, the structure is the most probable answer.",
        f"Uncertainty: entropy of the mean prediction over {len(explained.mirrored)} versions of "
        "the image, itself and mirrored; 0 is sure, 1 is every answer equally likely.",
        "The table counts each structure at three levels of probability. If they lie far apart, "
        "its border is in doubt.",
    )


def _hides(study: StudyConfig) -> tuple[str, ...]:
    if study.augmentation.flip == "none":
        mirrors = (
            "Doubt about the image alone: the model was trained without mirrored images, and part "
            "of the uncertainty may be about the mirroring."
        )
    else:
        mirrors = "Doubt that mirroring does not bring out: blur, noise, another scanner."
    return (
        "Whether the model is right. It can be sure and wrong, above all on images unlike those "
        "it was trained on.",
        mirrors,
        "Anything that the study does not name: all else counts as background.",
    )


def _table(structures: Sequence[str], sizes: Sequence[_Size], unit: str) -> Table:
    columns = (
        "Structure",
        unit,
        "Of the image",
        f"Probability ≥ {_SURE:g}",
        f"Probability ≥ {_POSSIBLE:g}",
        "Mean uncertainty inside",
    )
    rows = tuple(
        (
            name,
            whole(size.size),
            f"{100 * size.share:.1f} %",
            whole(size.sure),
            whole(size.possible),
            figure(size.entropy, 2),
        )
        for name, size in zip(structures, sizes, strict=True)
    )
    return Table(columns, rows)
