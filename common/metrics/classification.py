"""Classification metrics as integer sums, so that a federated figure equals the pooled one exactly.

A site sends counts and score histograms; adding the sites' arrays gives what the pooled data would
have given, bit for bit, in any order. Real-valued sums (loss, confidence) are fixed-point integers.

AUROC and average precision come from one-vs-rest histograms over the log-odds of the score
(1,024 bins over -16..16): two scores tie only where their odds differ by less than 3.2 %, so the
figure lies within half the share of such ties of the exact one. That is 0.001 on hundreds of
images, more where they are few or a model that has learned little gives all about the same score.

Shapes: N images, L classes, B bins.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

from medfed.common.metrics.ordinal import median_grades
from medfed.common.metrics.sums import FIXED_POINT, Families, MetricSums, fixed, holds

Mode = Literal["multiclass", "multilabel", "ordinal"]

NUM_BINS = 1024
LOG_ODDS_RANGE = 16.0
NUM_CALIBRATION_BINS = 15

CLASSIFICATION_FAMILIES: Families = {
    "loss": ("loss",),
    "tables": ("confusion", "correct"),
    "scores": ("scores",),
    "calibration": ("calibration",),
}
"""What a site releases together; where classes exclude one another, `matrix` is of the tables."""


def sum_shapes(num_classes: int, mode: Mode) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array of `classification_sums`, for screening what a site sent."""
    matrix = {} if mode == "multilabel" else {"matrix": (num_classes, num_classes)}
    return {
        **matrix,
        "count": (),
        "loss": (),
        "confusion": (num_classes, 2, 2),
        "correct": (),
        "scores": (num_classes, 2, NUM_BINS),
        "calibration": (3, NUM_CALIBRATION_BINS),
    }


def classification_sums(
    probabilities_NL: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64] | npt.NDArray[np.uint8],
    losses_N: npt.NDArray[np.float64],
    mode: Mode,
) -> MetricSums:
    """Return the sums over N images: the arrays that `sum_shapes` names.

    `confusion` holds a table (truth, prediction) for each class against the rest; `matrix`, where
    classes exclude one another, the images of each true class (rows) by predicted class. The
    predicted class is the most probable one; of grades, the median.

    Args:
        probabilities_NL: Of each class, 0..1; rows sum to 1 unless classes may occur together.
        labels: 0/1 [N, L] (multilabel), otherwise class indices [N].
        losses_N: Loss of each image; clipped to 2**20.
        mode: Whether classes exclude one another, and whether they have an order.
    """
    num_images, num_classes = probabilities_NL.shape
    matrix = {}
    if mode == "multilabel":
        truth_NL = labels.astype(bool)
        predicted_NL = probabilities_NL >= 0.5
        hits_NL = truth_NL == predicted_NL
        confidence = np.where(predicted_NL, probabilities_NL, 1 - probabilities_NL).ravel()
        right = hits_NL.ravel()
        correct = int(hits_NL.all(axis=1).sum())
    else:
        grades = mode == "ordinal"
        chosen_N = median_grades(probabilities_NL) if grades else probabilities_NL.argmax(axis=1)
        truth_NL = _one_hot(labels, num_classes)
        predicted_NL = _one_hot(chosen_N, num_classes)
        confidence = probabilities_NL[np.arange(num_images), chosen_N]
        right = np.asarray((truth_NL & predicted_NL).any(axis=1))
        correct = int(right.sum())
        matrix["matrix"] = truth_NL.T.astype(np.int64) @ predicted_NL.astype(np.int64)
    return {
        **matrix,
        "count": np.array(num_images, dtype=np.int64),
        "loss": np.array(fixed(losses_N).sum(), dtype=np.int64),
        "confusion": confusion_tables(truth_NL, predicted_NL),
        "correct": np.array(correct, dtype=np.int64),
        "scores": _score_histograms(probabilities_NL, truth_NL),
        "calibration": _calibration(confidence, right),
    }


def _one_hot(
    classes_N: npt.NDArray[np.int64] | npt.NDArray[np.uint8], num_classes: int
) -> npt.NDArray[np.bool_]:
    table_NL = np.zeros((len(classes_N), num_classes), dtype=bool)
    table_NL[np.arange(len(classes_N)), classes_N] = True
    return table_NL


def classification_metrics(sums: MetricSums, classes: tuple[str, ...]) -> dict[str, float]:
    """Return every figure that `sums` allow; one undefined for lack of a class, or of sums that
    were not released, is left out.

    Keys: num_images, loss, accuracy, balanced_accuracy, auroc, average_precision (macro averages
    over the classes that have both positives and negatives), calibration_error, and for each class
    auroc/<class>, sensitivity/<class>, specificity/<class>.
    """
    count = int(sums["count"])
    if count == 0:
        return {"num_images": 0.0}
    figures = {"num_images": float(count)}
    if "loss" in sums:
        figures["loss"] = int(sums["loss"]) / FIXED_POINT / count
    if "calibration" in sums:
        figures["calibration_error"] = _calibration_error(sums["calibration"])
    if "scores" in sums:
        figures |= _areas(sums["scores"], classes)
    if holds(sums, CLASSIFICATION_FAMILIES["tables"]):
        figures["accuracy"] = int(sums["correct"]) / count
        figures |= _sensitivities(sums["confusion"], classes)
    return figures


