"""Each method draws by the law that it names: the right parameter is accepted, wrong ones are not.

All seeds are fixed, so that a test either holds or does not. A bound of four standard errors is
wrong by chance once in 16,000 draws.

S sites, L classes; p = a site's share of one class.
"""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, chisquare

from medfed.client.data.store import Store
from medfed.common.study import PartitionSection
from medfed.common.study.simulation import LabelNoiseSection
from medfed.simulations.partition import Cohort, partition_patients
from medfed.simulations.partition.noise import wrong_labels

ERRORS = 4.0


def _counts_SL(labels: np.ndarray, *, seed: int, **section: object) -> np.ndarray:
    cohort = Cohort(
        patients=tuple(f"{index:08d}" for index in range(len(labels))),
        labels=labels,
        num_images=np.ones(len(labels), dtype=np.int64),
        columns={},
    )
    table = {"min_patients": 1, **section}
    partition = partition_patients(cohort, PartitionSection.model_validate(table), seed=seed)
    num_classes = int(labels.max()) + 1
    return np.stack(
        [
            np.bincount(labels[list(members)], minlength=num_classes)
            for members in partition.sites.values()
        ]
    )


def test_dirichlet_alpha_is_told_from_its_double_over_many_seeds() -> None:
    num_sites, num_classes, each = 5, 7, 200
    labels = np.repeat(np.arange(num_classes), each)
    squares = np.array(
        [
            np.sum(
                (_counts_SL(labels, seed=seed, method="dirichlet", num_sites=5, alpha=0.5) / each)
                ** 2,
                axis=0,
            ).mean()
            for seed in range(150)
        ]
    )
    # Whole patients add at most S / (4 each^2) on average.
    slack = ERRORS * squares.std(ddof=1) / np.sqrt(len(squares)) + num_sites / (4 * each**2)

    def expected(alpha: float) -> float:
        return (alpha + 1) / (num_sites * alpha + 1)

    assert abs(squares.mean() - expected(0.5)) < slack
    for wrong in (0.35, 1.0):
        assert abs(squares.mean() - expected(wrong)) > slack


def test_dirichlet_with_power_sizes_has_both_its_sizes_and_its_alpha() -> None:
    num_sites, num_classes, each, alpha = 4, 3000, 60, 0.5
    counts_SL = _counts_SL(
        np.repeat(np.arange(num_classes), each),
        seed=3,
        method="dirichlet",
        num_sites=num_sites,
        alpha=alpha,
        sizes="power",
        exponent=1.0,
    )
    shares_SL = counts_SL / each

    def weights(exponent: float) -> np.ndarray:
        sizes = np.arange(1.0, num_sites + 1) ** -exponent
        return sizes / sizes.sum()

    error_S = shares_SL.std(axis=1) / np.sqrt(num_classes)
    assert (np.abs(shares_SL.mean(axis=1) - weights(1.0)) < ERRORS * error_S).all()
    for wrong in (2 / 3, 3 / 2):
        assert (np.abs(shares_SL.mean(axis=1) - weights(wrong)) > ERRORS * error_S).any()

    # E[sum p^2] of Dirichlet(A w), A = S alpha: sum w (A w + 1) / (A + 1).
    def expected(value: float) -> float:
        total = num_sites * value
        return float(np.sum(weights(1.0) * (total * weights(1.0) + 1)) / (total + 1))

    squares_L = np.sum(shares_SL**2, axis=0)
    slack = ERRORS * squares_L.std() / np.sqrt(num_classes) + num_sites / (4 * each**2)
    assert abs(squares_L.mean() - expected(alpha)) < slack
    for wrong in (alpha * 2 / 3, alpha * 3 / 2):
        assert abs(squares_L.mean() - expected(wrong)) > slack


@pytest.mark.parametrize("sigma", [0.4, 0.9])
def test_lognormal_sigma_shows_in_two_sites_over_many_seeds(sigma: float) -> None:
    labels = np.zeros(2000, dtype=np.int64)
    sizes = np.array(
        [
            _counts_SL(labels, seed=seed, method="quantity", num_sites=2, sigma=sigma).sum(axis=1)
            for seed in range(500)
        ]
    )
    # The log of the ratio of two sizes is normal of variance 2 sigma^2.
    found = np.log(sizes[:, 0] / sizes[:, 1]).std(ddof=1) / np.sqrt(2)
    assert abs(found - sigma) < ERRORS * sigma / np.sqrt(2 * 499)
    for wrong in (sigma * 3 / 4, sigma * 4 / 3):
        assert abs(found - wrong) > ERRORS * wrong / np.sqrt(2 * 499)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("method", ["iid", "quantity"])
