"""Text figures against NLTK, sacreBLEU and rouge-score, and exact over any split."""

import itertools
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer
from nltk.translate.bleu_score import corpus_bleu
from nltk.translate.meteor_score import single_meteor_score
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU

from medfed.common.metrics import TEXT_SHAPES, add_sums, text_metrics, text_sums
from medfed.common.metrics.stemming import stem
from medfed.common.metrics.sums import MetricSums
from medfed.common.metrics.text import (
    common_subsequence,
    matches_and_chunks,
    meteor_score,
    ngram_matches,
    rouge_l,
)


def words(text: str) -> list[str]:
    return text.split()


WORDS = words(
    "no pleural effusion effusions the heart is enlarged size of normal lungs are clear . "
    "opacity opacities in right left lower zone nodule nodules seen"
)
REFERENCE = words("no pleural effusion is seen . the heart size is normal .")
GENERATED = words("no effusion is seen . heart size is normal . lungs are clear .")

texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=14)
corpora = st.lists(st.tuples(texts, texts), min_size=1, max_size=6)


def sums_of(pairs: Sequence[tuple[list[str], list[str]]]) -> MetricSums:
    generated, references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return text_sums(generated, references, np.linspace(0, 1, len(pairs)))


@given(corpora)
@settings(max_examples=60, deadline=None)
def test_bleu_agrees_with_sacrebleu(pairs: list[tuple[list[str], list[str]]]) -> None:
    figures = text_metrics(sums_of(pairs))
    for order in range(1, 5):
        metric = BLEU(tokenize="none", smooth_method="none", max_ngram_order=order)
        score = metric.corpus_score(
            [" ".join(g) for g, _ in pairs], [[" ".join(r) for _, r in pairs]]
        )
        assert figures[f"bleu{order}"] == pytest.approx(score.score / 100, abs=1e-9)


def test_bleu_agrees_with_nltk() -> None:
    pairs = [(GENERATED, REFERENCE), (REFERENCE[:8], GENERATED), (WORDS, WORDS[::-1])]
    figures = text_metrics(sums_of(pairs))
    for order in range(1, 5):
        expected = corpus_bleu(
            [[r] for _, r in pairs], [g for g, _ in pairs], weights=[1 / order] * order
        )
        assert figures[f"bleu{order}"] == pytest.approx(expected)


def test_bleu_counts_a_repeated_word_as_often_as_the_reference_has_it() -> None:
    # Papineni et al., section 2.1: "the" seven times against a reference with two.
    assert ngram_matches(["the"] * 7, words("the cat is on the mat"), 1) == (2, 7)
    assert text_metrics(sums_of([(["the"] * 7, words("the cat is on the mat"))]))["bleu1"] == 2 / 7


def test_a_short_text_pays_the_brevity_penalty() -> None:
    figures = text_metrics(
        sums_of([(words("the lungs are clear"), words("the lungs are clear") * 2)])
    )
    assert figures["bleu4"] == pytest.approx(np.exp(1 - 8 / 4))
    assert figures["length_ratio"] == 0.5


@given(texts, texts)
@settings(max_examples=80, deadline=None)
def test_rouge_l_agrees_with_rouge_score(generated: list[str], reference: list[str]) -> None:
    splitting = SimpleNamespace(tokenize=str.split)
    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=splitting)
    score = scorer.score(" ".join(reference), " ".join(generated))["rougeL"]
    weight = 1.2**2
    total = score.recall + weight * score.precision
    expected = (1 + weight) * score.precision * score.recall / total if total else 0.0
    assert rouge_l(generated, reference) == pytest.approx(expected)


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_common_subsequence_is_that_of_the_plain_table(one: list[str], other: list[str]) -> None:
    table = np.zeros((len(one) + 1, len(other) + 1), dtype=int)
    for i, j in itertools.product(range(len(one)), range(len(other))):
        same = one[i] == other[j]
        table[i + 1, j + 1] = table[i, j] + 1 if same else max(table[i, j + 1], table[i + 1, j])
    assert common_subsequence(one, other) == table[-1, -1]


class NoSynonyms:
    """A WordNet in which no word has a synonym."""

    def synsets(self, word: str) -> list[str]:
        return []


def nltk_meteor(generated: list[str], reference: list[str]) -> float:
    stemmer = PorterStemmer(mode=PorterStemmer.ORIGINAL_ALGORITHM)
    return float(single_meteor_score(reference, generated, stemmer=stemmer, wordnet=NoSynonyms()))


def our_meteor(generated: list[str], reference: list[str]) -> float:
    counts = matches_and_chunks(generated, reference)
    return meteor_score(*counts, len(generated), len(reference))


