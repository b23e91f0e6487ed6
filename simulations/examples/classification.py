"""Examples of a classifier: what an image shows, and what the model says how surely.

Shapes: B images, L classes.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from medfed.client.batches import BatchLoader, Positions
from medfed.client.data.site_data import ImageSet
from medfed.common.metrics.ordinal import median_grades
from medfed.common.study import StudyConfig
from medfed.common.tasks import Classification
from medfed.simulations.examples.pictures import shown_image, view_pictures
from medfed.simulations.explaining.pictures import side_by_side


def classification_rows(
    model: nn.Module,
    task: Classification,
    loader: BatchLoader,
    data: ImageSet,
    chosen: Positions,
    study: StudyConfig,
) -> list[dict[str, Any]]:
    """Return one row an image: picture, note, truth, predicted, probabilities, correct."""
    probabilities_BL = task.predict(model, loader.evaluation_batch(chosen).inputs).numpy()
    predicted_BL = predicted_classes(probabilities_BL, task.mode)
    rows = []
    for row, position in enumerate(chosen.tolist()):
        truth_L = true_classes(data.labels[position], len(task.classes))
        shown = shown_image(data, position, study.data)
        rows.append(
            {
                "picture": side_by_side(view_pictures(shown, study.data)),
                "note": shown.note,
                "truth": names_of(task, truth_L),
                "predicted": names_of(task, predicted_BL[row]),
                "probabilities": {
                    name: round(float(value), 4)
                    for name, value in zip(task.classes, probabilities_BL[row], strict=True)
                },
                "correct": bool((predicted_BL[row] == truth_L).all()),
            }
        )
    return rows


def predicted_classes(
    probabilities_BL: npt.NDArray[np.float64], mode: str
) -> npt.NDArray[np.bool_]:
    """Return which classes the model names, [B, L], as its figures count them.

    The most probable one; every one at 0.5 or above (multilabel); the median grade (ordinal).
    """
    if mode == "multilabel":
        return probabilities_BL >= 0.5
    chosen_B = (
        median_grades(probabilities_BL) if mode == "ordinal" else probabilities_BL.argmax(axis=1)
    )
    named = np.zeros(probabilities_BL.shape, dtype=bool)
    named[np.arange(len(named)), chosen_B] = True
    return named


def true_classes(label: Any, num_classes: int) -> npt.NDArray[np.bool_]:
    """Return which classes an image's label names, [L]: an index, or 0/1 for each class."""
    if np.ndim(label):
        return np.asarray(label, dtype=bool)
    return np.asarray(np.arange(num_classes) == int(label))


def names_of(task: Classification, chosen_L: npt.NDArray[np.bool_]) -> list[str]:
    """Return the names of chosen classes."""
    return [task.classes[index] for index in np.flatnonzero(chosen_L)]
