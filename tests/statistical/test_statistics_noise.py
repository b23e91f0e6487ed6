"""Noise on statistics has the standard deviation that is charged, on every number, and no other.

The operating system's generator cannot be seeded, so bounds are 6 standard deviations.
"""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from medfed.client.privacy.noise import NoiseSource, SecureNoise, SeededNoise
from medfed.client.privacy.statistics import noisy
from medfed.common.statistics import quantities, sensitivity, standard_errors
from medfed.common.study import StudyConfig

SIGMAS = 6.0
DRAWS = 400
SIGMA = 1.7
STUDY = StudyConfig.model_validate(
    {
        "study": {"name": "s"},
        "task": {"classes": ["a", "b", "c", "d", "e"]},
        "data": {"channels": 3},
        "training": {"local_steps": 1},
        "privacy": {"images_per_patient": 3},
        "statistics": {
            "collect": True, "bins": 16, "noise_multiplier": SIGMA, "classes_per_patient": 2,
        },
    }
)  # fmt: skip
ASKED = quantities(STUDY)
SUMS = {quantity.name: np.full(quantity.shape, 1000.0) for quantity in ASKED}


@dataclass(frozen=True)
class Scaled:
    """Noise of another standard deviation than 1."""

    noise: NoiseSource
    factor: float

    def normal_like(self, reference: torch.Tensor) -> torch.Tensor:
        return self.factor * self.noise.normal_like(reference)


SOURCES = {
    "secure": SecureNoise,
    "seeded": lambda: SeededNoise(torch.Generator().manual_seed(9)),
}


def drawn(noise: NoiseSource) -> dict[str, np.ndarray]:
    """The noise alone, over the bound of each quantity: [draws, numbers]."""
    found = [noisy(SUMS, ASKED, SIGMA, noise) for _ in range(DRAWS)]
    return {
        q.name: np.array([(one[q.name] - SUMS[q.name]).ravel() / q.bound for one in found])
        for q in ASKED
    }


def agrees(errors: np.ndarray, expected: float) -> bool:
    """Whether mean and standard deviation are those of N(0, expected^2), of independent draws."""
    count = errors.size
    spread = float(np.sqrt(np.mean(errors**2)))
    return abs(spread / expected - 1) < SIGMAS / math.sqrt(2 * count) and abs(
        errors.mean()
    ) < SIGMAS * expected / math.sqrt(count)


@pytest.mark.parametrize("name", SOURCES)
def test_every_quantity_has_the_noise_that_is_charged(name: str) -> None:
    noise = SOURCES[name]()
    errors = drawn(noise)
    whole = np.concatenate([part.ravel() for part in errors.values()])
    expected = SIGMA * sensitivity(STUDY)
    for part in errors.values():
        assert agrees(part, expected)
    assert agrees(whole, expected)
    for factor in (2 / 3, 0.9, 1.1, 3 / 2):
        wrong = drawn(Scaled(noise, factor))
        assert not agrees(np.concatenate([part.ravel() for part in wrong.values()]), expected)


@pytest.mark.parametrize("name", SOURCES)
def test_no_two_numbers_share_their_noise(name: str) -> None:
    errors = np.concatenate(list(drawn(SOURCES[name]()).values()), axis=1)
    correlations = np.corrcoef(errors, rowvar=False) - np.eye(errors.shape[1])
    assert np.abs(correlations).max() < SIGMAS / math.sqrt(DRAWS)
    # The same noise on two numbers would be found.
    errors[:, 1] = errors[:, 0]
    shared = np.corrcoef(errors, rowvar=False) - np.eye(errors.shape[1])
    assert np.abs(shared).max() > SIGMAS / math.sqrt(DRAWS)


def test_stated_standard_errors_are_those_of_the_noise() -> None:
    errors = drawn(SecureNoise())
    stated = standard_errors(STUDY)
    for quantity in ASKED:
        assert agrees(errors[quantity.name] * quantity.bound, stated[quantity.name])
