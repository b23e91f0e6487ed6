"""Text metrics as integer sums over reports; a federated figure equals the pooled one exactly.

BLEU and METEOR are defined on counts over the whole corpus (n-gram matches, lengths; word matches,
chunks), so their sums are exact. ROUGE-L is the mean of each report's score, in fixed point. Words
are those of `common.text.tokenise`, full stops included, and the reference is the whole report.

CIDEr is not here: it weighs each n-gram by the number of references that hold it, so a report's
score needs all sites' references first. Counting them would ship rare n-grams out of the hospital.

Shapes: N reports.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from medfed.common.metrics.stemming import stem
from medfed.common.metrics.sums import FIXED_POINT, Families, MetricSums, fixed, holds

Words = Sequence[str]

MAX_ORDER = 4
# As the COCO caption code has it, and with it most published report generators.
_ROUGE_BETA = 1.2

TEXT_SHAPES: dict[str, tuple[int, ...]] = {
    "count": (),
    "loss": (),
    "ngrams": (MAX_ORDER, 2),
    "words": (2,),
    "rouge_l": (),
    "meteor": (2,),
}
"""The shape of each array of `text_sums`, for screening what a site sent."""

TEXT_FAMILIES: Families = {"loss": ("loss",), "text": ("ngrams", "words", "rouge_l", "meteor")}
"""What a site releases together."""


def text_sums(
    generated_N: Sequence[Words], references_N: Sequence[Words], losses_N: npt.NDArray[np.float64]
) -> MetricSums:
    """Return the sums over N reports: the arrays that `TEXT_SHAPES` names.

    `ngrams` holds for each order the n-grams of the generated text that the reference has too
    (each at most as often as there) and all of them; `words` the lengths of generated texts and
    references; `meteor` the matched words and the chunks they lie in.
    """
    ngrams = np.zeros((MAX_ORDER, 2), dtype=np.int64)
    lengths = np.zeros(2, dtype=np.int64)
    meteor = np.zeros(2, dtype=np.int64)
    rouge = []
    for generated, reference in zip(generated_N, references_N, strict=True):
        ngrams += [ngram_matches(generated, reference, n + 1) for n in range(MAX_ORDER)]
        lengths += (len(generated), len(reference))
        meteor += matches_and_chunks(generated, reference)
        rouge.append(rouge_l(generated, reference))
    return {
        "count": np.array(len(losses_N), dtype=np.int64),
        "loss": np.array(fixed(losses_N).sum(), dtype=np.int64),
        "ngrams": ngrams,
        "words": lengths,
        "rouge_l": np.array(fixed(np.array(rouge, dtype=np.float64)).sum(), dtype=np.int64),
        "meteor": meteor,
    }


def text_metrics(sums: MetricSums) -> dict[str, float]:
    """Return num_images, loss, bleu1 to bleu4, rouge_l, meteor and length_ratio, as far as `sums`
    were released.

    length_ratio is generated over reference words: far below 1, the model stops early.
    """
    count = int(sums["count"])
    if count == 0:
        return {"num_images": 0.0}
    figures = {"num_images": float(count)}
    if "loss" in sums:
        figures["loss"] = int(sums["loss"]) / FIXED_POINT / count
    if holds(sums, TEXT_FAMILIES["text"]):
        figures |= _text_figures(sums, count)
    return figures


def _text_figures(sums: MetricSums, count: int) -> dict[str, float]:
    generated, reference = sums["words"].tolist()
    matches, chunks = sums["meteor"].tolist()
    figures = {
        "rouge_l": int(sums["rouge_l"]) / FIXED_POINT / count,
        "meteor": meteor_score(matches, chunks, generated, reference),
    }
    for order in range(1, MAX_ORDER + 1):
        figures[f"bleu{order}"] = bleu_score(sums["ngrams"][:order], generated, reference)
    if reference:
        figures["length_ratio"] = generated / reference
    return figures


def ngram_matches(generated: Words, reference: Words, order: int) -> tuple[int, int]:
    """Return (n-grams of `generated` found in `reference`, clipped; all of them)."""
    ours, theirs = (
        Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))
        for words in (generated, reference)
    )
    return (ours & theirs).total(), ours.total()


def bleu_score(ngrams: npt.NDArray[np.int64], generated: int, reference: int) -> float:
    """Return corpus BLEU up to the order of the last row, uniform weights, not smoothed.

    Args:
        ngrams: (matches, all) of each order.
        generated: Words of all generated texts.
        reference: Words of all references.

    Reference: Papineni et al. 2002, https://aclanthology.org/P02-1040
    """
    if (ngrams == 0).any():
        return 0.0
    brevity = min(0.0, 1 - reference / generated)
    return float(np.exp(brevity + np.log(ngrams[:, 0] / ngrams[:, 1]).mean()))


def rouge_l(generated: Words, reference: Words) -> float:
    """Return the F measure of the longest common subsequence; recall counts 1.44 times.

    Reference: Lin 2004, https://aclanthology.org/W04-1013
    """
    common = common_subsequence(generated, reference)
    if not common:
        return 0.0
    precision, recall = common / len(generated), common / len(reference)
    weight = _ROUGE_BETA**2
    return (1 + weight) * precision * recall / (recall + weight * precision)


def common_subsequence(one: Words, other: Words) -> int:
    """Return the length of the longest common subsequence, with one bit a word of `one`.

    Reference: Hyyro 2004, bit-parallel LCS-length computation revisited.
    """
    positions: dict[str, int] = {}
    for index, word in enumerate(one):
        positions[word] = positions.get(word, 0) | 1 << index
    full = (1 << len(one)) - 1
    row = full
    for word in other:
        hits = row & positions.get(word, 0)
        row = ((row + hits) | (row - hits)) & full
    return len(one) - row.bit_count()


def matches_and_chunks(generated: Words, reference: Words) -> tuple[int, int]:
    """Return METEOR's word matches (equal, then equal stems) and the chunks they lie in.

    A chunk is a run of matches that are neighbours in both texts. There are as many matches as
    can be; where a word occurs more than once, the longest run that starts there is taken, which
    gives few chunks, though not provably the fewest.
    """
    aligned: dict[int, int] = {}
    _align(generated, reference, aligned)
    _align([stem(word) for word in generated], [stem(word) for word in reference], aligned)
    pairs = sorted(aligned.items())
    runs = sum(
        before[0] + 1 != after[0] or before[1] + 1 != after[1] for before, after in pairwise(pairs)
    )
    return len(pairs), runs + bool(pairs)


def _align(generated: Words, reference: Words, aligned: dict[int, int]) -> None:
    """Add to `aligned` (position in generated: in reference) every free pair of equal words."""
    free = set(range(len(reference))) - set(aligned.values())

    def run(index: int, at: int) -> int:
        length = 0
        while (
            index + length < len(generated)
            and index + length not in aligned
            and at + length in free
            and generated[index + length] == reference[at + length]
        ):
            length += 1
        return length

    for index, word in enumerate(generated):
        if index in aligned:
            continue
        starts = [at for at in sorted(free) if reference[at] == word]
        lengths = [run(index, at) for at in starts]
        longest = max(lengths, default=0)
        for step in range(longest):
            aligned[index + step] = starts[lengths.index(longest)] + step
            free.remove(aligned[index + step])


def meteor_score(matches: int, chunks: int, generated: int, reference: int) -> float:
    """Return METEOR of a corpus from its counts; without synonyms, which need WordNet.

    Reference: Banerjee and Lavie 2005, https://aclanthology.org/W05-0909
    """
    if not matches:
        return 0.0
    precision, recall = matches / generated, matches / reference
    fragmentation = chunks / matches
    return 10 * precision * recall / (recall + 9 * precision) * (1 - 0.5 * fragmentation**3)
