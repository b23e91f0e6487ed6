"""Porter's stemmer: effusions and effusion become the same word.

The algorithm of the paper, step by step; words of one or two letters stay as they are, as in its
author's own program. English only; a word without any of its suffixes comes back unchanged.

Reference: Porter 1980, https://doi.org/10.1108/eb046814
"""

from functools import lru_cache
from itertools import pairwise

_STEP_2 = {
    "ational": "ate", "tional": "tion", "enci": "ence", "anci": "ance", "izer": "ize",
    "abli": "able", "alli": "al", "entli": "ent", "eli": "e", "ousli": "ous", "ization": "ize",
    "ation": "ate", "ator": "ate", "alism": "al", "iveness": "ive", "fulness": "ful",
    "ousness": "ous", "aliti": "al", "iviti": "ive", "biliti": "ble",
}  # fmt: skip
_STEP_3 = {
    "icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": "",
}  # fmt: skip
_STEP_4 = (
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou",
    "ism", "ate", "iti", "ous", "ive", "ize",
)  # fmt: skip


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """Return the stem of a lower-case word."""
    if len(word) <= 2:
        return word
    word = _past_and_present(_plural(word))
    if word.endswith("y") and _has_vowel(word[:-1]):
        word = word[:-1] + "i"
    word = _replace(word, _STEP_2)
    word = _replace(word, _STEP_3)
    return _final_e(_strip(word))


def _is_consonant(word: str, index: int) -> bool:
    if word[index] == "y":
        return index == 0 or not _is_consonant(word, index - 1)
    return word[index] not in "aeiou"


def _measure(stem: str) -> int:
    """Number of times that a vowel is followed by a consonant."""
    kinds = [_is_consonant(stem, index) for index in range(len(stem))]
    return sum(not before and after for before, after in pairwise(kinds))


def _has_vowel(stem: str) -> bool:
    return not all(_is_consonant(stem, index) for index in range(len(stem)))


def _ends_double(word: str) -> bool:
    """Whether `word` ends with the same consonant twice."""
    return len(word) >= 2 and word[-1] == word[-2] and _is_consonant(word, len(word) - 1)


def _ends_short(word: str) -> bool:
    """Whether `word` ends consonant, vowel, consonant, and the last is not w, x or y."""
    if len(word) < 3 or word[-1] in "wxy":
        return False
    kinds = [_is_consonant(word, len(word) - back) for back in (3, 2, 1)]
    return kinds == [True, False, True]


def _plural(word: str) -> str:
    """Step 1a."""
    if word.endswith(("sses", "ies")):
        return word[:-2]
    if word.endswith("s") and not word.endswith("ss"):
        return word[:-1]
    return word


def _past_and_present(word: str) -> str:
    """Step 1b."""
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for suffix in ("ed", "ing"):
        if word.endswith(suffix) and _has_vowel(word.removesuffix(suffix)):
            return _tidy(word.removesuffix(suffix))
    return word


def _tidy(word: str) -> str:
    """End of step 1b: hopping -> hop, not hopp; conflated -> conflate, not conflat."""
    if word.endswith(("at", "bl", "iz")):
        return word + "e"
    if _ends_double(word) and word[-1] not in "lsz":
        return word[:-1]
    return word + "e" if _measure(word) == 1 and _ends_short(word) else word


def _replace(word: str, endings: dict[str, str]) -> str:
    """Steps 2 and 3: only the longest ending that fits is tried."""
    ending = max((e for e in endings if word.endswith(e)), key=len, default="")
    rest = word.removesuffix(ending)
    return rest + endings[ending] if ending and _measure(rest) > 0 else word


def _strip(word: str) -> str:
    """Step 4."""
    ending = max((e for e in _STEP_4 if word.endswith(e)), key=len, default="")
    rest = word.removesuffix(ending)
    if not ending or _measure(rest) <= 1 or (ending == "ion" and not rest.endswith(("s", "t"))):
        return word
    return rest


def _final_e(word: str) -> str:
    """Step 5."""
    if word.endswith("e"):
        measure = _measure(word[:-1])
        if measure > 1 or (measure == 1 and not _ends_short(word[:-1])):
            word = word[:-1]
    return word[:-1] if word.endswith("ll") and _measure(word) > 1 else word
