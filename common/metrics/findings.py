"""Which findings a report mentions, by phrases and negations; precision, recall and F1 of them.

A sentence at a time: a finding is mentioned if one of its phrases occurs (compared by stems, so
plurals count) and is not negated. A negation (no, without, free of, ...) reaches from where it
stands to the end of the sentence or to a word such as but, so it covers lists: no nodule, effusion
or pneumothorax. A few (absent, not seen, has resolved) act backwards on what stands just before.

Known limits: hedged findings (possible, cannot be excluded) count as mentioned, and so do findings
of the past or of someone else; a negation in the middle of a sentence also covers what is said
after it without a but; "no change in the effusion" is understood, other turns of that kind are
not; English only. The same labeller reads reference and generated text, so most of its errors
meet on both sides.

Reference: Chapman et al. 2001 (NegEx), https://doi.org/10.1006/jbin.2001.1029

Shapes: N reports, F findings.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from medfed.common.errors import StudyError
from medfed.common.metrics.stemming import stem
from medfed.common.metrics.sums import mean_of_defined, only_defined, ratio
from medfed.common.text import SENTENCE_END, tokenise

Phrase = tuple[str, ...]


def _phrases(*texts: str) -> tuple[Phrase, ...]:
    return tuple(tuple(text.split()) for text in texts)


_NEGATIONS = _phrases(
    "no", "not", "without", "neither", "nor", "never", "none", "free of", "clear of",
    "absence of", "absent", "negative for", "denies", "denied", "resolution of",
)  # fmt: skip
# They begin like a negation and deny something else.
_NOT_NEGATIONS = _phrases(
    "no change", "no interval change", "no significant change", "no significant interval change",
    "no increase", "no decrease", "not only", "not changed",
    "not significantly changed", "without change", "without significant change",
)  # fmt: skip
_NEGATIONS_BEHIND = _phrases(
    "absent", "not seen", "not identified", "not present", "not visualized", "not evident",
    "not demonstrated", "not appreciated", "no longer", "has resolved", "have resolved",
    "is ruled out", "was ruled out", "been ruled out",
)  # fmt: skip
_ENDS_OF_NEGATION = frozenset({"but", "however", "although", "though", "except", "aside", "apart"})
# effusion or pneumothorax is not seen: four words from the effusion on.
_REACH_BEHIND = 4


class FindingLabeller:
    """Finds findings in tokenised reports.

    Args:
        findings: Phrases by finding, e.g. {"effusion": ("effusion", "pleural fluid")}.

    Raises:
        StudyError: A finding without a phrase, or a phrase without a word.
    """

    def __init__(self, findings: Mapping[str, Sequence[str]]) -> None:
        self.names = tuple(findings)
        self._phrases_F = [_checked(name, phrases) for name, phrases in findings.items()]

    def __call__(self, words: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return which findings a report mentions, [F]."""
        found_F = np.zeros(len(self.names), dtype=bool)
        for sentence in _sentences(words):
            stems = tuple(map(stem, sentence))
            denied = _denied(sentence)
            for index, phrases in enumerate(self._phrases_F):
                found_F[index] |= any(
                    not denied[start] and not _denied_behind(sentence, start + len(phrase))
                    for phrase in phrases
                    for start in _occurrences(stems, phrase)
                )
        return found_F


def _checked(name: str, phrases: Sequence[str]) -> tuple[Phrase, ...]:
    words = [tokenise(phrase) for phrase in phrases]
    if not words or not all(words) or any(SENTENCE_END in phrase for phrase in words):
        raise StudyError(
            f"task.report.findings.{name}: expected phrases of one sentence, got {list(phrases)}. "
            f'E.g. {name} = ["{name}"].'
        )
    return tuple(tuple(map(stem, phrase)) for phrase in words)


def _sentences(words: Sequence[str]) -> list[Phrase]:
    sentences: list[list[str]] = [[]]
    for word in words:
        if word == SENTENCE_END:
            sentences.append([])
        else:
            sentences[-1].append(word)
    return [tuple(sentence) for sentence in sentences if sentence]


def _occurrences(words: Phrase, phrase: Phrase) -> list[int]:
    """Return where `phrase` starts in `words`."""
    last = len(words) - len(phrase)
    return [at for at in range(last + 1) if words[at : at + len(phrase)] == phrase]


def _starts(sentence: Phrase, at: int, phrases: tuple[Phrase, ...]) -> bool:
    return any(sentence[at : at + len(phrase)] == phrase for phrase in phrases)


def _denied(sentence: Phrase) -> list[bool]:
    """Return for each word whether a negation before it, or it, reaches it."""
    denied, reached = [], False
    for at, word in enumerate(sentence):
        if word in _ENDS_OF_NEGATION:
            reached = False
        elif not _starts(sentence, at, _NOT_NEGATIONS):
            reached |= _starts(sentence, at, _NEGATIONS) or word.endswith("n't")
        denied.append(reached)
    return denied


def _denied_behind(sentence: Phrase, end: int) -> bool:
    """Whether what ends before position `end` is denied by what follows it."""
    for at in range(end, min(end + _REACH_BEHIND, len(sentence))):
        if sentence[at] in _ENDS_OF_NEGATION:
            return False
        if _starts(sentence, at, _NEGATIONS_BEHIND):
            return True
    return False


def finding_metrics(tables_F22: npt.NDArray[np.int64], names: tuple[str, ...]) -> dict[str, float]:
    """Return finding_precision, finding_recall and finding_f1: over all findings, and of each.

    Over all findings is micro-averaged: every mention counts the same; finding_f1_macro is the
    mean of the findings' own. Keys of one finding end with /<name>.

    Args:
        tables_F22: Reports by (mentioned in the reference, in the generated text).
        names: The findings.
    """
    figures = _figures(tables_F22.sum(axis=0))
    each = {name: _figures(table) for name, table in zip(names, tables_F22, strict=True)}
    figures["finding_f1_macro"] = mean_of_defined(part["finding_f1"] for part in each.values())
    for name, part in each.items():
        figures |= {f"{key}/{name}": value for key, value in part.items()}
    return only_defined(figures)


def _figures(table_22: npt.NDArray[np.int64]) -> dict[str, float | None]:
    (_, invented), (missed, right) = table_22.tolist()
    return {
        "finding_precision": ratio(right, right + invented),
        "finding_recall": ratio(right, right + missed),
        "finding_f1": ratio(2 * right, 2 * right + missed + invented),
    }
