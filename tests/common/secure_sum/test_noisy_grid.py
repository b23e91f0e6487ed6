"""The noisy grid: bounds hold exactly, the noise is as large as stated, no sum overflows."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medfed.common.errors import StudyError, UpdateError
from medfed.common.secure_sum import noisy_grid as module
from medfed.common.secure_sum.discrete_gaussian import seeded_words
from medfed.common.secure_sum.from_study import context_of, grid_of, noisy_grid_of
from medfed.common.secure_sum.masking import Vector
from medfed.common.secure_sum.noisy_grid import MAX_OVERFLOW, NoisyGrid, log_tau
from medfed.common.secure_sum.quantise import LARGEST_SUM
from medfed.common.state_dicts import StateDict
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study


def grid_of_size(num_values: int, **changes: float) -> NoisyGrid:
    values = {
        "max_update_norm": 1.0,
        "noise_multiplier": 1.0,
        "num_sites": 6,
        "threshold": 4,
        "honest_sites": 1.0,
        **changes,
    }
    return NoisyGrid(num_values=num_values, **values)  # type: ignore[arg-type]


def without_noise(grid: NoisyGrid, update: StateDict, monkeypatch: pytest.MonkeyPatch) -> Vector:
    def none(count: int, scale: int, source: object) -> np.ndarray:
        return np.zeros(count, dtype=np.int64)

    with monkeypatch.context() as patch:
        patch.setattr(module, "discrete_gaussian", none)
        return grid.encode(update, seeded_words(0))


ANY_FLOAT = st.floats(allow_nan=False, allow_infinity=False, width=32)
ANY_DOUBLE = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=100, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "w": hnp.arrays(np.float32, (2, 3), elements=ANY_FLOAT),
            "scalar": hnp.arrays(np.float32, (), elements=ANY_FLOAT),
            "double": hnp.arrays(np.float64, 2, elements=ANY_DOUBLE),
            "count": hnp.arrays(np.int64, 2, elements=st.integers(-(2**40), 2**40)),
        }
    ),
    st.floats(1e-3, 1e3),
)
def test_rounded_update_is_within_the_bound_exactly(update: StateDict, norm: float) -> None:
    grid = grid_of_size(11, max_update_norm=norm)
    with pytest.MonkeyPatch.context() as patch:
        whole = without_noise(grid, update, patch).view(np.int32)
    square = sum(int(v) ** 2 for v in whole)
    assert square <= Fraction(grid.bound) ** 2


def test_update_within_the_bound_is_not_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = grid_of_size(2)
    update = {"w": np.asarray([0.5, -0.25])}
    whole = without_noise(grid, update, monkeypatch).view(np.int32)
    np.testing.assert_array_equal(whole * grid.step, update["w"])


def test_long_update_is_scaled_to_the_bound_with_its_scalars(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid = grid_of_size(2, max_update_norm=2.0)
    update = {"w": np.asarray([30.0]), "scalar": np.asarray(40.0)}
    whole = without_noise(grid, update, monkeypatch).view(np.int32)
    np.testing.assert_allclose(whole * grid.step, [1.2, 1.6], rtol=2e-6)


def test_zero_update_becomes_noise_alone() -> None:
    grid = grid_of_size(20_000)
    whole = grid.encode({"w": np.zeros(20_000, np.float32)}, seeded_words(1)).view(np.int32)
    assert whole.std() == pytest.approx(grid.scale, rel=0.03)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_update_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(UpdateError, match="NaN"):
        grid_of_size(2).encode({"a": np.zeros(1), "b": np.asarray(value)}, seeded_words(0))


def test_update_of_another_size_is_refused() -> None:
    with pytest.raises(UpdateError, match="3 values, got 2"):
        grid_of_size(3).encode({"a": np.zeros(2)}, seeded_words(0))
    with pytest.raises(UpdateError, match="template"):
        grid_of_size(3).decode(np.zeros(2, np.uint32), 6.0, {"a": np.zeros(3)})


@settings(max_examples=200, deadline=None)
@given(
    st.integers(2, 256),
    st.floats(0.5, 1, exclude_min=True),
    st.floats(0.5, 1),
    st.floats(0.1, 100),
    st.floats(1e-3, 1e3),
    st.integers(1, 10**8),
)
def test_noise_of_the_honest_that_stay_reaches_the_stated_multiplier(
    num: int, share: float, honest: float, multiplier: float, norm: float, num_values: int
) -> None:
    threshold = max(math.ceil(share * num), num // 2 + 1)
    left = threshold + math.ceil(honest * num - 1e-9) - num
    try:
        grid = NoisyGrid(
            max_update_norm=norm,
            noise_multiplier=multiplier,
            num_sites=num,
            threshold=threshold,
            honest_sites=honest,
            num_values=num_values,
        )
    except StudyError:
        # Only for want of an honest site, or of a grid fine enough for very much noise.
        assert left < 1 or num_values * multiplier**2 > 1e7
        return
    assert math.sqrt(left) * grid.scale >= multiplier * grid.bound
    assert grid.bound >= norm / grid.step + math.sqrt(num_values) / 2
    # The sum of all that may come is below 2**31 but for the stated probability.
    deviations = math.sqrt(2 * math.log(2 * num_values / MAX_OVERFLOW))
    largest = num * (norm / grid.step + 0.5) + deviations * math.sqrt(num) * grid.scale
    assert largest <= LARGEST_SUM
    assert math.log2(grid.step).is_integer()


def test_no_honest_site_for_sure_is_refused_with_the_way_out() -> None:
    with pytest.raises(StudyError, match="Raise honest_sites or threshold"):
        grid_of_size(10, honest_sites=0.3)


def test_grid_that_is_too_coarse_is_refused_with_the_way_out() -> None:
    # 10^10 values: rounding by up to 1/2 each is 50,000 steps; the noise leaves 5 times that.
    with pytest.raises(StudyError, match=r"Lower privacy\.noise_multiplier"):
        grid_of_size(10**10, noise_multiplier=1000.0)
    # Noise of a few steps: the sum of discrete Gaussians is no discrete Gaussian any more.
    with pytest.raises(StudyError, match="too coarse for its sum"):
        grid_of_size(10, noise_multiplier=1e-9)


@pytest.mark.parametrize(("scale", "num"), [(1, 2), (1, 5), (2, 30), (6, 200)])
def test_tau_is_bounded_from_above(scale: float, num: int) -> None:
    exact = 10 * math.fsum(
        math.exp(-2 * math.pi**2 * scale**2 * k / (k + 1)) for k in range(1, num)
    )
    assert exact <= math.exp(log_tau(scale, num)) <= 10 * num * exact
    assert log_tau(scale, 1) == -math.inf


@pytest.mark.parametrize(("scale", "num_terms"), [(0.5, 2), (0.7, 2), (0.7, 3)])
def test_sum_of_discrete_gaussians_is_as_close_to_one_as_tau_says(
    scale: float, num_terms: int
) -> None:
    # Kairouz et al. 2021: the sum's law differs from the discrete Gaussian of the same variance by
    # a factor between exp(-tau) and exp(tau). Exact convolution of laws on -60 .. 60.
    support = np.arange(-60, 61)

    def law(variance: float) -> np.ndarray:
        weights = np.exp(-(support**2) / (2 * variance))
        return weights / weights.sum()

    single = total = law(scale**2)
    for _ in range(num_terms - 1):
        total = np.convolve(total, single, mode="same")
    middle = slice(55, 66)
    ratio = np.abs(np.log(total[middle] / law(num_terms * scale**2)[middle]))
    assert 0 < ratio.max() <= math.exp(log_tau(scale, num_terms))


def study_of(**secure: object) -> StudyConfig:
    return parse_study(
        {
            "study": {"name": "s"},
            "task": {"classes": ["a", "b"]},
            "training": {"local_steps": 5},
            "privacy": {"unit": "site", "site": {"expected_sites": 6, "max_update_norm": 0.5}},
            "secure_aggregation": {
                "enabled": True,
                "distributed_noise": "discrete_gaussian",
                **secure,
            },
        },
        "test",
    )


def test_study_keys_reach_the_round() -> None:
    study = study_of(threshold=0.8, honest_sites=0.9, max_value=2.0)
    context = context_of(study, "run", 4, 10)
    assert (context.threshold, context.study) == (8, study.digest())
    noisy = noisy_grid_of(study, 10, {"w": np.zeros((3, 2)), "s": np.zeros(())})
    assert (noisy.num_values, noisy.num_honest_left) == (7, 7)
    assert (noisy.max_update_norm, noisy.noise_multiplier) == (0.5, 1.0)
    grid = grid_of(study, 10, 100)
    assert (grid.max_value, grid.total_weight, grid.num_sites) == (2.0, 100, 10)
