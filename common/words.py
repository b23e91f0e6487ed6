"""What can be a word of an agreed vocabulary: no site names anything else, no server takes it."""

from medfed.common.text import SENTENCE_END, tokenise

MAX_WORD_LENGTH = 64


def is_word(word: str) -> bool:
    """Whether `word` is one word as `tokenise` returns it, or a sentence end, and not too long."""
    if len(word) > MAX_WORD_LENGTH:
        return False
    return word == SENTENCE_END or tokenise(word) == [word]
