"""LiRA and RMIA where the best attack is known: each unit's signal shifts by `SHIFT` when it is in.

A unit's difficulty is far more spread than the shift, so a plain threshold is nearly at chance,
while an attack that knows the difficulty has TPR = Phi(SHIFT - z(1 - FPR)).
"""

import math

import numpy as np
import pytest
from scipy.stats import norm

from medfed.simulations.auditing.attacks.likelihood import (
    confidences,
    lira_scores,
    rmia_scores,
)
from medfed.simulations.auditing.attacks.rates import auc, operating_point

SHIFT = 2.0
UNITS = 20_000


def world(num_models: int, shift: float = SHIFT):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(4)
    difficulty_U = rng.normal(0, 10, UNITS)
    is_member_U = rng.random(UNITS) < 0.5
    half_RU = rng.random((num_models // 2, UNITS)) < 0.5
    on_RU = np.stack([half_RU, ~half_RU], axis=1).reshape(num_models, UNITS)
    target_U = difficulty_U + shift * is_member_U + rng.normal(0, 1, UNITS)
    references_RU = difficulty_U + shift * on_RU + rng.normal(0, 1, (num_models, UNITS))
    return target_U, references_RU, on_RU, is_member_U


def test_confidence_is_the_logit_of_the_true_class() -> None:
    for p in (1e-6, 0.2, 0.5, 0.999):
        assert confidences(np.array([-math.log(p)]))[0] == pytest.approx(math.log(p / (1 - p)))
    extremes = confidences(np.array([0.0, 1e-12, 800.0]))
    assert np.isfinite(extremes).all()
    assert (np.diff(extremes) <= 0).all()


def test_lira_with_many_references_reaches_the_best_attack() -> None:
    target, references, on, is_member = world(64)
    scores = lira_scores(target, references, on)
    for fpr in (0.01, 0.1):
        best = norm.cdf(SHIFT - norm.isf(fpr))
        got = operating_point(scores[is_member], scores[~is_member], fpr).tpr.value
        assert got == pytest.approx(best, abs=0.04)
    assert auc(target[is_member], target[~is_member]) < 0.6


def test_lira_score_is_the_log_likelihood_ratio() -> None:
    # Means 3 and 1, residuals of +-1 on 4 - 2 degrees of freedom: variance 2.
    references = np.array([[4.0], [0.0], [2.0], [2.0]])
    on = np.array([[True], [False], [True], [False]])
    for target in (0.0, 2.0, 5.0):
        log_in = norm.logpdf(target, 3, math.sqrt(2))
        log_out = norm.logpdf(target, 1, math.sqrt(2))
        [score] = lira_scores(np.array([target]), references, on)
        assert score == pytest.approx(log_in - log_out)


def test_lira_refuses_a_unit_that_every_reference_has_seen() -> None:
    with pytest.raises(ValueError, match="on either side"):
        lira_scores(np.zeros(2), np.zeros((4, 2)), np.ones((4, 2), dtype=bool))


def test_rmia_needs_few_references_and_beats_the_plain_threshold() -> None:
    target, references, _, is_member = world(4)
    scores = rmia_scores(target, references)
    area = auc(scores[is_member], scores[~is_member])
    # With the difficulty known exactly it would be Phi(SHIFT / sqrt 2) = 0.921.
    assert 0.8 < area < norm.cdf(SHIFT / math.sqrt(2))
    assert auc(target[is_member], target[~is_member]) < 0.6


def test_rmia_score_is_the_share_of_units_whose_ratio_is_reached() -> None:
    target = np.log(np.array([0.5, 0.4, 0.9]))
    references = np.log(np.array([[0.1, 0.4, 0.9], [0.4, 0.4, 0.3]]))
    # Ratios 0.5 / 0.25, 0.4 / 0.4, 0.9 / 0.6.
    np.testing.assert_allclose(rmia_scores(target, references), [1.0, 0.0, 0.5])


@pytest.mark.parametrize("attack", ["lira", "rmia"])
def test_attack_is_at_chance_where_being_in_changes_nothing(attack: str) -> None:
    target, references, on, is_member = world(8, shift=0.0)
    scores = lira_scores(target, references, on) if attack == "lira" else None
    scores = rmia_scores(target, references) if scores is None else scores
    assert abs(auc(scores[is_member], scores[~is_member]) - 0.5) < 0.015
