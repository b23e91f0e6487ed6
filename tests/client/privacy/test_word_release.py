"""Naming words: exact probabilities from the Gaussian tail, neighbouring patients, plain twins."""

import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from medfed.client.privacy.noise import SeededNoise
from medfed.client.privacy.words import (
    NoisyChoice,
    common_words,
    kept_words,
    noisy_words,
    word_weights,
)
from medfed.common.accounting import GaussianEvent, epsilon

KEY = b"public"
CHOICE = NoisyChoice(noise_multiplier=1.5, words_per_patient=8, min_patients=3, delta=1e-4)
SETTINGS = [
    replace(CHOICE, noise_multiplier=sigma, words_per_patient=width, delta=delta, min_patients=k)
    for sigma in (0.1, 1.4, 4.0)
    for width in (1, 8, 60)
    for delta in (1e-2, 1e-6, 1e-12)
    for k in (1, 5)
]

PATIENTS = st.dictionaries(
    st.text("pqrs", min_size=1, max_size=3),
    st.frozensets(st.sampled_from("abcdefghijkl"), max_size=12),
    max_size=8,
)


@dataclass
class Fixed:
    """Noise as the test has it, or none."""

    values: Sequence[float] = ()

    def normal_like(self, reference: torch.Tensor) -> torch.Tensor:
        values = torch.tensor(self.values or [0.0] * len(reference), dtype=reference.dtype)
        assert values.shape == reference.shape
        return values


def patients(*words: str) -> dict[str, frozenset[str]]:
    """Patients by number, each with one-letter words."""
    return {f"patient {n}": frozenset(text) for n, text in enumerate(words)}


def name(
    words_of: Mapping[str, frozenset[str]], choice: NoisyChoice, *values: float, size: int = 100
) -> tuple[str, ...]:
    return noisy_words(words_of, choice, size=size, key=KEY, noise=Fixed(values))


# Without noise


@pytest.mark.parametrize(
    ("k", "size", "expected"),
    [
        (1, 9, "abcd"),
        (2, 9, "abc"),
        (3, 9, "ac"),
        (4, 9, "c"),
        (5, 9, ""),
        # The most frequent first, and of b and d, were they equal, the first of the alphabet.
        (1, 2, "ac"),
        (1, 1, "c"),
        (2, 2, "ac"),
    ],
)
def test_common_words_are_those_of_k_patients(k: int, size: int, expected: str) -> None:
    words_of = patients("abc", "abc", "ac", "cd", "")
    assert common_words(words_of, min_patients=k, size=size) == tuple(expected)


def test_common_words_cuts_a_tie_by_the_alphabet_whatever_the_order() -> None:
    for order in itertools.permutations(["dcb", "bd", "c", "a"]):
        assert common_words(patients(*order), min_patients=2, size=2) == ("b", "c")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(PATIENTS, st.integers(1, 5), st.integers(1, 12))
def test_common_words_never_names_a_rare_word(
    words_of: dict[str, frozenset[str]], k: int, size: int
) -> None:
    named = common_words(words_of, min_patients=k, size=size)
    assert list(named) == sorted(set(named))
    assert len(named) <= size
    holders = {word: sum(word in words for words in words_of.values()) for word in "abcdefghijkl"}
    assert all(holders[word] >= k for word in named)
    left_out = [word for word in holders if holders[word] >= k and word not in named]
    assert not left_out or len(named) == size
    assert all(holders[word] <= min(holders[n] for n in named) for word in left_out)


# A patient's part


def test_kept_words_are_all_up_to_the_limit_and_that_many_beyond() -> None:
    words = set("abcdef")
    assert kept_words("p", words, 6, KEY) == words
    for limit in range(1, 6):
        kept = kept_words("p", words, limit, KEY)
        assert len(kept) == limit
        assert kept < words
        assert kept_words("p", frozenset(words), limit, KEY) == kept
    # Ranked, so that a patient with more words keeps those that fit.
    assert kept_words("p", words, 2, KEY) < kept_words("p", words, 3, KEY)


