"""Table E.1-1: every row is what the standard's dictionary says, and every row is handled."""

import itertools
from collections.abc import Iterator
from typing import Any

import pydicom
import pytest
from pydicom.datadict import dictionary_description, dictionary_has_tag, dictionary_VR
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from medfed.client.data.deidentification.engine import deidentify
from medfed.client.data.deidentification.profile import (
    CODES,
    Attribute,
    Option,
    attribute_of,
    attributes,
    edition,
    safe_private,
)
from medfed.client.data.deidentification.rules import Rules

_WILD = ("50xx,xxxx", "60xx,3000", "60xx,4000", "gggg,eeee")
_ROWS = [row for tag, row in attributes().items() if tag not in _WILD]
_OFFERED = [
    option
    for option in Option
    if option not in (Option.CLEAN_PIXEL_DATA, Option.CLEAN_VISUAL_FEATURES)
]
# Identity that every row's attribute is filled with, by VR.
_PLANTED: dict[str, Any] = {
    "DA": "19410207",
    "TM": "031415.9265",
    "DT": "19410207031415",
    "AS": "097Y",
    "UI": "1.2.826.0.1.77417741.1.2.3",
    "DS": "77417741",
    "IS": "77417741",
    "FD": 77417741.0,
    "FL": 7741.0,
    "UL": 77417741,
    "US": 7741,
    "OB": b"CANARY7741",
    "OW": b"CANARY7741",
    "UN": b"CANARY7741",
    "UR": "http://canary7741.example",
    "PN": "Canary7741^Anna",
}
_TRACES = ("CANARY", "7741", "19410207", "031415", "097Y")


def _tag(row: Attribute) -> int:
    return int(row.tag.replace(",", ""), 16)


def _plant(dataset: Dataset, row: Attribute) -> None:
    if row.vr == "SQ":
        item = Dataset()
        item.PatientName = "Canary7741^Anna"
        item.TextValue = "seen by Canary7741"
        item.ReferencedSOPInstanceUID = _PLANTED["UI"]
        dataset.add_new(_tag(row), "SQ", [item])
    else:
        dataset.add_new(_tag(row), row.vr, _PLANTED.get(row.vr, "CANARY7741"))


def _texts(dataset: Dataset) -> Iterator[str]:
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _texts(item)
        else:
            yield str(element.value).upper()


def _object() -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    dataset.PatientID = "77417741"
    return dataset


def test_table_has_every_row_of_its_edition() -> None:
    assert edition() == "2026c"
    assert len(attributes()) == 655


@pytest.mark.parametrize("row", _ROWS, ids=lambda row: row.tag)
def test_row_agrees_with_the_dictionary(row: Attribute) -> None:
    tag = _tag(row)
    if not dictionary_has_tag(tag):
        # Younger than pydicom's edition.
        assert row.vr
        return
    assert row.vr in dictionary_VR(tag)
    letters = str.maketrans("", "", " '’-/,()")  # noqa: RUF001
    mine, theirs = row.name.lower(), dictionary_description(tag).lower()
    assert mine.translate(letters)[:12] == theirs.translate(letters)[:12]


@pytest.mark.parametrize("row", _ROWS, ids=lambda row: row.tag)
def test_row_is_handled_by_the_basic_profile_at_any_depth(row: Attribute, key: bytes) -> None:
    for nested in (False, True):
        dataset = _object()
        holder = dataset
        if nested:
            holder = Dataset()
            dataset.PerFrameFunctionalGroupsSequence = [holder]
        _plant(holder, row)

        deidentify(dataset, Rules(options=()), key)

        left = [text for text in _texts(dataset) if any(trace in text for trace in _TRACES)]
        assert not left, f"{row.name} ({row.basic}) left {left}"
        if row.basic == "X" and (nested or row.tag not in ("0010,0010", "0010,0020")):
            assert _tag(row) not in holder
        if row.basic == "D":
            assert not holder[_tag(row)].is_empty
        if row.basic == "Z":
            assert _tag(row) in holder


_WITH_OPTIONS = [
    (row, option) for row, option in itertools.product(_ROWS, _OFFERED) if option in row.options
]


@pytest.mark.parametrize(
    ("row", "option"), _WITH_OPTIONS, ids=lambda value: getattr(value, "tag", str(value))
)
def test_row_is_handled_under_its_option(row: Attribute, option: Option, key: bytes) -> None:
    dataset = _object()
    _plant(dataset, row)

    deidentify(dataset, Rules(options=(option,)), key)

    action = row.options[option]
    if action == "K" and row.vr not in ("SQ", "AS"):
        assert dataset[_tag(row)].value == _PLANTED.get(row.vr, "CANARY7741")
    elif action == "C":
        left = [text for text in _texts(dataset) if "CANARY" in text or "19410207" in text]
        assert not left, f"{row.name} left {left}"


def test_wildcards_speak_of_every_repeating_group_and_private_tag() -> None:
    for group in range(0x5000, 0x5020, 2):
        assert attribute_of(Tag(group, 0x3000)) is attributes()["50xx,xxxx"]
    for group in range(0x6000, 0x6020, 2):
        assert attribute_of(Tag(group, 0x3000)) is attributes()["60xx,3000"]
        assert attribute_of(Tag(group, 0x0010)) is None
    assert attribute_of(Tag(0x0009, 0x1001)) is attributes()["gggg,eeee"]


def test_codes_are_those_of_cid_7050() -> None:
    # PS3.16 CID 7050: 113100 is the Basic Profile, then one code an option.
    assert sorted(value for value, _ in CODES.values()) == [
        str(code) for code in range(113101, 113113)
    ]
    assert all(len(meaning) <= 64 for _, meaning in CODES.values())


def test_safe_private_attributes_hold_no_text() -> None:
    assert len(safe_private()) > 300
    assert safe_private()[("SIEMENS MR HEADER", 0x0019, 0x0C)] == "IS"
    assert set(safe_private().values()) <= {
        *("CS", "DS", "IS", "FD", "FL", "SS", "US", "SL", "UL"),
    }
    assert pydicom.datadict.private_dictionary_VR(0x0019100C, "SIEMENS MR HEADER") == "IS"