@given(
    st.lists(st.sampled_from(WORDS[5:]), min_size=1, max_size=12, unique_by=stem),
    st.lists(st.sampled_from(WORDS[5:]), min_size=1, max_size=12, unique_by=stem),
)
@settings(max_examples=100, deadline=None)
def test_meteor_agrees_with_nltk_where_no_word_repeats(
    generated: list[str], reference: list[str]
) -> None:
    assert our_meteor(generated, reference) == pytest.approx(nltk_meteor(generated, reference))


def best_alignment(generated: list[str], reference: list[str]) -> tuple[int, int]:
    """The slow way: of all alignments with the most matches, the one with the fewest chunks."""
    for size in range(min(len(generated), len(reference)), 0, -1):
        chunks = [
            1 + sum((b[0] - a[0], b[1] - a[1]) != (1, 1) for a, b in itertools.pairwise(pairs))
            for ours in itertools.combinations(range(len(generated)), size)
            for theirs in itertools.permutations(range(len(reference)), size)
            if all(generated[i] == reference[j] for i, j in zip(ours, theirs, strict=True))
            for pairs in [list(zip(ours, theirs, strict=True))]
        ]
        if chunks:
            return size, min(chunks)
    return 0, 0


def test_meteor_matches_as_many_words_as_can_be_in_hardly_more_chunks_than_need_be() -> None:
    rng = np.random.default_rng(0)
    excess = []
    for _ in range(300):
        generated, reference = (
            rng.choice(["a", "b", "c"], rng.integers(0, 6)).tolist() for _ in range(2)
        )
        matches, chunks = matches_and_chunks(generated, reference)
        most, fewest = best_alignment(generated, reference)
        assert matches == most
        excess.append(chunks - fewest)
    assert min(excess) == 0
    # Words of a three-letter language repeat far more than those of reports.
    assert np.mean(excess) < 0.1


def test_meteor_of_stems_and_order() -> None:
    assert our_meteor(["effusions"], ["effusion"]) == pytest.approx(0.5)
    # Two chunks of six words: 1 - 0.5 * (2 / 6)**3.
    swapped = REFERENCE[6:9] + REFERENCE[1:4]
    straight = REFERENCE[1:4] + REFERENCE[6:9]
    assert our_meteor(swapped, straight) == pytest.approx(1 - 0.5 / 27)


def test_meteor_of_a_corpus_comes_from_its_counts() -> None:
    pairs = [(GENERATED, REFERENCE), (REFERENCE[:8], GENERATED)]
    counts = np.sum([matches_and_chunks(*pair) for pair in pairs], axis=0)
    lengths = sum(len(g) for g, _ in pairs), sum(len(r) for _, r in pairs)
    expected = meteor_score(int(counts[0]), int(counts[1]), *lengths)
    assert text_metrics(sums_of(pairs))["meteor"] == expected


@given(corpora, st.lists(st.integers(1, 5), max_size=3))
@settings(max_examples=60, deadline=None)
def test_sums_of_sites_in_any_order_equal_the_pooled_sums(
    pairs: list[tuple[list[str], list[str]]], cuts: list[int]
) -> None:
    losses = np.linspace(0, 3, len(pairs))
    generated, references = [g for g, _ in pairs], [r for _, r in pairs]
    pooled = text_sums(generated, references, losses)
    edges = sorted({0, len(pairs), *[cut for cut in cuts if cut < len(pairs)]})
    parts = [
        text_sums(generated[a:b], references[a:b], losses[a:b])
        for a, b in itertools.pairwise(edges)
    ]
    for order in (parts, parts[::-1]):
        total = add_sums(order)
        assert {n: v.tolist() for n, v in total.items()} == {
            n: v.tolist() for n, v in pooled.items()
        }
        assert text_metrics(total) == text_metrics(pooled)


def test_sum_shapes_are_those_of_the_sums() -> None:
    for pairs in ([(GENERATED, REFERENCE)], []):
        sums = sums_of(pairs)
        assert {name: array.shape for name, array in sums.items()} == TEXT_SHAPES
        assert all(array.dtype == np.int64 for array in sums.values())


def test_texts_that_share_nothing_or_hold_nothing_score_zero() -> None:
    for generated in ([], ["heart"]):
        figures = text_metrics(sums_of([(generated, ["lungs", "clear"])]))
        assert {figures[key] for key in ("bleu1", "bleu4", "rouge_l", "meteor")} == {0.0}
    assert text_metrics(sums_of([])) == {"num_images": 0.0}
