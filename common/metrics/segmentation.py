"""Segmentation metrics as integer sums; a federated figure equals the pooled one exactly.

Where a structure is missing from the truth or from the prediction of an image:

| truth   | prediction | dice | dice_present | hd95        | surface_dice | counted as   |
|---------|------------|------|--------------|-------------|--------------|--------------|
| present | present    | 0..1 | 0..1         | a distance  | 0..1         | num_hd95     |
| present | empty      | 0    | 0            | left out    | 0            | missed       |
| empty   | present    | 0    | left out     | left out    | 0            | false_alarms |
| empty   | empty      | 1    | left out     | left out    | left out     |              |

Dice 1 for both empty is MONAI's `ignore_empty=False`: to find nothing where nothing is, is right.
It lifts `dice` in sets with many empty masks; `dice_present` is the mean over images that have the
structure. A distance to nothing is undefined, and any number put in its place would be a penalty
of our own making; so hd95 is a mean over fewer images, and the counts beside it say how many are
missing: a model that misses hard cases can have a small hd95.

Shapes: N images, L structures, *S spatial.
"""

import numpy as np
import numpy.typing as npt

from medfed.common.metrics.classification import confusion_tables
from medfed.common.metrics.sums import (
    FIXED_POINT,
    Families,
    MetricSums,
    fixed,
    holds,
    mean_of_defined,
    only_defined,
    ratio,
)
from medfed.common.metrics.surfaces import hd95, surface_dice, surface_distances

Masks = npt.NDArray[np.bool_]

PER_STRUCTURE = (
    "dice",
    "dice_present",
    "iou",
    "dice_pooled",
    "hd95",
    "surface_dice",
    "sensitivity",
    "precision",
    "volume_error",
    "detection_sensitivity",
    "detection_specificity",
)
"""Figures of each structure whose mean over the structures is a figure of its own."""

SEGMENTATION_FAMILIES: Families = {
    "loss": ("loss",),
    "overlap": ("dice", "dice_present", "pixels", "volume", "detection"),
    "surfaces": ("hd95", "surface_dice", "detection"),
}
"""What a site releases together. Surfaces are counted in images of the detection table."""