def test_power_sizes_fall_with_the_exponent(method: str, exponent: float) -> None:
    counts_SL = _counts_SL(
        np.zeros(200_000, dtype=np.int64),
        seed=1,
        method=method,
        num_sites=20,
        sizes="power",
        exponent=exponent,
    )
    ranks = np.log(np.arange(1, 21))
    slope, _ = np.polyfit(ranks, np.log(counts_SL.sum(axis=1)), 1)
    # Whole patients: the smallest of these sites has 313, half a one is 0.16 %.
    assert slope == pytest.approx(-exponent, abs=0.003)


def test_power_sizes_do_not_depend_on_the_seed_and_patients_do() -> None:
    labels = np.arange(1000) % 2
    first, second = (
        _counts_SL(labels, seed=seed, method="quantity", sizes="power") for seed in (1, 2)
    )
    # Rounding alone is drawn.
    assert np.abs(first.sum(axis=1) - second.sum(axis=1)).max() <= 1
    assert not np.array_equal(first, second)


def test_pathological_deals_classes_to_sites_without_favour() -> None:
    labels = np.repeat(np.arange(6), 20)
    held_SL = sum(
        _counts_SL(labels, seed=seed, method="pathological", num_sites=5, classes_per_site=2) > 0
        for seed in range(600)
    )
    # 600 seeds, 2 of 6 classes at each site: 200 each, of variance 600 * 1/3 * 2/3.
    assert np.abs(held_SL - 200).max() < ERRORS * np.sqrt(600 * 2 / 9)
    assert chisquare(held_SL.sum(axis=0)).pvalue > 1e-3


def test_missing_classes_are_drawn_without_favour() -> None:
    labels = np.repeat(np.arange(5), 20)
    held_SL = sum(
        _counts_SL(labels, seed=seed, num_sites=4, missing={"num_classes": 2}) > 0
        for seed in range(400)
    )
    # Each class is at a site with probability 3/5 (and has patients there, with 20 of them).
    assert np.abs(held_SL - 240).max() < ERRORS * np.sqrt(400 * 6 / 25)


def _store(labels: np.ndarray, patients: list[str], num_classes: int) -> Store:
    number = len(labels)
    return Store(
        folder=Path(),
        key="",
        classes=tuple("abcdefghij"[:num_classes]),
        mode="multiclass",
        images_NCHW=np.zeros((number, 1, 1, 1), dtype=np.uint8),
        masks_NHW=None,
        labels=labels.astype(np.int64),
        patients=tuple(patients),
        splits=("",) * number,
        columns={},
        reports=("",) * number,
        record_ids=tuple(map(str, range(number))),
        num_quarantined=0,
    )


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.6])
def test_label_noise_is_binomial_at_its_rate(rate: float) -> None:
    number = 10_000
    labels = np.arange(number) % 5
    store = _store(labels, [f"p{n}" for n in range(number)], 5)
    wrong = wrong_labels(store, {"site-1": range(number)}, LabelNoiseSection(rate=rate), seed=2)
    tail = 1e-4
    low, high = binom.ppf([tail / 2, 1 - tail / 2], number, rate)
    assert low <= len(wrong) <= high
    for other in (rate * 2 / 3, rate * 3 / 2):
        low, high = binom.ppf([tail / 2, 1 - tail / 2], number, other)
        assert not low <= len(wrong) <= high
    assert all(labels[row] != label for row, label in wrong.items())


def test_label_noise_takes_every_other_class_alike() -> None:
    number = 8000
    store = _store(np.zeros(number), [f"p{n}" for n in range(number)], 5)
    wrong = wrong_labels(store, {"s": range(number)}, LabelNoiseSection(rate=0.5), seed=0)
    counts = np.bincount(list(wrong.values()), minlength=5)
    assert counts[0] == 0
    assert chisquare(counts[1:]).pvalue > 1e-3


def test_label_noise_by_pairs_mistakes_no_other_class() -> None:
    number = 6000
    labels = np.arange(number) % 3
    store = _store(labels, [f"p{n}" for n in range(number)], 3)
    section = LabelNoiseSection(rate=0.3, pairs={"a": "b", "b": "c"})
    wrong = wrong_labels(store, {"s": range(number)}, section, seed=0)
    moves = {(int(labels[row]), label) for row, label in wrong.items()}
    assert moves == {(0, 1), (1, 2)}
    for true in (0, 1):
        found = sum(labels[row] == true for row in wrong)
        assert abs(found - 600) < ERRORS * np.sqrt(2000 * 0.3 * 0.7)


def test_label_noise_is_of_whole_patients_and_grows_with_the_rate() -> None:
    patients = [f"p{n // 3}" for n in range(900)]
    store = _store(np.arange(900) // 3 % 4, patients, 4)
    few, many = (
        wrong_labels(store, {"s": range(900)}, LabelNoiseSection(rate=rate), seed=5)
        for rate in (0.1, 0.3)
    )
    for wrong in (few, many):
        mistaken = {patients[row] for row in wrong}
        assert len(wrong) == 3 * len(mistaken)
        assert all(len({wrong[row] for row in range(900) if patients[row] == p}) == 1
                   for p in mistaken)  # fmt: skip
    assert few.items() < many.items()
