"""The agreed vocabulary: the same in whatever order sites answer, and nothing odd in it."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.common.errors import RunError, UpdateError
from medfed.server.vocabulary import merge_vocabularies, screen_words

LISTS = st.dictionaries(
    st.sampled_from(["one", "two", "three", "four"]),
    st.lists(st.sampled_from("abcdefgh"), unique=True),
    min_size=1,
).filter(lambda lists: any(lists.values()))


@pytest.mark.parametrize(
    ("size", "expected"),
    [(9, "abcd"), (4, "abcd"), (3, "acd"), (2, "cd"), (1, "c")],
)
def test_merge_keeps_words_of_most_sites_then_by_the_alphabet(size: int, expected: str) -> None:
    # c: 3 sites, d: 2, a and b: 1 each.
    lists = {"one": ("a", "c"), "two": ("b", "c", "d"), "three": ("c", "d")}
    assert merge_vocabularies(lists, size) == tuple(expected)


def test_merge_does_not_depend_on_the_order_of_arrival() -> None:
    lists = {"one": ("b", "a"), "two": ("c", "b"), "three": ("d",), "none": ()}
    for order in itertools.permutations(lists):
        arrived = {site: tuple(reversed(lists[site])) for site in order}
        assert merge_vocabularies(arrived, 3) == ("a", "b", "c")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(LISTS, st.integers(1, 10), st.randoms(use_true_random=False))
def test_merge_is_a_plain_loops_whatever_the_order(
    lists: dict[str, list[str]], size: int, order: random.Random
) -> None:
    merged = merge_vocabularies(lists, size)
    named = {word: sum(word in words for words in lists.values()) for word in "abcdefgh"}
    left: list[str] = [word for word in "abcdefgh" if named[word]]
    plain = []
    while left and len(plain) < size:
        best = max(left, key=lambda word: (named[word], -ord(word)))
        plain.append(best)
        left.remove(best)
    assert merged == tuple(sorted(plain))
    sites = list(lists)
    order.shuffle(sites)
    assert merge_vocabularies({site: lists[site][::-1] for site in sites}, size) == merged


def test_merge_counts_a_site_once_for_a_word() -> None:
    assert merge_vocabularies({"one": ("b", "b", "b"), "two": ("a",), "three": ("a",)}, 1) == ("a",)


@pytest.mark.parametrize("lists", [{}, {"one": ()}, {"one": (), "two": ()}])
def test_merge_of_nothing_says_the_way_out(lists: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(RunError, match=r"min_patients.*public task.report.vocabulary"):
        merge_vocabularies(lists, 10)


def test_screen_words_passes_words_as_reports_are_split() -> None:
    words = ["no", "effusion", ".", "3.7", "xxxx", "patient's", "größe", "a" * 64]
    assert screen_words(words, 8) == tuple(words)
    assert screen_words((), 8) == ()


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (None, "list of words, got NoneType"),
        ("effusion", "list of words, got str"),
        ({"a": 1}, "list of words, got dict"),
        (["a", 7], "Word 1 of 2 is not text"),
        (["a", None], "Word 1 of 2 is not text"),
        (["a", b"b"], "Word 1 of 2 is not text"),
        (["a" * 65], "Word 0 of 1 has 65 characters"),
        (["a\x00b"], "is not one word"),
        (["a\n"], "is not one word"),
        (["a\u200bb"], "is not one word"),
        ([""], "is not one word"),
        ([" "], "is not one word"),
        (["no effusion"], "is not one word"),
        (["Effusion"], "is not one word"),
        (["___"], "is not one word"),
        (["<script>"], "is not one word"),
        ([","], "is not one word"),
        (["a", "b", "a"], "1 are twice"),
        (["a", "b", "c", "d"], "at most 3 words, got 4"),
    ],
)
def test_screen_words_refuses(words: object, fragment: str) -> None:
    with pytest.raises(UpdateError, match=fragment):
        screen_words(words, 3)


def test_screen_words_quotes_nothing_that_a_site_sent() -> None:
    for words in (["Zyxwvut Smith"], ["zyxwvut", "zyxwvut"], ["zyxwvut" * 20]):
        with pytest.raises(UpdateError) as error:
            screen_words(words, 3)
        assert "zyxwvut" not in str(error.value).lower()
