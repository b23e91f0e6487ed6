"""The server's noise has the stated standard deviation on every coordinate, and no memory.

All is seeded but the operating system's generator, whose bounds are 6 standard deviations.
"""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import kstest, norm

from medfed.common.noise import SecureNoise, SeededNoise
from medfed.common.seeding import torch_rng
from medfed.common.state_dicts import StateDict
from medfed.common.study import StudyConfig
from medfed.server.aggregation.site_level import SiteLevelMean, SiteLevelMechanism
from medfed.server.site_privacy import SitePrivacy

FALSE_ALARM = 1e-9
SIGMAS = float(norm.isf(FALSE_ALARM / 2))
NOISE_MULTIPLIER, BOUND, EXPECTED_SITES = 1.3, 0.4, 8.0
STATED = NOISE_MULTIPLIER * BOUND / EXPECTED_SITES
WEIGHTS: StateDict = {
    "w": np.zeros((200, 100)),
    "b": np.zeros(50),
    "scale": np.array(0.0),
}


def released(
    noise: SecureNoise | SeededNoise, *, scale: float = 1.0, updates: int = 3
) -> npt.NDArray[np.float64]:
    """All coordinates of one release, less what no noise would have given."""
    mechanism = SiteLevelMechanism(
        bound=BOUND, noise_multiplier=scale * NOISE_MULTIPLIER, expected_sites=EXPECTED_SITES
    )
    this = SiteLevelMean(WEIGHTS, mechanism, noise)
    rng = np.random.default_rng(updates)
    for _ in range(updates):
        this.add({name: rng.normal(size=a.shape) for name, a in WEIGHTS.items()})
    total, new = this.sum(), this.apply()
    return np.concatenate(
        [(new[n] - np.asarray(total[n]) / EXPECTED_SITES).ravel() for n in WEIGHTS]
    )


def agrees(values: npt.NDArray[np.float64]) -> bool:
    """Whether these are normals of the stated standard deviation, at a false alarm of 1e-9."""
    x = values / STATED
    n = len(x)
    return bool(
        abs(x.mean()) < SIGMAS / math.sqrt(n)
        and abs((x**2).mean() - 1) < SIGMAS * math.sqrt(2 / n)
        and kstest(x, norm.cdf).pvalue > FALSE_ALARM
    )


def sources(kind: str, round_number: int = 1) -> SecureNoise | SeededNoise:
    return SecureNoise() if kind == "secure" else SeededNoise(torch_rng(2, "noise", round_number))


@pytest.mark.parametrize("updates", [0, 1, 7])
@pytest.mark.parametrize("kind", ["seeded", "secure"])
def test_noise_is_the_stated_one_however_many_sites_answer(kind: str, updates: int) -> None:
    assert agrees(released(sources(kind), updates=updates))


@pytest.mark.parametrize("scale", [2 / 3, 3 / 2, 0.9, 1 / 0.9])
@pytest.mark.parametrize("kind", ["seeded", "secure"])
def test_test_rejects_other_noise(kind: str, scale: float) -> None:
    assert not agrees(released(sources(kind), scale=scale))


def test_scalar_parameters_are_noised_like_any_other() -> None:
    mechanism = SiteLevelMechanism(
        bound=BOUND, noise_multiplier=NOISE_MULTIPLIER, expected_sites=EXPECTED_SITES
    )
    noise = SeededNoise(torch_rng(3, "noise"))
    rounds = [SiteLevelMean({"scale": np.array(0.0)}, mechanism, noise) for _ in range(4000)]
    values = np.array([float(this.apply()["scale"]) for this in rounds])
    assert agrees(values)
    for wrong in (2 / 3, 3 / 2, 0.9):
        assert not agrees(values * wrong)
    assert abs(correlation(values[:-1], values[1:])) < SIGMAS / math.sqrt(len(values))


def correlation(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    return float(np.corrcoef(one, other)[0, 1])


def study(**privacy: object) -> StudyConfig:
    section = {
        "unit": "site",
        "noise_multiplier": NOISE_MULTIPLIER,
        "site": {"expected_sites": EXPECTED_SITES, "max_update_norm": BOUND},
    }
    return StudyConfig.model_validate(
        {
            "study": {"name": "noise", "seed": 5},
            "task": {"classes": ["a", "b"]},
            "training": {"local_steps": 1},
            "privacy": {**section, **privacy},
        }
    )


@pytest.mark.parametrize("seeded", [True, False])
def test_noise_of_two_rounds_is_not_correlated(tmp_path: Path, seeded: bool) -> None:
    privacy = SitePrivacy(study(), "run", tmp_path, seeded=seeded)
    rounds = [
        np.concatenate([a.ravel() for a in privacy.rule(WEIGHTS, number).apply().values()])
        for number in (1, 2, 3)
    ]
    bound = SIGMAS / math.sqrt(len(rounds[0]))
    assert all(agrees(values) for values in rounds)
    assert abs(correlation(rounds[0], rounds[1])) < bound
    assert abs(correlation(rounds[1], rounds[2])) < bound
    # A seed that is used again for round 1 is found by this, and by nothing else.
    again = privacy.rule(WEIGHTS, 1).apply()
    repeated = np.concatenate([a.ravel() for a in again.values()])
    assert (correlation(rounds[0], repeated) > 0.99) is seeded


@pytest.mark.parametrize("seeded", [True, False])
def test_adaptive_clipping_noises_the_sum_more_and_the_count_as_stated(
    tmp_path: Path, seeded: bool
) -> None:
    count_noise = 0.9
    site = {
        "expected_sites": EXPECTED_SITES,
        "max_update_norm": BOUND,
        "adaptive_quantile": 0.5,
        "count_noise_multiplier": count_noise,
    }
    privacy = SitePrivacy(study(site=site), "run", tmp_path, seeded=seeded)
    factor = (1 - (NOISE_MULTIPLIER / (2 * count_noise)) ** 2) ** -0.5
    rule = privacy.rule(WEIGHTS, 1)
    values = np.concatenate([a.ravel() for a in rule.apply().values()])
    assert agrees(values / factor)
    assert not agrees(values)
    counts = []
    for number in range(1, 1500):
        small = privacy.rule({"w": np.zeros(1)}, number)
        small.apply()
        assert small.noisy_balance is not None
        counts.append(small.noisy_balance / count_noise)
    spread = float(np.mean(np.square(counts)))
    assert abs(spread - 1) < SIGMAS * math.sqrt(2 / len(counts))
    for wrong in (2 / 3, 3 / 2):
        assert abs(spread * wrong**2 - 1) > SIGMAS * math.sqrt(2 / len(counts))
    assert abs(np.corrcoef(counts[:-1], counts[1:])[0, 1]) < SIGMAS / math.sqrt(len(counts))
