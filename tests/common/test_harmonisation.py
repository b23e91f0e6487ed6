"""Tables of grey levels: they bring histograms together, keep order, and bear noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.common.harmonisation import (
    SHARES,
    distance,
    is_reference,
    matching_table,
    quantiles,
    reference_of,
)

EVEN = np.linspace(0.0, 256.0, 257)


def histogram_of(levels: np.ndarray, bins: int = 64) -> np.ndarray:
    return np.bincount(levels, minlength=256).reshape(bins, -1).sum(axis=1).astype(float)


def test_quantiles_of_an_even_histogram_are_a_line() -> None:
    np.testing.assert_allclose(quantiles(np.ones(16)), EVEN, atol=1e-6)
    # All in the second of four bins: 64 to 128.
    np.testing.assert_allclose(quantiles(np.array([0.0, 3, 0, 0])), 64 + 64 * SHARES,
                               atol=1e-4)  # fmt: skip


def test_a_histogram_is_brought_to_itself_by_the_table_that_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    own = histogram_of(rng.integers(0, 256, 4000))
    function = quantiles(own)
    assert function is not None
    assert np.abs(matching_table(own, function).astype(int) - np.arange(256)).max() <= 1


def test_the_reference_is_the_mean_grey_level_at_every_share() -> None:
    # Two scanners that differ by brightness alone meet half-way.
    dark, bright = np.zeros(64), np.zeros(64)
    dark[8:24], bright[24:40] = 1, 1
    functions = [quantiles(dark), quantiles(bright)]
    reference = reference_of([f for f in functions if f is not None])
    np.testing.assert_allclose(reference, 64 + 64 * SHARES, atol=1e-3)
    assert distance(functions[0], functions[1]) == pytest.approx(64, abs=1e-3)
    assert distance(reference, functions[0]) == pytest.approx(32, abs=1e-3)
    # 64 on the dark scanner and 128 on the bright one are the same tissue: 96.
    assert abs(int(matching_table(dark, reference)[64]) - 96) <= 1
    assert abs(int(matching_table(bright, reference)[128]) - 96) <= 1


def test_tables_undo_gammas_of_the_same_anatomy() -> None:
    rng = np.random.default_rng(1)
    anatomy = rng.beta(2, 3, 50_000)
    sites = [np.rint(255 * anatomy**gamma).astype(int) for gamma in (0.6, 1.0, 1.6)]
    histograms = [histogram_of(levels) for levels in sites]
    functions = [f for f in map(quantiles, histograms) if f is not None]
    reference = reference_of(functions)
    tables = [matching_table(one, reference) for one in histograms]
    mapped = [table[levels].astype(float) for table, levels in zip(tables, sites, strict=True)]
    before = np.abs(sites[0] - sites[2]).mean()
    assert before > 50
    assert np.abs(mapped[0] - mapped[2]).mean() < 2


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    bins=st.sampled_from([8, 64, 256]),
    noise=st.floats(0, 100),
)
def test_tables_never_turn_an_order_round_whatever_the_noise(
    seed: int, bins: int, noise: float
) -> None:
    rng = np.random.default_rng(seed)
    histograms = rng.gamma(0.3, 10, (3, bins)) + noise * rng.normal(size=(3, bins))
    functions = [f for f in map(quantiles, histograms) if f is not None]
    if not functions:
        return
    reference = reference_of(functions)
    assert is_reference(reference[None], 1)
    for histogram in histograms:
        assert (np.diff(matching_table(histogram, reference).astype(int)) >= 0).all()


@pytest.mark.parametrize("nothing", [np.zeros(8), np.full(8, np.nan), -np.ones(8)])
def test_a_histogram_that_says_nothing_changes_nothing(nothing: np.ndarray) -> None:
    assert quantiles(nothing) is None
    assert matching_table(nothing, EVEN / 2).tolist() == list(range(256))


def test_noise_below_a_bin_is_smoothed_away_without_bias() -> None:
    rng = np.random.default_rng(2)
    exact = np.zeros(32)
    exact[4:20] = 20.0
    true = quantiles(exact)
    assert true is not None
    errors = [
        found - true
        for _ in range(200)
        if (found := quantiles(exact + 4 * rng.normal(size=32))) is not None
    ]
    middle = np.mean(errors, axis=0)[64:193]
    assert np.abs(middle).max() < 4  # half a bin of 8 grey levels


@pytest.mark.parametrize(
    "wrong",
    [EVEN[None, :-1], EVEN, -EVEN[None], EVEN[None, ::-1], 2 * EVEN[None], EVEN[None] * np.nan],
)
def test_what_is_no_quantile_function_is_no_reference(wrong: np.ndarray) -> None:
    assert not is_reference(wrong, 1)
    assert is_reference(EVEN[None], 1)
    assert not is_reference(EVEN[None], 2)