def test_kept_words_are_as_likely_as_one_another_and_differ_between_patients() -> None:
    words = set("abcdef")
    kept = [frozenset(kept_words(f"patient {n}", words, 2, KEY)) for n in range(3000)]
    for pair in itertools.combinations(sorted(words), 2):
        # 15 pairs: 200 each, standard deviation 13.7.
        assert abs(kept.count(frozenset(pair)) - 200) < 6 * 13.7
    other = [frozenset(kept_words(f"patient {n}", words, 2, b"other")) for n in range(3000)]
    assert abs(sum(a == b for a, b in zip(kept, other, strict=True)) - 200) < 6 * 13.7


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 8, 60, 97])
def test_weight_of_a_patient_has_norm_one_at_most(width: int) -> None:
    choice = replace(CHOICE, words_per_patient=width)
    for n in range(1, width + 1):
        norm_of_all = math.sqrt(n) * choice.weight(n)
        assert norm_of_all <= 1 + 1e-15
        # Nothing is given away by patients with a quarter of the words or more.
        assert n < width / 4 or norm_of_all == pytest.approx(1)
    assert choice.weight(1) == pytest.approx(min(1.0, 2 / math.sqrt(width)))


def plain_weights(
    words_of: Mapping[str, Iterable[str]], choice: NoisyChoice
) -> dict[str, list[float]]:
    weights: dict[str, list[float]] = {}
    for patient, words in words_of.items():
        kept = kept_words(patient, set(words), choice.words_per_patient, KEY)
        for word in kept:
            part = min(1 / math.sqrt(len(kept)), 2 / math.sqrt(choice.words_per_patient))
            weights.setdefault(word, []).append(part)
    return weights


@settings(max_examples=200, deadline=None, derandomize=True)
@given(PATIENTS, st.integers(1, 12), st.randoms(use_true_random=False))
def test_word_weights_are_a_plain_loops_in_any_order_of_patients(
    words_of: dict[str, frozenset[str]], width: int, order: random.Random
) -> None:
    choice = replace(CHOICE, words_per_patient=width)
    weights = word_weights(words_of, choice, KEY)
    plain = plain_weights(words_of, choice)
    assert list(weights) == sorted(plain)
    for word, parts in plain.items():
        assert weights[word] == pytest.approx(sum(parts))
    names = list(words_of)
    order.shuffle(names)
    shuffled = word_weights({patient: words_of[patient] for patient in names}, choice, KEY)
    assert list(shuffled.items()) == list(weights.items())


@settings(max_examples=200, deadline=None, derandomize=True)
@given(PATIENTS, st.frozensets(st.sampled_from("abcdefghijkl"), max_size=12), st.integers(1, 12))
def test_word_weights_move_by_norm_one_at_most_with_one_patient(
    words_of: dict[str, frozenset[str]], words: frozenset[str], width: int
) -> None:
    choice = replace(CHOICE, words_per_patient=width)
    before = word_weights(words_of, choice, KEY)
    after = word_weights({**words_of, "the one": words}, choice, KEY)
    moved = [after[word] - before.get(word, 0.0) for word in after]
    assert set(before) <= set(after)
    assert math.hypot(*moved) <= 1 + 1e-12
    assert sum(abs(step) > 1e-12 for step in moved) <= width


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.frozensets(st.sampled_from("abcdefghijkl"), min_size=1),
    st.frozensets(st.sampled_from("abcdefghijkl"), min_size=1),
    st.integers(1, 12),
)
def test_word_weights_move_by_root_two_at_most_with_one_record(
    words: frozenset[str], fewer: frozenset[str], width: int
) -> None:
    # What policy.spend_of_words counts on where the unit is a record.
    choice = replace(CHOICE, words_per_patient=width)
    before, after = (word_weights({"p": w}, choice, KEY) for w in (words, words & fewer))
    moved = [after.get(word, 0.0) - before[word] for word in before]
    assert math.hypot(*moved) <= math.sqrt(2) + 1e-12


# The threshold, by the Gaussian tail


def chance_that_any_passes(choice: NoisyChoice, threshold: float, num_words: int) -> float:
    """That a lone patient with `num_words` words gets any of them named, by SciPy's normal."""
    weight = min(1 / math.sqrt(num_words), 2 / math.sqrt(choice.words_per_patient))
    below = norm.logcdf((threshold - weight) / choice.noise_multiplier)
    return float(-np.expm1(num_words * below))


