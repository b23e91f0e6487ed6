"""Reads what an arm's `vocabulary.json` says of how the sites agreed on their words."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SiteWords:
    """What one site answered when it was asked for words.

    Attributes:
        status: ok; refused by the site's policy; rejected by screening; failed.
        words: How many words it named; None if it named none.
        size: Bytes of its answer; None without one.
        epsilon: Spent by the site's data set after it; None without noise.
        reason: Code or message for anything but ok.
    """

    status: str
    words: int | None
    size: int | None
    epsilon: float | None
    reason: str


@dataclass(frozen=True)
class VocabularyFacts:
    """What an arm's `vocabulary.json` holds.

    Attributes:
        words: The agreed words, in their order.
        sites: Each site's answer; nothing where the words came from a public file.
    """

    words: tuple[str, ...]
    sites: Mapping[str, SiteWords]


def read_vocabulary_facts(table: Mapping[str, Any]) -> VocabularyFacts | None:
    """Read `vocabulary.json`; None if it is not there (an empty table).

    Raises:
        KeyError, TypeError, ValueError, AttributeError: A table of another form.
    """
    if not table:
        return None
    words = table["words"]
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise TypeError("expected a list of words")
    return VocabularyFacts(
        tuple(words), {str(site): _site_words(facts) for site, facts in table["sites"].items()}
    )


def _site_words(facts: Mapping[str, Any]) -> SiteWords:
    known = {key: facts.get(key) for key in ("words", "bytes", "epsilon")}
    return SiteWords(
        status=str(facts["status"]),
        words=None if known["words"] is None else int(known["words"]),
        size=None if known["bytes"] is None else int(known["bytes"]),
        epsilon=None if known["epsilon"] is None else float(known["epsilon"]),
        reason=str(facts.get("reason") or ""),
    )