def _areas(scores_L2B: npt.NDArray[np.int64], classes: tuple[str, ...]) -> Mapping[str, float]:
    curves = {name: _curves(scores_L2B[i]) for i, name in enumerate(classes)}
    defined = {name: pair for name, pair in curves.items() if pair is not None}
    figures: dict[str, float] = {}
    if defined:
        figures["auroc"] = float(np.mean([area for area, _ in defined.values()]))
        figures["average_precision"] = float(np.mean([ap for _, ap in defined.values()]))
    return figures | {f"auroc/{name}": area for name, (area, _) in defined.items()}


def confusion_tables(
    truth_NL: npt.NDArray[np.bool_], predicted_NL: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """[L, 2, 2]: for each class, counts by (truth, prediction)."""
    table = np.zeros((truth_NL.shape[1], 2, 2), dtype=np.int64)
    for truth in (0, 1):
        for predicted in (0, 1):
            chosen = (truth_NL == bool(truth)) & (predicted_NL == bool(predicted))
            table[:, truth, predicted] = chosen.sum(axis=0)
    return table


def _score_histograms(
    probabilities_NL: npt.NDArray[np.float64], truth_NL: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """[L, 2, B]: for each class, histograms of the score where it is absent and present."""
    tiny = np.finfo(np.float64).tiny
    log_odds = np.log(np.maximum(probabilities_NL, tiny)) - np.log(
        np.maximum(1 - probabilities_NL, tiny)
    )
    position = (log_odds + LOG_ODDS_RANGE) / (2 * LOG_ODDS_RANGE) * NUM_BINS
    bins_NL = np.clip(np.nan_to_num(position), 0, NUM_BINS - 1).astype(np.int64)
    table = np.zeros((truth_NL.shape[1], 2, NUM_BINS), dtype=np.int64)
    for label in range(truth_NL.shape[1]):
        np.add.at(table[label], (truth_NL[:, label].astype(np.int64), bins_NL[:, label]), 1)
    return table


def _calibration(
    confidence: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """[3, bins]: count, right predictions and fixed-point confidence in equal-width bins."""
    confidence = np.nan_to_num(confidence)
    bins = np.clip((confidence * NUM_CALIBRATION_BINS).astype(np.int64), 0, 14)
    table = np.zeros((3, NUM_CALIBRATION_BINS), dtype=np.int64)
    for row, values in enumerate((np.ones_like(bins), right.astype(np.int64), fixed(confidence))):
        np.add.at(table[row], bins, values)
    return table


def _calibration_error(table: npt.NDArray[np.int64]) -> float:
    """Expected calibration error (Naeini et al. 2015), 15 equal-width bins."""
    total = int(table[0].sum())
    gaps = np.abs(table[1] - table[2] / FIXED_POINT)
    return float(gaps.sum() / total) if total else 0.0


def _curves(histogram_2B: npt.NDArray[np.int64]) -> tuple[float, float] | None:
    """Return (AUROC, average precision), or None without both kinds of image."""
    negatives, positives = histogram_2B[0][::-1], histogram_2B[1][::-1]
    num_negatives, num_positives = int(negatives.sum()), int(positives.sum())
    if not num_negatives or not num_positives:
        return None
    above = np.cumsum(positives) - positives
    area = float(((above + positives / 2) * negatives).sum() / (num_negatives * num_positives))
    hits = np.cumsum(positives)
    flagged = hits + np.cumsum(negatives)
    filled = positives > 0
    precision = hits[filled] / flagged[filled]
    return area, float((precision * positives[filled]).sum() / num_positives)


def _sensitivities(
    confusion: npt.NDArray[np.int64], classes: tuple[str, ...]
) -> Mapping[str, float]:
    figures: dict[str, float] = {}
    recalls = []
    for index, name in enumerate(classes):
        (true_negative, false_positive), (false_negative, true_positive) = confusion[index].tolist()
        if true_positive + false_negative:
            figures[f"sensitivity/{name}"] = true_positive / (true_positive + false_negative)
            recalls.append(figures[f"sensitivity/{name}"])
        if true_negative + false_positive:
            figures[f"specificity/{name}"] = true_negative / (true_negative + false_positive)
    if recalls:
        figures["balanced_accuracy"] = float(np.mean(recalls))
    return figures
