"""Reports as words: how text becomes tokens and numbers, and back.

    "No pleural effusion; heart size 14.5 cm." -> no pleural effusion . heart size 14.5 cm .

Everything that compares or counts words (vocabulary, training, metrics, findings) uses
`tokenise`, so that a word is the same thing everywhere.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from medfed.common.errors import StudyError

PAD, BEGIN, END, UNKNOWN = 0, 1, 2, 3
_NUM_RESERVED = 4

SENTENCE_END = "."
BLANK = "___"
"""How a word outside the vocabulary is shown; `tokenise` never returns it."""

# Not the points of 3.7 and p.m., but that of "apex.There"; a blank line ends a heading.
_ENDS = re.compile(r"[;!?]|\.(?!\d)|\n\s*\n")
_TOKENS = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_][^\W_]*(?:'[^\W\d_]+)*|(?<= )\.(?= )")
_APOSTROPHES = str.maketrans("\u2018\u2019\u02bc", "'''")


def tokenise(text: str) -> list[str]:
    """Return the lower-case words, numbers and sentence ends (".") of `text`.

    Numbers stay whole (3.7), words split at hyphens, and de-identified words (XXXX) are words;
    other punctuation is dropped. Compatibility forms are unified (NFKC); characters that were
    broken before we got them (U+FFFD) and invisible ones are dropped. Languages written without
    spaces are not split into words.
    """
    marked = _ENDS.sub(_mark, _normalised(text))
    lower = _normalised(marked.lower()).translate(_APOSTROPHES)
    tokens: list[str] = []
    for token in _TOKENS.findall(lower):
        if token != SENTENCE_END or (tokens and tokens[-1] != SENTENCE_END):
            tokens.append(token)
    return tokens


def _normalised(text: str) -> str:
    if text.isascii() and text.isprintable():
        return text
    kept = "".join(
        character
        for character in unicodedata.normalize("NFKC", text)
        if character.isspace()
        or (character != "\ufffd" and unicodedata.category(character)[0] != "C")
    )
    return unicodedata.normalize("NFKC", kept)


def _mark(end: re.Match[str]) -> str:
    """Set a sentence end between spaces; a point before a small letter is none."""
    following = end.string[end.end() : end.end() + 1]
    return "." if end[0] == "." and following.islower() else " . "


class Vocabulary:
    """The words that a model can read and write; ids count from 4, after the reserved ones.

    Args:
        words: In the agreed order, each as `tokenise` returns it.

    Raises:
        StudyError: A word twice, or one that `tokenise` never returns.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._ids = {word: _NUM_RESERVED + index for index, word in enumerate(self.words)}
        for word in self.words:
            if word != SENTENCE_END and tokenise(word) != [word]:
                raise StudyError(
                    f"Vocabulary: expected single words in lower case, got {word!r}. Write each "
                    f"as reports are split into words; here {tokenise(word)}."
                )
        if len(self._ids) != len(self.words):
            twice = next(word for word in self.words if self.words.count(word) > 1)
            raise StudyError(f"Vocabulary: {twice!r} is there twice. Name every word once.")

    def __len__(self) -> int:
        return _NUM_RESERVED + len(self.words)

    def encode(self, text: str, max_tokens: int) -> npt.NDArray[np.int64]:
        """Return BEGIN, the first `max_tokens` tokens, END, then PAD: int64 [max_tokens + 2].

        What the vocabulary does not hold becomes UNKNOWN.
        """
        ids = [self._ids.get(token, UNKNOWN) for token in tokenise(text)[:max_tokens]]
        encoded = np.full(max_tokens + 2, PAD, dtype=np.int64)
        encoded[: len(ids) + 2] = [BEGIN, *ids, END]
        return encoded

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Return the words of `ids` up to the first END; `BLANK` where one is UNKNOWN."""
        tokens = []
        for number in map(int, ids):
            if number == END:
                break
            if number >= _NUM_RESERVED:
                tokens.append(self.words[number - _NUM_RESERVED])
            elif number == UNKNOWN:
                tokens.append(BLANK)
        return tokens

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids` as one reads it: points at the words, capitals after them."""
        sentences: list[list[str]] = [[]]
        for token in self.tokens(ids):
            if token == SENTENCE_END:
                sentences.append([])
            else:
                sentences[-1].append(token)
        closed = [_sentence(words) + "." for words in sentences[:-1] if words]
        return " ".join(closed + [_sentence(words) for words in sentences[-1:] if words])


def _sentence(words: Sequence[str]) -> str:
    text = " ".join(words)
    first = text[0].upper()
    # Some letters have no single capital; reading the text back must give the same words.
    return first + text[1:] if first.lower() == text[0] else text


def finite_number(text: str) -> float | None:
    """Return the number that a cell of a table holds; None for words, nothing, NaN and infinity."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
