"""Reports as words and numbers: real texts, broken texts, and back again."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.common.errors import StudyError
from medfed.common.text import BEGIN, BLANK, END, PAD, UNKNOWN, Vocabulary, tokenise

REAL_DATA = Path(
    os.environ.get("MEDFED_TEST_DATA", Path(__file__).resolve().parents[2] / "../shared/data")
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("No pleural effusion; heart size 14.5 cm.", "no pleural effusion . heart size 14.5 cm ."),
        # Open-i: no space after the point, two points, a list, a removed name.
        ("in the left lung apex.There are", "in the left lung apex . there are"),
        ("No acute bone abnormality.. No", "no acute bone abnormality . no"),
        ("1. Emphysema. 2. Scar", "1 . emphysema . 2 . scar"),
        ("Dr. XXXX<XXXX>technologist at 3 p.m.", "dr . xxxx xxxx technologist at 3 p m ."),
        ("pneumothorax . XXXX right", "pneumothorax . xxxx right"),
        ("T-spine; 5.9cm, T12 (CTR 55%)", "t spine . 5.9 cm t12 ctr 55"),
        # The COVID set: characters broken by an earlier copy, thin spaces, one degree sign.
        ("fever (38\ufffdC) and dyspnea", "fever 38 c and dyspnea"),
        ("A 51\u2009years old (39.1\u2009\u2103)", "a 51 years old 39.1 c"),
        ("the patient\u2019s lung isn't", "the patient's lung isn't"),
        # Phantom styles.
        ("CXR: nodule 12 mm; no effusion;", "cxr nodule 12 mm . no effusion ."),
        ("FINDINGS\n\nLungs are\nclear", "findings . lungs are clear"),
        # Two ways to write the same letter; a soft hyphen; full-width digits and stop.
        ("Sa\u0301nchez opa\u00adcity \uff11\uff12\uff0e", "s\u00e1nchez opacity 12 ."),
        ("...", ""),
        (". Lungs", "lungs"),
        ("", ""),
        ("\ud800 \x00 \ufeff", ""),
    ],
)  # fmt: skip
def test_tokenise_gives_words_numbers_and_sentence_ends(text: str, words: str) -> None:
    assert tokenise(text) == words.split()


@given(st.text(max_size=40))
@settings(max_examples=400, deadline=None)
def test_tokenise_of_its_own_tokens_changes_nothing(text: str) -> None:
    tokens = tokenise(text)
    assert tokenise(" ".join(tokens)) == tokens
    assert all(token and not any(c.isspace() for c in token) for token in tokens)
    " ".join(tokens).encode()


@given(st.lists(st.text(min_size=1, max_size=8), max_size=12))
@settings(max_examples=200, deadline=None)
def test_text_survives_encoding_and_decoding(pieces: list[str]) -> None:
    tokens = tokenise(" ".join(pieces))
    vocabulary = Vocabulary(sorted(set(tokens)))
    ids = vocabulary.encode(" ".join(pieces), 100)
    assert vocabulary.tokens(ids) == tokens
    assert tokenise(vocabulary.decode(ids)) == tokens


def test_encode_pads_marks_the_ends_and_knows_what_it_does_not_know() -> None:
    vocabulary = Vocabulary(["clear", "lungs", "."])
    assert len(vocabulary) == 7
    ids = vocabulary.encode("Lungs hazy. Clear", 6)
    assert ids.dtype == np.int64
    assert ids.tolist() == [BEGIN, 5, UNKNOWN, 6, 4, END, PAD, PAD]
    assert vocabulary.tokens(ids) == ["lungs", BLANK, ".", "clear"]
    assert vocabulary.decode(ids) == "Lungs ___. Clear"


def test_encode_cuts_a_long_text_and_still_ends_it() -> None:
    vocabulary = Vocabulary(["a", "b"])
    assert vocabulary.encode("a b a b a", 3).tolist() == [BEGIN, 4, 5, 4, END]
    assert vocabulary.encode("", 2).tolist() == [BEGIN, END, PAD, PAD]


def test_decode_stops_at_the_end_and_writes_sentences() -> None:
    vocabulary = Vocabulary(["the", "heart", "is", "large", ".", "no", "effusion", "3.7"])
    ids = [BEGIN, 4, 5, 6, 7, 8, 9, 10, 11, 8, END, 5, 5]
    assert vocabulary.decode(ids) == "The heart is large. No effusion 3.7."
    assert vocabulary.decode([END]) == ""
    assert vocabulary.decode(np.array([PAD, 8, 8, 5])) == "Heart"


@pytest.mark.parametrize(
    "word", ["", "Lung", "<unk>", "two words", "...", "t-spine", "\ufffd", BLANK]
)
def test_vocabulary_refuses_what_is_no_word(word: str) -> None:
    with pytest.raises(StudyError, match="Vocabulary: expected single words"):
        Vocabulary(["lung", word])


def test_vocabulary_refuses_a_word_twice() -> None:
    with pytest.raises(StudyError, match="'lung' is there twice"):
        Vocabulary(["lung", "heart", "lung"])


def test_every_real_report_can_be_read_and_written_back() -> None:
    texts = []
    for name, columns in (
        ("iu_xray_openi/indiana_reports.csv", ("findings", "impression")),
        ("covid_chestxray/metadata.csv", ("clinical_notes",)),
    ):
        path = REAL_DATA / name
        if not path.is_file():
            pytest.skip(f"no real data at {path}; set MEDFED_TEST_DATA")
        with path.open(encoding="utf-8", newline="") as file:
            texts += [" ".join(row[c] for c in columns) for row in csv.DictReader(file)]
    reports = [tokenise(text) for text in texts]
    vocabulary = Vocabulary(sorted({word for words in reports for word in words}))
    # Words, not debris: nearly every token is a plain English word, a number or a point.
    plain = [w for w in vocabulary.words if w.isalpha() or w.replace(".", "").isdigit() or w == "."]
    assert len(plain) > 0.97 * len(vocabulary.words)
    for words in reports[::10]:
        ids = vocabulary.encode(" ".join(words), len(words))
        assert tokenise(vocabulary.decode(ids)) == words