@pytest.mark.parametrize("choice", SETTINGS, ids=str)
def test_threshold_stops_the_words_of_a_lone_patient_but_for_delta(choice: NoisyChoice) -> None:
    chances = [
        chance_that_any_passes(choice, choice.threshold, n)
        for n in range(1, choice.words_per_patient + 1)
    ]
    assert max(chances) <= choice.delta * (1 + 1e-6)
    # No higher than need be: with k = 1 the worst number of words has exactly delta.
    alone = replace(choice, min_patients=1)
    chances = [
        chance_that_any_passes(choice, alone.threshold, n)
        for n in range(1, choice.words_per_patient + 1)
    ]
    assert max(chances) == pytest.approx(choice.delta, rel=1e-6)


@pytest.mark.parametrize("choice", SETTINGS, ids=str)
def test_threshold_stops_a_word_of_fewer_than_k_patients_but_for_delta(
    choice: NoisyChoice,
) -> None:
    # The heaviest that k - 1 patients can make a word: none of them has another.
    heaviest = (choice.min_patients - 1) * choice.weight(1)
    chance = norm.sf((choice.threshold - heaviest) / choice.noise_multiplier)
    assert chance <= choice.delta * (1 + 1e-6)
    few = {f"p{n}": frozenset({"rare"}) for n in range(choice.min_patients - 1)}
    assert word_weights(few, choice, KEY) == pytest.approx({"rare": heaviest} if few else {})


WRONG_THRESHOLDS: dict[str, Callable[[NoisyChoice], float]] = {
    "no part for delta": lambda c: c.weight(1),
    "delta of one word for all": lambda c: c.weight(1) + c.noise_multiplier * norm.isf(c.delta),
    "half the noise": lambda c: replace(c, noise_multiplier=c.noise_multiplier / 2).threshold,
    "ten times delta": lambda c: replace(c, delta=10 * c.delta).threshold,
    "weight forgotten": lambda c: c.threshold - c.weight(c.words_per_patient),
}


@pytest.mark.parametrize("wrong", WRONG_THRESHOLDS)
def test_threshold_test_rejects_a_wrong_one(wrong: str) -> None:
    choice = NoisyChoice(noise_multiplier=1.4, words_per_patient=60, min_patients=1, delta=1e-6)
    threshold = WRONG_THRESHOLDS[wrong](choice)
    assert max(chance_that_any_passes(choice, threshold, n) for n in range(1, 61)) > 1.5e-6


# Neighbouring sites, exactly


def log_chances(
    words_of: Mapping[str, frozenset[str]], choice: NoisyChoice, universe: str, threshold: float
) -> np.ndarray:
    """Log-probability of every set of words that can be named, in the order of their bits."""
    weights = word_weights(words_of, choice, KEY)
    total = np.zeros(1)
    for word in universe:
        if word in weights:
            z = (weights[word] - threshold) / choice.noise_multiplier
            named, not_named = norm.logcdf(z), norm.logsf(z)
        else:
            named, not_named = -np.inf, 0.0
        total = np.concatenate([total + not_named, total + named])
    return total


def divergence(one: np.ndarray, other: np.ndarray, eps: float) -> float:
    """The delta at which `one` is within `eps` of `other`: the exact hockey-stick divergence."""
    return float(np.maximum(np.exp(one) - np.exp(eps + other), 0.0).sum())


def worst_divergence(choice: NoisyChoice, threshold: float, eps: float) -> float:
    """Over neighbouring sites: a patient alone, and beside crowds near the threshold."""
    rng = random.Random(3)
    universe = "abcdefgh"
    pairs: list[tuple[dict[str, frozenset[str]], str]] = [({}, "abcd"[:n]) for n in (1, 2, 3, 4)]
    for _ in range(60):
        base: dict[str, frozenset[str]] = {}
        for group in range(rng.randrange(1, 4)):
            words = frozenset(rng.sample(universe, rng.randint(1, 6)))
            crowd = rng.randrange(1, 3 + int(2.5 * threshold))
            base |= {f"{group} {n}": words for n in range(crowd)}
        pairs.append((base, "".join(rng.sample(universe, rng.randint(1, 8)))))
    worst = 0.0
    for base, words_of_mine in pairs:
        without = log_chances(base, choice, universe, threshold)
        mine = {**base, "me": frozenset(words_of_mine)}
        with_me = log_chances(mine, choice, universe, threshold)
        worst = max(worst, divergence(with_me, without, eps), divergence(without, with_me, eps))
    return worst


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_naming_words_is_as_private_as_the_account_says(sigma: float) -> None:
    choice = NoisyChoice(noise_multiplier=sigma, words_per_patient=4, min_patients=1, delta=1e-3)
    delta = 2e-3
    stated = epsilon([GaussianEvent(sigma, 1.0, 1, extra_delta=choice.delta)], delta)
    worst = worst_divergence(choice, choice.threshold, stated)
    assert 0.45 * delta < worst <= delta
    # Not so where the threshold lacks its part for delta: a lone patient's words come out.
    assert worst_divergence(choice, choice.weight(1), stated) > 10 * delta
    # Nor where the noise is half of what was stated.
    halved = replace(choice, noise_multiplier=sigma / 2)
    assert worst_divergence(halved, halved.threshold, stated) > delta


