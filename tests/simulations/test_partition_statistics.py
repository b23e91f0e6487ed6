"""The draws have the moments that the methods promise, and not those of a wrong parameter.

S sites, L classes; p = a site's share of one class.
"""

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from medfed.common.study import PartitionSection
from medfed.simulations.partition import Cohort, partition_patients


def _cohort(labels: np.ndarray) -> Cohort:
    return Cohort(
        patients=tuple(f"{index:08d}" for index in range(len(labels))),
        labels=labels,
        num_images=np.ones(len(labels), dtype=np.int64),
        columns={},
    )


def _counts_SL(labels: np.ndarray, *, seed: int = 0, **section: object) -> np.ndarray:
    partition = partition_patients(
        _cohort(labels), PartitionSection.model_validate(section), seed=seed
    )
    num_classes = int(labels.max()) + 1
    return np.stack(
        [
            np.bincount(labels[list(members)], minlength=num_classes)
            for members in partition.sites.values()
        ]
    )


@pytest.mark.parametrize("alpha", [0.1, 0.5, 2.0])
def test_dirichlet_shares_have_the_second_moment_of_alpha(alpha: float) -> None:
    num_sites, num_classes, each = 5, 2000, 200
    counts_SL = _counts_SL(
        np.repeat(np.arange(num_classes), each),
        method="dirichlet",
        num_sites=num_sites,
        alpha=alpha,
        min_patients=1,
    )
    concentration_L = np.sum((counts_SL / each) ** 2, axis=0)
    error = concentration_L.std() / np.sqrt(num_classes)
    # Rounding to whole patients adds at most S / (4 each^2) on average.
    slack = 4 * error + num_sites / (4 * each**2)

    def expected(value: float) -> float:
        # E[sum p^2] of a symmetric Dirichlet: S * (a (a + 1)) / (S a (S a + 1)).
        return (value + 1) / (num_sites * value + 1)

    assert abs(concentration_L.mean() - expected(alpha)) < slack
    for wrong in (alpha * 2 / 3, alpha * 3 / 2):
        assert abs(concentration_L.mean() - expected(wrong)) > slack


def test_dirichlet_treats_all_sites_alike() -> None:
    # One patient a class: plain rounding of cumulated shares would favour the sites in the middle.
    num_classes = 4000
    sizes_S = _counts_SL(
        np.arange(num_classes), method="dirichlet", num_sites=4, alpha=1e6, min_patients=1
    ).sum(axis=1)
    # Multinomial: standard deviation sqrt(4000 * 1/4 * 3/4) = 27.4.
    assert np.abs(sizes_S - 1000).max() < 4 * 27.4


def test_dirichlet_with_large_alpha_has_every_class_in_equal_parts() -> None:
    labels = np.repeat(np.arange(7), 101)
    counts_SL = _counts_SL(labels, method="dirichlet", num_sites=4, alpha=1e6)
    # Standard deviation of p * 101 at alpha 1e6: 101 sqrt(1/4 3/4 / 4e6) = 0.02, then rounding.
    assert np.abs(counts_SL - 101 / 4).max() <= 1.1
    assert chi2_contingency(counts_SL).pvalue > 0.99


def test_dirichlet_with_small_alpha_gives_a_class_to_one_site() -> None:
    counts_SL = _counts_SL(
        np.repeat(np.arange(50), 40), method="dirichlet", num_sites=4, alpha=1e-3, min_patients=1
    )
    assert np.mean(counts_SL.max(axis=0) / 40) > 0.98


def test_dirichlet_repair_moves_no_more_than_it_must() -> None:
    labels = np.repeat([0, 1], [300, 100])
    section = {"method": "dirichlet", "num_sites": 10, "alpha": 1e-3}
    counts_SL = _counts_SL(labels, min_patients=8, **section)
    sizes_S = np.sort(counts_SL.sum(axis=1))
    # Nearly whole classes at two sites; eight or nine others are filled to the minimum exactly.
    assert list(sizes_S[:8]) == [8] * 8
    assert sizes_S.sum() == 400


def test_dirichlet_repair_keeps_rare_classes_where_they_were_drawn() -> None:
    labels = np.repeat([0, 1], [12, 88])  # more of the rare class than a repair moves
    for seed in range(20):
        counts_SL = _counts_SL(labels, seed=seed, method="dirichlet", num_sites=2, alpha=1e-3)
        assert counts_SL[:, 0].max() == 12


def test_dirichlet_picks_patients_within_a_class_at_random() -> None:
    cohort = _cohort(np.zeros(1000, dtype=np.int64))
    section = PartitionSection(method="dirichlet", num_sites=2, alpha=5.0)
    sites = partition_patients(cohort, section, seed=0).sites
    early_S = [
        [int(np.sum(np.array(m) < 500)), int(np.sum(np.array(m) >= 500))] for m in sites.values()
    ]
    assert chi2_contingency(np.array(early_S)).pvalue > 1e-3


def test_iid_labels_are_independent_of_sites_and_dirichlet_ones_are_not() -> None:
    labels = np.repeat(np.arange(4), [400, 300, 200, 100])
    pvalues = [
        chi2_contingency(_counts_SL(labels, seed=seed, method="iid", num_sites=5)).pvalue
        for seed in range(200)
    ]
    # p-values of a true null hypothesis are uniform: mean 1/2, standard error sqrt(1/12/200).
    assert abs(np.mean(pvalues) - 0.5) < 4 * np.sqrt(1 / 12 / 200)
    skewed = _counts_SL(labels, method="dirichlet", num_sites=5, alpha=1.0)
    assert chi2_contingency(skewed).pvalue < 1e-6


@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_quantity_sizes_are_lognormal_with_sigma(sigma: float) -> None:
    num_sites = 400
    counts_SL = _counts_SL(
        np.tile([0, 1], num_sites * 250),
        method="quantity",
        num_sites=num_sites,
        sigma=sigma,
        min_patients=1,
    )
    spread = np.log(counts_SL.sum(axis=1)).std(ddof=1)

    def error(value: float) -> float:
        return value / np.sqrt(2 * (num_sites - 1))

    assert abs(spread - sigma) < 4 * error(sigma)
    for wrong in (sigma * 2 / 3, sigma * 3 / 2):
        assert abs(spread - wrong) > 4 * error(wrong)
    assert chi2_contingency(counts_SL).pvalue > 1e-3
