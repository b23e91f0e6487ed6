"""Named words come out as often as the stated noise says, and not as a wrong one would have them.

The operating system's generator cannot be seeded, so bounds are 6 standard deviations.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from scipy.stats import norm

from medfed.client.privacy.noise import NoiseSource, SecureNoise, SeededNoise
from medfed.client.privacy.words import NoisyChoice, noisy_words

SIGMAS = 6.0
NUM_WORDS = 8000
VOCABULARY = frozenset(f"word{n}" for n in range(NUM_WORDS))


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


def num_named(
    words_of: Mapping[str, frozenset[str]], choice: NoisyChoice, noise: NoiseSource
) -> int:
    return len(noisy_words(words_of, choice, size=NUM_WORDS, key=b"", noise=noise))


def agrees(count: int, chance: float) -> bool:
    spread = math.sqrt(NUM_WORDS * chance * (1 - chance))
    return abs(count - NUM_WORDS * chance) < SIGMAS * spread


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(-1.5, marks=pytest.mark.slow),
        -0.7,
        0.7,
        pytest.param(1.5, marks=pytest.mark.slow),
    ],
)
def test_words_pass_the_threshold_as_often_as_the_stated_noise_says(
    name: str, steps: float
) -> None:
    # Every patient has every word, each of weight 1/sqrt(8000): as many patients as bring the
    # words `steps` standard deviations above the threshold.
    choice = NoisyChoice(
        noise_multiplier=0.2, words_per_patient=NUM_WORDS, min_patients=1, delta=1e-2
    )
    crowd = round((choice.threshold + steps * 0.2) * math.sqrt(NUM_WORDS))
    words_of = {f"patient {n}": VOCABULARY for n in range(crowd)}
    above = (crowd / math.sqrt(NUM_WORDS) - choice.threshold) / 0.2
    assert abs(above - steps) < 0.05
    noise = SOURCES[name]()
    assert agrees(num_named(words_of, choice, noise), norm.cdf(above))
    for factor in (0.5, 2 / 3, 3 / 2, 2.0):
        assert not agrees(num_named(words_of, choice, Scaled(noise, factor)), norm.cdf(above))


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("delta", [0.02, 0.2])
def test_words_of_lone_patients_come_out_with_the_stated_delta(name: str, delta: float) -> None:
    choice = NoisyChoice(noise_multiplier=1.3, words_per_patient=1, min_patients=1, delta=delta)
    words_of = {f"patient {word}": frozenset({word}) for word in VOCABULARY}
    noise = SOURCES[name]()
    assert agrees(num_named(words_of, choice, noise), delta)
    for factor in (0.5, 2 / 3, 3 / 2, 2.0):
        assert not agrees(num_named(words_of, choice, Scaled(noise, factor)), delta)
    # A threshold without its part for delta lets half of them out.
    without = replace(choice, delta=0.5)
    assert without.threshold == pytest.approx(choice.weight(1))
    assert not agrees(num_named(words_of, without, noise), delta)


@pytest.mark.parametrize("name", SOURCES)
def test_words_of_k_less_one_patients_come_out_with_delta_at_most(name: str) -> None:
    choice = NoisyChoice(noise_multiplier=1.3, words_per_patient=1, min_patients=4, delta=0.05)
    words_of = {
        f"patient {n} of {word}": frozenset({word}) for word in VOCABULARY for n in range(3)
    }
    noise = SOURCES[name]()
    # Of three patients each, with nothing else to say: exactly delta.
    assert agrees(num_named(words_of, choice, noise), 0.05)
    assert not agrees(num_named(words_of, replace(choice, min_patients=1), noise), 0.05)
