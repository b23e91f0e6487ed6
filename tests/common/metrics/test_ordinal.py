"""Grades in order: kappa and grade error are exact on sums and equal scikit-learn's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, mean_absolute_error

from medfed.common.metrics import classification_sums, ordinal_metrics, quadratic_kappa
from medfed.common.metrics.ordinal import median_grades


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(2, 80))
@settings(max_examples=60, deadline=None)
def test_kappa_and_error_from_the_matrix_agree_with_sklearn(
    seed: int, num_grades: int, size: int
) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, num_grades, size)
    predicted = np.clip(truth + rng.integers(-2, 3, size), 0, num_grades - 1)
    matrix = np.zeros((num_grades, num_grades), dtype=np.int64)
    np.add.at(matrix, (truth, predicted), 1)
    figures = ordinal_metrics(matrix)
    assert figures["grade_error"] == pytest.approx(mean_absolute_error(truth, predicted))
    if len({*truth.tolist(), *predicted.tolist()}) == 1:
        assert "kappa" not in figures
        return
    expected = cohen_kappa_score(truth, predicted, weights="quadratic", labels=range(num_grades))
    assert figures["kappa"] == pytest.approx(expected, abs=1e-12)


def test_kappa_is_one_for_agreement_zero_for_chance_and_minus_one_for_the_reverse() -> None:
    assert quadratic_kappa(np.diag([3, 4, 5])) == 1.0
    # Rows and columns independent: what chance gives, exactly.
    assert quadratic_kappa(np.outer([1, 2, 3], [2, 2, 2])) == 0.0
    assert quadratic_kappa(np.array([[0, 5], [5, 0]])) == -1.0


def test_kappa_stays_exact_beyond_the_range_of_int64_products() -> None:
    small = np.array([[5, 1, 0], [2, 7, 3], [0, 1, 4]])
    assert quadratic_kappa(small * 2**40) == quadratic_kappa(small)


def test_grade_error_is_the_mean_distance() -> None:
    # One image two grades off, one one grade off, two right.
    assert ordinal_metrics(np.array([[1, 0, 1], [0, 0, 0], [0, 1, 1]]))["grade_error"] == 0.75


def test_empty_matrix_has_no_figures() -> None:
    assert ordinal_metrics(np.zeros((3, 3), dtype=np.int64)) == {}


def test_predicted_grade_is_the_median_not_the_most_probable() -> None:
    probabilities = np.array([[0.4, 0.3, 0.3], [0.5, 0.0, 0.5], [0.2, 0.2, 0.6], [1.0, 0.0, 0.0]])
    assert median_grades(probabilities).tolist() == [1, 2, 2, 0]
    sums = classification_sums(probabilities, np.array([1, 2, 2, 0]), np.zeros(4), "ordinal")
    assert sums["matrix"].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 2]]
    assert int(sums["correct"]) == 4
