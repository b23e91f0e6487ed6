"""The stemmer is Porter's: word for word NLTK's in the mode of the paper."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer

from medfed.common.metrics.stemming import stem

THEIRS = PorterStemmer(mode=PorterStemmer.ORIGINAL_ALGORITHM)
STEMS = (
    "effus",
    "opac",
    "rel",
    "condit",
    "hop",
    "fal",
    "troubl",
    "ply",
    "toy",
    "adjust",
    "y",
    "agr",
)
ENDINGS = (
    "", "s", "es", "ies", "sses", "ss", "eed", "ed", "ing", "ated", "bling", "izing", "ll", "y",
    "ational", "tional", "enci", "anci", "izer", "abli", "alli", "entli", "eli", "ousli",
    "ization", "ation", "ator", "alism", "iveness", "fulness", "ousness", "aliti", "iviti",
    "biliti", "icate", "ative", "alize", "iciti", "ical", "ful", "ness", "al", "ance", "ence",
    "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "sion", "tion", "ion", "ou", "ism",
    "ate", "iti", "ous", "ive", "ize", "e",
)  # fmt: skip


def test_stem_agrees_with_nltk_on_every_ending() -> None:
    words = {head + end for head, end in itertools.product(STEMS, ENDINGS)}
    assert len(words) > 500
    for word in words:
        if len(word) > 2:
            assert stem(word) == THEIRS.stem(word), word


@given(st.text("abcdefghijklmnopqrstuvwxyz'0123456789\u00e9", min_size=3, max_size=14))
@settings(max_examples=500, deadline=None)
def test_stem_agrees_with_nltk_on_any_letters(word: str) -> None:
    assert stem(word) == THEIRS.stem(word)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("effusion", "effusions"), "effus"),
        (("opacity", "opacities"), "opac"),
        (("enlarged", "enlarge", "enlarging"), "enlarg"),
        (("as", "is", "t4"), None),
    ],
)
def test_stem_brings_forms_of_a_word_together(words: tuple[str, ...], expected: str | None) -> None:
    for word in words:
        assert stem(word) == (expected or word)
