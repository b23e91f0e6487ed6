"""Metrics as sums: the federated figure equals the pooled one, and both the textbook's."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from medfed.common.metrics import (
    Mode,
    add_sums,
    classification_metrics,
    classification_sums,
    sum_shapes,
)

CLASSES = ("a", "b", "c")


def random_scores(seed: int, size: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, size)
    logits = rng.normal(0, 1.5, (size, 3)) + 1.2 * np.eye(3)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities, labels, -np.log(probabilities[np.arange(size), labels])


@pytest.mark.parametrize("seed", range(5))
def test_multiclass_metrics_agree_with_sklearn(seed: int) -> None:
    probabilities, labels, losses = random_scores(seed)
    figures = classification_metrics(
        classification_sums(probabilities, labels, losses, "multiclass"), CLASSES
    )
    predicted = probabilities.argmax(axis=1)
    assert figures["accuracy"] == sk.accuracy_score(labels, predicted)
    assert figures["balanced_accuracy"] == pytest.approx(
        sk.balanced_accuracy_score(labels, predicted)
    )
    assert figures["loss"] == pytest.approx(losses.mean(), abs=1e-6)
    # Binned scores: within the tolerance that the module states.
    auroc = np.mean([sk.roc_auc_score(labels == k, probabilities[:, k]) for k in range(3)])
    assert figures["auroc"] == pytest.approx(auroc, abs=2e-3)
    precision = np.mean(
        [sk.average_precision_score(labels == k, probabilities[:, k]) for k in range(3)]
    )
    assert figures["average_precision"] == pytest.approx(precision, abs=5e-3)
    sums = classification_sums(probabilities, labels, losses, "multiclass")
    assert sums["matrix"].tolist() == sk.confusion_matrix(labels, predicted).tolist()
    assert figures["sensitivity/b"] == pytest.approx(sk.recall_score(labels == 1, predicted == 1))


def test_multilabel_metrics_agree_with_sklearn() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((500, 3)) < 0.3).astype(np.uint8)
    probabilities = 1 / (1 + np.exp(-(rng.normal(0, 1, (500, 3)) + 2 * labels - 1)))
    figures = classification_metrics(
        classification_sums(probabilities, labels, np.zeros(500), "multilabel"), CLASSES
    )
    assert figures["accuracy"] == sk.accuracy_score(labels, probabilities >= 0.5)
    assert figures["auroc"] == pytest.approx(sk.roc_auc_score(labels, probabilities), abs=2e-3)


def test_calibration_error_is_zero_for_a_calibrated_and_large_for_an_overconfident_model() -> None:
    # 100 images at confidence 0.8, 80 of them right: exactly calibrated.
    probabilities = np.tile([0.8, 0.2], (100, 1))
    labels = np.array([0] * 80 + [1] * 20)
    sums = classification_sums(probabilities, labels, np.zeros(100), "multiclass")
    assert classification_metrics(sums, ("a", "b"))["calibration_error"] < 1e-6
    flipped = classification_sums(probabilities, 1 - labels, np.zeros(100), "multiclass")
    assert classification_metrics(flipped, ("a", "b"))["calibration_error"] == pytest.approx(0.6)


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 399), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_sums_of_sites_in_any_order_equal_the_pooled_sums(seed: int, cuts: list[int]) -> None:
    probabilities, labels, losses = random_scores(seed)
    pooled = classification_sums(probabilities, labels, losses, "multiclass")
    edges = [0, *sorted(set(cuts)), 400]
    parts = [
        classification_sums(probabilities[a:b], labels[a:b], losses[a:b], "multiclass")
        for a, b in itertools.pairwise(edges)
    ]
    for order in (parts, parts[::-1]):
        total = add_sums(order)
        assert {n: v.tolist() for n, v in total.items()} == {
            n: v.tolist() for n, v in pooled.items()
        }
    assert classification_metrics(add_sums(parts), CLASSES) == classification_metrics(
        pooled, CLASSES
    )


@pytest.mark.parametrize("mode", ["multiclass", "ordinal"])
def test_sum_shapes_are_those_of_the_sums(mode: Mode) -> None:
    sums = classification_sums(*random_scores(0), mode)
    assert {name: array.shape for name, array in sums.items()} == sum_shapes(3, mode)
    assert all(array.dtype == np.int64 for array in sums.values())


def test_sums_of_a_model_that_gives_nan_are_still_whole_numbers_from_zero() -> None:
    for mode, labels in (("multiclass", np.array([0, 1])), ("multilabel", np.eye(2, dtype="u1"))):
        sums = classification_sums(np.full((2, 2), np.nan), labels, np.full(2, np.nan), mode)
        assert all((array >= 0).all() for array in sums.values())


def test_metrics_leave_out_what_is_undefined() -> None:
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4]])
    sums = classification_sums(probabilities, np.array([0, 0]), np.zeros(2), "multiclass")
    figures = classification_metrics(sums, ("a", "b"))
    assert "auroc" not in figures
    assert "sensitivity/b" not in figures
    assert figures["sensitivity/a"] == 1.0


def test_extreme_scores_and_nan_losses_stay_finite() -> None:
    probabilities = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    losses = np.array([0.0, np.inf, np.nan])
    sums = classification_sums(probabilities, np.array([0, 1, 1]), losses, "multiclass")
    assert all(np.isfinite(v) for v in classification_metrics(sums, ("a", "b")).values())
