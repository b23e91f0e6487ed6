"""From a site's training reports to the words that it names, if its policy lets it name any."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from medfed.client import policy
from medfed.client.data.site_data import ImageSet
from medfed.client.privacy.noise import NoiseSource, SecureNoise, SeededNoise
from medfed.client.privacy.words import NoisyChoice, common_words, noisy_words
from medfed.client.site import SiteConfig
from medfed.common.seeding import torch_rng
from medfed.common.study import StudyConfig
from medfed.common.text import tokenise
from medfed.common.words import is_word


@dataclass(frozen=True)
class NamedWords:
    """What leaves the site.

    Attributes:
        words: In alphabetical order.
        epsilon: What this data set has spent in all, after this; None for words without noise,
            which no epsilon covers.
        head: Hash of the ledger entry that says so.
    """

    words: tuple[str, ...]
    epsilon: float | None
    head: str


def reports_by_patient(data: ImageSet) -> dict[str, tuple[str, ...]]:
    """Return the different reports of each patient in `data`, patients in order of pseudonym."""
    reports: dict[str, dict[str, None]] = {}
    places = zip(data.patients, data.store_index, data.row_index, strict=True)
    for patient, store, row in places:
        reports.setdefault(patient, {})[data.stores[store].reports[row]] = None
    return {patient: tuple(reports[patient]) for patient in sorted(reports)}


def release_words(
    reports: Mapping[str, Iterable[str]], study: StudyConfig, site: SiteConfig, *, run: str
) -> NamedWords:
    """Choose the words that `site` names for `study`, once they are written into its ledger.

    Args:
        reports: Each training patient's reports (`reports_by_patient`). Held-out patients have no
            part in the vocabulary.
        study: Asks by `task.report`.
        site: Allows by `policy`.
        run: The run's identifier.

    Raises:
        SiteRefusal: POLICY when the study asks for more than the site allows; STUDY when it needs
            no words; BUDGET or LEDGER as in `policy.charge`. Nothing was released.
    """
    policy.check_words(study, site.policy)
    asked = study.task.report
    words_of = {patient: _words(texts) for patient, texts in reports.items()}
    release = hashlib.sha256("\x1f".join(("words", study.digest(), run)).encode())
    spend = policy.spend_of_words(study, site.policy, run=run, release=release.hexdigest())
    # Written ahead: a crash from here on can only over-count.
    charge = policy.charge(site, spend)
    if asked.words_noise_multiplier is None:
        words = common_words(words_of, min_patients=asked.min_patients, size=asked.vocabulary_size)
        return NamedWords(words, charge.epsilon, charge.head)
    choice = NoisyChoice(
        noise_multiplier=asked.words_noise_multiplier,
        words_per_patient=asked.words_per_patient,
        min_patients=asked.min_patients,
        delta=asked.words_delta,
    )
    key = bytes.fromhex(study.digest())
    noise = _noise(study, site)
    words = noisy_words(words_of, choice, size=asked.vocabulary_size, key=key, noise=noise)
    return NamedWords(words, charge.epsilon, charge.head)


def _words(reports: Iterable[str]) -> frozenset[str]:
    """One patient's distinct words, as far as a vocabulary takes them."""
    found = {word for report in reports for word in tokenise(report)}
    return frozenset(filter(is_word, found))


def _noise(study: StudyConfig, site: SiteConfig) -> NoiseSource:
    if site.policy.allow_seeded_noise:
        return SeededNoise(torch_rng(study.study.seed, "words noise", site.name))
    return SecureNoise()
