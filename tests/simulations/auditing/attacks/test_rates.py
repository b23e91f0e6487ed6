"""Rates against closed forms and scikit-learn."""

import math

import numpy as np
import pytest
from scipy.stats import binom, norm
from sklearn.metrics import roc_auc_score, roc_curve

from medfed.simulations.auditing.attacks.rates import (
    OperatingPoint,
    advantage,
    allowed_identifications,
    allowed_tpr,
    auc,
    auc_interval,
    chance_advantage,
    clopper_pearson,
    operating_point,
    refutes,
    roc,
)


def two_sides(shift: float, members: int, held_out: int, seed: int):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    return rng.normal(shift, 1, members), rng.normal(0, 1, held_out)


@pytest.mark.parametrize("decimals", [8, 1, 0], ids=["distinct", "some ties", "many ties"])
def test_roc_and_area_are_those_of_scikit_learn(decimals: int) -> None:
    ins, outs = (np.round(side, decimals) for side in two_sides(0.7, 120, 75, seed=1))
    truth = np.repeat([1, 0], [120, 75])
    scores = np.concatenate([ins, outs])
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    own_fpr, own_tpr = roc(ins, outs)
    np.testing.assert_allclose(own_fpr, fpr, atol=1e-12)
    np.testing.assert_allclose(own_tpr, tpr, atol=1e-12)
    assert auc(ins, outs) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert advantage(ins, outs) == pytest.approx((tpr - fpr).max(), abs=1e-12)


def test_area_of_shifted_normals_is_the_closed_form_and_no_other() -> None:
    # Of N(d, 1) against N(0, 1) it is Phi(d / sqrt 2).
    interval = auc_interval(*two_sides(0.8, 3000, 3000, seed=3), np.random.default_rng(0))
    assert interval.holds(norm.cdf(0.8 / math.sqrt(2)))
    for wrong in (0.8 * 2 / 3, 0.8 * 3 / 2, 0.0):
        assert not interval.holds(norm.cdf(wrong / math.sqrt(2)))


def test_bootstrap_interval_covers_chance_about_as_often_as_it_says() -> None:
    covered = sum(
        auc_interval(
            *two_sides(0.0, 60, 40, seed=100 + trial), np.random.default_rng(trial), repeats=100
        ).holds(0.5)
        for trial in range(100)
    )
    # 95 % of 100, to 4 standard deviations; intervals of 80 % or of everything would fall out.
    assert 86 <= covered < 100


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [
        # Of none and of all the ends are 1 - (alpha/2)^(1/n) and (alpha/2)^(1/n).
        (0, 10, 0.0, 1 - 0.025**0.1),
        (10, 10, 0.025**0.1, 1.0),
        # Clopper and Pearson's own table, two digits; here as R's binom.test(7, 20) prints it.
        (7, 20, 0.1539092, 0.5921885),
    ],
)
def test_clopper_pearson_values(hits: int, trials: int, low: float, high: float) -> None:
    interval = clopper_pearson(hits, trials)
    assert interval.value == hits / trials
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-6)


def test_clopper_pearson_ends_are_where_the_tails_are_a_fortieth() -> None:
    interval = clopper_pearson(13, 50)
    assert binom.sf(12, 50, interval.low) == pytest.approx(0.025)
    assert binom.cdf(13, 50, interval.high) == pytest.approx(0.025)


def test_clopper_pearson_refuses_the_impossible() -> None:
    with pytest.raises(ValueError, match="got 3 of 2"):
        clopper_pearson(3, 2)
    with pytest.raises(ValueError, match="got 0 of 0"):
        clopper_pearson(0, 0)


def test_operating_point_accuses_at_most_the_stated_share() -> None:
    ins, outs = np.arange(50.0, 150.0), np.arange(100.0)
    point = operating_point(ins, outs, 0.1)
    # Ten of 0..99 lie above 89, and sixty of 50..149.
    assert (point.fpr.value, point.tpr.value) == (0.1, 0.6)
    assert operating_point(ins, outs, 0.001).fpr.value == 0.0
    assert operating_point(ins, outs, 0.001).tpr.value == 0.5
    assert operating_point(ins, outs, 1.0).tpr.value == 1.0
    # Ties at the threshold accuse nobody rather than too many.
    assert operating_point(np.ones(5), np.ones(5), 0.5).fpr.value == 0.0


def test_operating_point_of_shifted_normals_is_the_closed_form() -> None:
    ins, outs = two_sides(2.0, 20_000, 20_000, seed=3)
    for fpr in (0.01, 0.1):
        expected = norm.sf(norm.isf(fpr) - 2.0)
        got = operating_point(ins, outs, fpr).tpr.value
        assert got == pytest.approx(expected, abs=0.02)


def test_chance_advantage_is_exceeded_by_chance_once_in_twenty() -> None:
    limit = chance_advantage(150, 100)
    above = sum(advantage(*two_sides(0.0, 150, 100, seed=s)) > limit for s in range(400))
    assert 3 <= above <= 38
    assert advantage(*two_sides(1.0, 150, 100, seed=0)) > limit


def test_allowed_rate_is_the_privacy_region() -> None:
    assert allowed_tpr(0.01, 1.0, 0.001) == pytest.approx(math.e * 0.01 + 0.001)
    assert allowed_tpr(0.0, 1.0, 0.001) == pytest.approx(0.001)
    # Far up the other side binds: innocents must not be too well acquitted.
    assert allowed_tpr(0.9, 1.0, 0.0) == pytest.approx(1 - 0.1 / math.e)
    assert allowed_tpr(1.0, 1.0, 0.0) == 1.0
    assert allowed_tpr(0.3, 0.0, 0.0) == pytest.approx(0.3)
    assert allowed_tpr(0.0, math.inf, 0.0) == 1.0


def test_rates_refute_a_claim_that_is_too_small_and_no_true_one() -> None:
    # Laplace noise of scale 1/2 on a difference of 1 is private at epsilon 2, and at none below.
    rng = np.random.default_rng(5)
    ins, outs = rng.laplace(1.0, 0.5, 20_000), rng.laplace(0.0, 0.5, 20_000)
    points = [operating_point(ins, outs, fpr) for fpr in (0.001, 0.01, 0.05, 0.1)]
    assert not any(refutes(point, 2.0, 0.0) for point in points)
    assert any(refutes(point, 1.5, 0.0) for point in points)


def test_rates_of_a_few_units_refute_nothing_by_luck() -> None:
    few = OperatingPoint(0.01, clopper_pearson(0, 20), clopper_pearson(5, 20))
    assert not refutes(few, 1.0, 1e-5)
    many = OperatingPoint(0.01, clopper_pearson(0, 2000), clopper_pearson(500, 2000))
    assert refutes(many, 1.0, 1e-5)


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_identification_among_orthogonal_gradients_stays_below_what_is_allowed(
    noise: float,
) -> None:
    # The best answer for orthogonal gradients of length 1 is the largest inner product.
    rng = np.random.default_rng(6)
    right = (rng.normal(0, noise, (20_000, 8)) + np.eye(8)[0]).argmax(axis=1) == 0
    allowed = allowed_identifications(8, noise)
    assert right.mean() <= allowed
    # The bound says something: half the noise would break it.
    louder = (rng.normal(0, noise / 2, (20_000, 8)) + np.eye(8)[0]).argmax(axis=1) == 0
    assert louder.mean() > allowed
    assert allowed_identifications(8, 1e6) == pytest.approx(1 / 8, abs=1e-5)