def segmentation_shapes(num_structures: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array of `segmentation_sums`, for screening what a site sent."""
    return {
        "count": (),
        "loss": (),
        "dice": (num_structures,),
        "dice_present": (num_structures,),
        "hd95": (num_structures,),
        "surface_dice": (num_structures,),
        "pixels": (num_structures, 3),
        "volume": (num_structures, 2),
        "detection": (num_structures, 2, 2),
    }


def segmentation_sums(
    predicted_NL: Masks,
    truth_NL: Masks,
    losses_N: npt.NDArray[np.float64],
    *,
    spacing: float,
    tolerance: float,
) -> MetricSums:
    """Return the sums over N images: the arrays that `segmentation_shapes` names.

    `pixels` holds those in both, in the prediction and in the truth; `volume` the pixels by which
    predictions were too large and too small in all; `detection` a table of images (truth,
    prediction) by whether they hold the structure. The distance maps of one structure of one
    image are held at a time.

    Args:
        predicted_NL: [N, L, *S].
        truth_NL: [N, L, *S].
        losses_N: Loss of each image; clipped to 2**20.
        spacing: Distance of neighbouring pixels; the unit of hd95 and of `tolerance`.
        tolerance: Surface Dice counts surfaces at most this far apart as equal.
    """
    spatial = tuple(range(2, truth_NL.ndim))
    pixels_NL3 = np.stack(
        [part.sum(axis=spatial) for part in (predicted_NL & truth_NL, predicted_NL, truth_NL)],
        axis=2,
    ).astype(np.int64)
    both_NL, in_prediction_NL, in_truth_NL = np.moveaxis(pixels_NL3, 2, 0)
    dice_NL = np.ones(both_NL.shape)
    np.divide(2 * both_NL, in_prediction_NL + in_truth_NL, out=dice_NL,
              where=in_prediction_NL + in_truth_NL > 0)  # fmt: skip
    excess_NL = in_prediction_NL - in_truth_NL
    distances, agreement = _surfaces(predicted_NL, truth_NL, spacing, tolerance)
    return {
        "count": np.array(len(losses_N), dtype=np.int64),
        "loss": np.array(fixed(losses_N).sum(), dtype=np.int64),
        "dice": fixed(dice_NL).sum(axis=0),
        "dice_present": (fixed(dice_NL) * (in_truth_NL > 0)).sum(axis=0),
        "hd95": distances,
        "surface_dice": agreement,
        "pixels": pixels_NL3.sum(axis=0),
        "volume": np.stack(
            [np.maximum(sign * excess_NL, 0).sum(axis=0) for sign in (1, -1)], axis=1
        ),
        "detection": confusion_tables(in_truth_NL > 0, in_prediction_NL > 0),
    }


def _surfaces(
    predicted_NL: Masks, truth_NL: Masks, spacing: float, tolerance: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the sums of hd95 and surface Dice, [L] each, over images that have both surfaces."""
    sums_2L = np.zeros((2, truth_NL.shape[1]), dtype=np.int64)
    for predicted_L, truth_L in zip(predicted_NL, truth_NL, strict=True):
        for label, (predicted, truth) in enumerate(zip(predicted_L, truth_L, strict=True)):
            if predicted.any() and truth.any():
                pair = surface_distances(predicted, truth, spacing)
                sums_2L[:, label] += fixed(np.array([hd95(pair), surface_dice(pair, tolerance)]))
    return sums_2L[0], sums_2L[1]


def segmentation_metrics(sums: MetricSums, structures: tuple[str, ...]) -> dict[str, float]:
    """Return every figure that `sums` allow; one that is undefined, or whose sums were not
    released, is left out.

    Keys: num_images, loss; each of `PER_STRUCTURE` as a mean over the structures for which it is
    defined, and for each structure as <figure>/<structure>; num_hd95, missed and false_alarms
    (images times structures), and for each structure.

    dice and dice_present are means over images, as are hd95 and surface_dice; iou, dice_pooled,
    sensitivity, precision and volume_error come from the pixels of all images together, so large
    structures weigh more. volume_error is the sum over images of the absolute error, over the true
    volume. detection_* say whether images that hold a structure are told from those that do not.
    """
    count = int(sums["count"])
    if count == 0:
        return {"num_images": 0.0}
    figures: dict[str, float | None] = {"num_images": float(count)}
    if "loss" in sums:
        figures["loss"] = int(sums["loss"]) / FIXED_POINT / count
    parts = [_structure_figures(sums, index, count) for index in range(len(structures))]
    for key in PER_STRUCTURE:
        figures[key] = mean_of_defined(part.get(key) for part in parts)
    for key in ("num_hd95", "missed", "false_alarms"):
        if all(key in part for part in parts):
            figures[key] = sum(part[key] or 0.0 for part in parts)
    for name, part in zip(structures, parts, strict=True):
        figures |= {f"{key}/{name}": value for key, value in part.items()}
    return only_defined(figures)


def _structure_figures(sums: MetricSums, index: int, count: int) -> dict[str, float | None]:
    figures: dict[str, float | None] = {}
    if holds(sums, SEGMENTATION_FAMILIES["overlap"]):
        figures |= _overlap(sums, index, count)
    if holds(sums, SEGMENTATION_FAMILIES["surfaces"]):
        (_, false_alarms), (missed, found) = sums["detection"][index].tolist()
        figures |= {
            "hd95": _mean(sums, "hd95", index, found),
            "surface_dice": _mean(sums, "surface_dice", index, found + missed + false_alarms),
            "num_hd95": float(found),
        }
    return figures


def _overlap(sums: MetricSums, index: int, count: int) -> dict[str, float | None]:
    both, predicted, truth = sums["pixels"][index].tolist()
    too_large, too_small = sums["volume"][index].tolist()
    (neither, false_alarms), (missed, found) = sums["detection"][index].tolist()
    return {
        "dice": _mean(sums, "dice", index, count),
        "dice_present": _mean(sums, "dice_present", index, missed + found),
        "iou": ratio(both, predicted + truth - both),
        "dice_pooled": ratio(2 * both, predicted + truth),
        "sensitivity": ratio(both, truth),
        "precision": ratio(both, predicted),
        "volume_error": ratio(too_large + too_small, truth),
        "detection_sensitivity": ratio(found, found + missed),
        "detection_specificity": ratio(neither, neither + false_alarms),
        "missed": float(missed),
        "false_alarms": float(false_alarms),
    }


def _mean(sums: MetricSums, name: str, index: int, over: int) -> float | None:
    return ratio(int(sums[name][index]), over * FIXED_POINT)
