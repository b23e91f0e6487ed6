"""The vocabulary that all sites will share, from the words that each of them named."""

from collections import Counter
from collections.abc import Mapping, Sequence

from medfed.common.errors import RunError, UpdateError
from medfed.common.words import MAX_WORD_LENGTH, is_word


def screen_words(words: object, most: int) -> tuple[str, ...]:
    """Return what a site named, sure that it is a list of at most `most` different words.

    Raises:
        UpdateError: Naming what is wrong, and where. It quotes no word: what a faulty site sent may
            be anything, and this goes into logs.
    """
    if not isinstance(words, list | tuple):
        raise UpdateError(f"Expected a list of words, got {type(words).__name__}.")
    if len(words) > most:
        raise UpdateError(f"Expected at most {most} words, got {len(words)}.")
    for position, word in enumerate(words):
        problem = _problem(word)
        if problem:
            raise UpdateError(f"Word {position} of {len(words)} {problem}.")
    if len(set(words)) != len(words):
        raise UpdateError(f"Expected different words, {len(words) - len(set(words))} are twice.")
    return tuple(words)


def merge_vocabularies(lists: Mapping[str, Sequence[str]], size: int) -> tuple[str, ...]:
    """Return the agreed vocabulary, alphabetically: words that most sites named.

    Args:
        lists: What each site named, screened. The order of sites and of words has no effect.
        size: Most words; those of more sites go first, then those first in the alphabet.

    Raises:
        RunError: No site named any word.
    """
    sites = Counter(word for words in lists.values() for word in set(words))
    if not sites:
        raise RunError(
            f"Expected words from the sites, {len(lists)} answered and none named any. Lower "
            "task.report.min_patients or words_noise_multiplier as far as the sites' policies and "
            "budgets allow, or name a public task.report.vocabulary."
        )
    ranked = sorted(sites, key=lambda word: (-sites[word], word))
    return tuple(sorted(ranked[:size]))


def _problem(word: object) -> str:
    if not isinstance(word, str):
        return "is not text"
    if len(word) > MAX_WORD_LENGTH:
        return f"has {len(word)} characters, more than {MAX_WORD_LENGTH}"
    if not is_word(word):
        return "is not one word as reports are split into words"
    return ""
