"""DP-FedAvg on the server: one site moves the sum by the bound at most, whatever it sends."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from medfed.common.errors import UpdateError
from medfed.common.noise import SeededNoise
from medfed.common.seeding import torch_rng
from medfed.common.state_dicts import StateDict
from medfed.server.aggregation.clipping import clip_update
from medfed.server.aggregation.site_level import SiteLevelMean, SiteLevelMechanism

WEIGHTS: StateDict = {
    "w": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "scale": np.array(2.0, np.float32),
    "double": np.array([1.0, -1.0]),
    "steps": np.array(40, np.int64),
}
BOUND = 0.7


def rule(seed: int = 0, **changes: float | None) -> SiteLevelMean:
    values = {"bound": BOUND, "noise_multiplier": 1.5, "expected_sites": 5.0, "count_noise": None}
    noise = SeededNoise(torch_rng(seed, "test"))
    return SiteLevelMean(WEIGHTS, SiteLevelMechanism(**{**values, **changes}), noise)  # type: ignore[arg-type]


def random_update(rng: np.random.Generator, size: float) -> StateDict:
    return {
        name: np.asarray(rng.normal(0, size, array.shape), dtype=array.dtype)
        for name, array in WEIGHTS.items()
    }


def only(name: str, value: float) -> StateDict:
    update = {key: np.zeros_like(array) for key, array in WEIGHTS.items()}
    update[name] = np.full_like(WEIGHTS[name], value)
    return update


RNG = np.random.default_rng(3)
PROBES = {
    "small": random_update(RNG, 0.01),
    "at the bound": random_update(RNG, 0.25),
    "huge": random_update(RNG, 1e12),
    "largest float32": only("w", np.finfo(np.float32).max),
    "largest float64": only("double", np.finfo(np.float64).max),
    "scalar alone": only("scale", -1e9),
    "counter alone": only("steps", 2**40),
    "zero": only("scale", 0.0),
}


def removal(added: list[StateDict], probe: StateDict) -> Fraction:
    """Exact square of how far the noiseless sum moves when `probe` is added to `added`."""
    without, with_it = rule(), rule()
    for update in added:
        without.add(update)
        with_it.add(update)
    with_it.add(probe)
    one, other = without.sum(), with_it.sum()
    return sum(
        (
            (Fraction(float(b)) - Fraction(float(a))) ** 2
            for name in WEIGHTS
            for a, b in zip(one[name].ravel(), other[name].ravel(), strict=True)
        ),
        Fraction(0),
    )


# A sum is rounded to float64 once, to 2**-52 of values below 10; the accumulator to 2**-70.
SLACK = Fraction(1) + Fraction(1, 2**40)


@pytest.mark.parametrize("name", PROBES)
def test_removing_one_site_moves_the_sum_by_the_bound_at_most(name: str) -> None:
    rng = np.random.default_rng(4)
    others = [random_update(rng, 10.0**power) for power in (-3, 0, 3)]
    moved = removal(others, PROBES[name])
    assert moved <= Fraction(BOUND) ** 2 * SLACK
    # An update that is cut uses the whole bound, but for one whose very norm overflows.
    if name in ("huge", "largest float32", "scalar alone", "counter alone"):
        assert moved >= Fraction(BOUND) ** 2 * Fraction(999_990, 1_000_000)


def test_sensitivity_probe_rejects_a_clip_that_misses_scalars(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As Flower's own: arrays of dimension 0 are neither measured nor scaled.
    def without_scalars(update: StateDict, max_norm: float) -> tuple[StateDict, bool]:
        rest, within = clip_update({n: a for n, a in update.items() if a.ndim}, max_norm)
        return {n: rest.get(n, update[n].astype(np.float64)) for n in update}, within

    monkeypatch.setattr("medfed.server.aggregation.site_level.clip_update", without_scalars)
    assert removal([], only("scale", 1e3)) > Fraction(BOUND) ** 2 * 1000


def test_update_of_nan_is_refused_and_leaves_the_rest_as_it_was() -> None:
    one, other = rule(), rule()
    for update in (PROBES["small"], only("w", np.nan), only("double", np.inf), PROBES["huge"]):
        if all(np.isfinite(a).all() for a in update.values()):
            one.add(update)
            other.add(update)
        else:
            with pytest.raises(UpdateError, match="finite"):
                other.add(update)
    assert other.num_updates == 2
    assert {n: a.tobytes() for n, a in one.sum().items()} == {
        n: a.tobytes() for n, a in other.sum().items()
    }


def test_order_of_arrival_does_not_show() -> None:
    results = set()
    for order in itertools.permutations([PROBES["small"], PROBES["huge"], PROBES["scalar alone"]]):
        this = rule(count_noise=1.0)
        for update in order:
            this.add(update)
        new = this.apply()
        results.add((b"".join(a.tobytes() for a in new.values()), this.noisy_balance))
    assert len(results) == 1


def test_divisor_is_public_and_types_are_kept() -> None:
    # Two sites answered; five were expected. Noise off to see the arithmetic.
    this = rule(noise_multiplier=0.0)
    this.add(only("scale", 0.5))
    this.add(only("scale", 0.25))
    new = this.apply()
    assert float(new["scale"]) == pytest.approx(2.0 + 0.75 / 5, rel=1e-6)
    assert {n: (a.dtype, a.shape) for n, a in new.items()} == {
        n: (a.dtype, a.shape) for n, a in WEIGHTS.items()
    }


def test_round_without_any_update_is_noise_alone_and_on_every_parameter() -> None:
    new = rule().apply()
    for name in ("w", "scale", "double"):
        assert (new[name] != WEIGHTS[name]).all(), name
    other = rule(seed=1).apply()
    assert (new["w"] != other["w"]).all()


def test_noise_does_not_depend_on_updates() -> None:
    empty, full = rule(), rule()
    full.add(only("double", 0.25))
    moved = full.apply()["double"] - empty.apply()["double"]
    np.testing.assert_allclose(moved, 0.25 / 5, rtol=1e-12)


def test_weight_other_than_one_is_refused() -> None:
    with pytest.raises(UpdateError, match="weight 1"):
        rule().add(PROBES["small"], 2)


def test_count_of_sites_within_the_bound_has_sensitivity_one_half() -> None:
    this = rule(count_noise=1e-12)
    for name in ("small", "zero", "huge"):
        this.add(PROBES[name])
    this.apply()
    assert this.noisy_balance == pytest.approx(0.5, abs=1e-9)
    assert rule().noisy_balance is None