def test_naming_a_lone_patients_rare_word_costs_no_more_than_the_extra_delta() -> None:
    choice = NoisyChoice(noise_multiplier=1.0, words_per_patient=4, min_patients=1, delta=1e-3)
    crowd = patients(*["ab"] * 30)
    for words in ("r", "abr", "rs", "rstu", "rstuvw"):
        weights = word_weights({**crowd, "me": frozenset(words)}, choice, KEY)
        alone = [weights[word] for word in weights if word not in "ab"]
        none = math.prod(norm.cdf((choice.threshold - weight) / 1.0) for weight in alone)
        assert 0 < 1 - none <= choice.delta * (1 + 1e-9), words
    # Without that patient the word cannot come out at all.
    assert "r" not in word_weights(crowd, choice, KEY)


# With noise


def test_noisy_words_names_what_passes_the_threshold_and_nothing_else() -> None:
    words_of = patients(*["ab"] * 40, *["b"] * 5, "c")
    choice = replace(CHOICE, words_per_patient=2, noise_multiplier=1.0)
    a, b, c = 40 / math.sqrt(2), 40 / math.sqrt(2) + 5, 1.0
    need = choice.threshold
    assert 5 < need < 10
    assert name(words_of, choice) == ("a", "b")
    above, below = 1e-9, -1e-9
    assert name(words_of, choice, need - a + above, need - b + below, 0.0) == ("a",)
    # The true number of patients has no say: one may be enough, and forty too few.
    assert name(words_of, choice, need - a + below, need - b + below, need - c + above) == ("c",)


def test_noisy_words_scales_the_noise_by_its_multiplier() -> None:
    words_of = patients(*["a"] * 40)
    choice = replace(CHOICE, words_per_patient=1, noise_multiplier=2.5)
    just = (choice.threshold - 40) / 2.5
    assert name(words_of, choice, just + 1e-9) == ("a",)
    assert name(words_of, choice, just - 1e-9) == ()


def test_noisy_words_keeps_those_of_greatest_weight_with_noise() -> None:
    words_of = patients(*["abcd"] * 100)
    choice = replace(CHOICE, words_per_patient=4)
    noise = (3.0, 1.0, 4.0, 2.0)
    assert name(words_of, choice, *noise, size=4) == ("a", "b", "c", "d")
    assert name(words_of, choice, *noise, size=2) == ("a", "c")
    assert name(words_of, choice, *noise, size=1) == ("c",)


def test_noisy_words_of_nobody_or_of_empty_reports_are_none() -> None:
    assert name({}, CHOICE) == ()
    assert name(patients("", ""), CHOICE) == ()


def test_noisy_words_repeats_under_a_seed_in_any_order_of_patients() -> None:
    rng = random.Random(1)
    words_of = patients(*("".join(rng.sample("abcdefghijkl", 9)) for _ in range(60)))
    backwards = dict(reversed(words_of.items()))

    def named(people: Mapping[str, frozenset[str]], seed: int) -> tuple[str, ...]:
        noise = SeededNoise(torch.Generator().manual_seed(seed))
        choice = replace(CHOICE, noise_multiplier=3.0)
        return noisy_words(people, choice, size=12, key=KEY, noise=noise)

    runs = [named(words_of, seed) for seed in range(8)]
    assert runs == [named(backwards, seed) for seed in range(8)]
    assert len(set(runs)) > 1
