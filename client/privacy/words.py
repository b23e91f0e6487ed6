"""Which words of its patients' reports a site names: without noise, or with.

Both look at the set of distinct words over all of a patient's reports; how often a patient's
reports say a word counts for nothing. Both answer with an alphabetical list: order of frequency
and counts would say more than a vocabulary needs.

*Without noise* (`common_words`): words of at least k patients. No differential privacy: who knows
all patients but one may learn whether that one used a word.

*With noise* (`noisy_words`): differentially private set union by weighted Gaussian. Each patient
gives weight to at most W of their words, each word's weight gets Gaussian noise, and words above a
threshold are named. Add or remove one patient whose kept words are n <= W, each of weight
a(n) <= 1/sqrt(n):

1. Words that other patients hold too: their weights change by a vector of L2 norm at most 1, under
   noise of standard deviation sigma. One Gaussian release; what is named follows from it.
2. Words that this patient alone holds are named with that patient only. There are at most n of
   them, each of weight a(n), so one or more pass the threshold rho with probability at most
   1 - Phi((rho - a(n)) / sigma)^n. This is at most delta for every n if

       rho >= max over n of a(n) + sigma Phi^-1((1 - delta)^(1/n)).

   Their noise is apart from that of all other words, so this is a failure with probability at most
   delta in the sense of `common.accounting`: (sigma, delta) is the whole account.
3. A word that fewer than k patients hold has weight at most (k - 1) a(1). It is named with
   probability at most delta if also rho >= (k - 1) a(1) + sigma Phi^-1(1 - delta).

Point 3 is how k holds under noise. Comparing the true number of patients with k instead would be a
second answer, without noise: one more patient could turn "never named" into "almost surely named",
whatever sigma. Only sigma, W, k and delta, all public, may set the threshold.

Reference: Gopi et al. 2020, Differentially Private Set Union, https://arxiv.org/abs/2002.09745
(weighted Gaussian; there a(n) = 1/sqrt(n), and points 1 and 2 with delta/2 each).
"""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Set
from dataclasses import dataclass
from statistics import NormalDist

import torch

from medfed.client.privacy.noise import NoiseSource

PatientWords = Mapping[str, Set[str]]

_STANDARD = NormalDist()


@dataclass(frozen=True, kw_only=True)
class NoisyChoice:
    """The public settings of a choice with noise.

    Attributes:
        noise_multiplier: Sigma; a patient's weights have an L2 norm of at most 1.
        words_per_patient: W, the most distinct words that one patient gives weight to.
        min_patients: k; words of fewer patients are named with probability at most `delta` each.
        delta: Bounds the probability that a patient's own words are named.
    """

    noise_multiplier: float
    words_per_patient: int
    min_patients: int
    delta: float

    def weight(self, num_words: int) -> float:
        """Return a(n), the weight of each of the n words that a patient keeps.

        1/sqrt(n), but never more than with W/4 words: else a report of one word would weigh as much
        as sqrt(n) long ones, and point 3 would ask for a far higher threshold.
        """
        return 1 / math.sqrt(max(num_words, self.words_per_patient / 4))

    @property
    def threshold(self) -> float:
        """Rho: the weight, noise included, above which a word is named (points 2 and 3)."""
        lone = max(
            self.weight(n) + self.noise_multiplier * _quantile(self.delta, n)
            for n in range(1, self.words_per_patient + 1)
        )
        few = (self.min_patients - 1) * self.weight(1)
        return max(lone, few + self.noise_multiplier * _quantile(self.delta, 1))


def common_words(words_of: PatientWords, *, min_patients: int, size: int) -> tuple[str, ...]:
    """Return the words of at least `min_patients` patients, alphabetically.

    Args:
        words_of: Each patient's words.
        min_patients: k.
        size: Most words; the most frequent are kept (ties: the first of the alphabet).
    """
    patients = Counter(word for words in words_of.values() for word in words)
    enough = [(-count, word) for word, count in patients.items() if count >= min_patients]
    return tuple(sorted(word for _, word in sorted(enough)[:size]))


def noisy_words(
    words_of: PatientWords, choice: NoisyChoice, *, size: int, key: bytes, noise: NoiseSource
) -> tuple[str, ...]:
    """Return words whose weight passes the threshold under noise, alphabetically.

    Args:
        words_of: Each patient's words.
        choice: Sigma, W, k and delta.
        size: Most words; those of greatest weight, noise included, are kept.
        key: Ranks the words of patients who have more than W; see `kept_words`.
        noise: Standard normals, one a word in alphabetical order.
    """
    weights = word_weights(words_of, choice, key)
    drawn = noise.normal_like(torch.empty(len(weights), dtype=torch.float64)).tolist()
    noisy = [
        (weight + choice.noise_multiplier * normal, word)
        for (word, weight), normal in zip(weights.items(), drawn, strict=True)
    ]
    threshold = choice.threshold
    passed = sorted(((-weight, word) for weight, word in noisy if weight > threshold))[:size]
    return tuple(sorted(word for _, word in passed))


def word_weights(words_of: PatientWords, choice: NoisyChoice, key: bytes) -> dict[str, float]:
    """Return each word's exact weight, in alphabetical order. Private: for the noise only."""
    parts: defaultdict[str, list[float]] = defaultdict(list)
    for patient, words in words_of.items():
        kept = kept_words(patient, words, choice.words_per_patient, key)
        for word in kept:
            parts[word].append(choice.weight(len(kept)))
    # fsum rounds once, so that the order of patients does not matter.
    return {word: math.fsum(parts[word]) for word in sorted(parts)}


def kept_words(patient: str, words: Set[str], limit: int, key: bytes) -> Set[str]:
    """Return at most `limit` of a patient's words, as if drawn at random for each patient.

    Ranked by a keyed hash of patient and word. It may be public and the same again in every retry:
    sensitivity is bounded for every key, because a patient's choice depends on that patient alone.

    Args:
        patient: The patient's pseudonym.
        words: All of the patient's words.
        limit: W.
        key: At most 64 bytes, set without a look at the reports.
    """
    if len(words) <= limit:
        return words

    def rank(word: str) -> tuple[bytes, str]:
        text = f"{patient}\x1f{word}".encode()
        return hashlib.blake2b(text, digest_size=16, key=key).digest(), word

    return set(sorted(words, key=rank)[:limit])


def _quantile(delta: float, count: int) -> float:
    """Phi^-1((1 - delta)^(1/count)): that many standard normals all stay below, but for delta."""
    # By the upper tail, which is exact where (1 - delta)^(1/count) rounds to 1.
    return -_STANDARD.inv_cdf(-math.expm1(math.log1p(-delta) / count))
