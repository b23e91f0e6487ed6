"""Examples of a segmentation: the outlines of truth and prediction, and how well they agree.

Shapes: L structures, *S spatial; one image at a time.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from medfed.client.batches import BatchLoader, Positions
from medfed.client.data.site_data import ImageSet
from medfed.common.study import StudyConfig
from medfed.common.tasks import Segmentation
from medfed.simulations.examples.pictures import draw_outlines, shown_image, view_pictures
from medfed.simulations.explaining.pictures import side_by_side

Masks = npt.NDArray[np.bool_]


def segmentation_rows(
    model: nn.Module,
    task: Segmentation,
    loader: BatchLoader,
    data: ImageSet,
    chosen: Positions,
    study: StudyConfig,
) -> list[dict[str, Any]]:
    """Return one row an image: picture, note, dice of each structure, missed, false_alarms."""
    rows = []
    for position in chosen.tolist():
        # One at a time: images that keep their own size are not alike.
        batch = loader.evaluation_batch(np.array([position]))
        overlapping = study.task.mode == "multilabel"
        truth_L = planes(batch.targets[0].numpy(), len(task.structures), overlapping=overlapping)
        predicted_L = predicted_planes(
            task.predict(model, batch.inputs)[0].numpy(), overlapping=overlapping
        )
        where = truth_L if truth_L.any() else predicted_L
        shown = shown_image(data, position, study.data, where)
        views = view_pictures(shown, study.data)
        outlines = [
            [np.asarray(shown.plane(mask), dtype=bool) for mask in masks]
            for masks in (truth_L, predicted_L)
        ]
        rows.append(
            {
                "picture": side_by_side([draw_outlines(view, *outlines) for view in views]),
                "note": shown.note,
                **_agreement(task.structures, truth_L, predicted_L),
            }
        )
    return rows


def planes(mask: npt.NDArray[np.uint8], num_structures: int, *, overlapping: bool) -> Masks:
    """Return one plane a structure, [L, *S], of a mask *S."""
    numbers = range(num_structures)
    if overlapping:
        return np.stack([mask >> number & 1 == 1 for number in numbers])
    return np.stack([mask == number + 1 for number in numbers])


def predicted_planes(probabilities_L: npt.NDArray[np.floating], *, overlapping: bool) -> Masks:
    """Return where each structure is predicted, [L, *S], as the figures count it.

    Structures that exclude one another, and the background, compete; others need one half.
    """
    if overlapping or len(probabilities_L) == 1:
        return probabilities_L >= 0.5
    background = 1 - probabilities_L.sum(axis=0, keepdims=True)
    winner = np.concatenate([background, probabilities_L]).argmax(axis=0)
    return planes(winner.astype(np.uint8), len(probabilities_L), overlapping=False)


def _agreement(names: tuple[str, ...], truth_L: Masks, predicted_L: Masks) -> dict[str, Any]:
    dice, missed, false_alarms = {}, [], []
    for name, truth, predicted in zip(names, truth_L, predicted_L, strict=True):
        total = int(truth.sum()) + int(predicted.sum())
        # Neither there nor found is right: 1, as in the figures.
        dice[name] = round(2 * int((truth & predicted).sum()) / total, 4) if total else 1.0
        if truth.any() and not predicted.any():
            missed.append(name)
        if predicted.any() and not truth.any():
            false_alarms.append(name)
    present = [name for name, truth in zip(names, truth_L, strict=True) if truth.any()]
    return {"dice": dice, "present": present, "missed": missed, "false_alarms": false_alarms}
