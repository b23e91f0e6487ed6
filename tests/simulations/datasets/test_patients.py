import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfed.simulations.datasets.patients import join_patients, keep_patients_whole


def test_records_that_share_a_key_through_others_are_one_patient() -> None:
    keys = {"a": ("p1", "x"), "b": ("p2",), "c": ("p3", "y"), "d": ("p4", "x", "y"), "e": ("p2",)}
    assert join_patients(keys) == {"a": "p1", "b": "p2", "c": "p1", "d": "p1", "e": "p2"}


@given(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=3), max_size=20))
def test_patients_are_the_connected_components(own: list[list[int]]) -> None:
    keys = {str(index): [str(key) for key in row] for index, row in enumerate(own)}
    patients = join_patients(keys)
    # The same, by spreading marks until nothing changes.
    marks = {key: key for row in keys.values() for key in row}
    for _ in marks:
        for row in keys.values():
            lowest = min(marks[key] for key in row)
            marks.update(dict.fromkeys(row, lowest))
    for one in keys:
        assert patients[one] in {key for row in keys.values() for key in row}
        for other in keys:
            same = marks[keys[one][0]] == marks[keys[other][0]]
            assert (patients[one] == patients[other]) == same


@pytest.mark.parametrize("both", ["train", "test"])
def test_a_patient_on_both_sides_goes_to_the_one_that_is_named(
    both: Any, caplog: pytest.LogCaptureFixture
) -> None:
    published: Any = {"a": "train", "b": "test", "c": None, "d": "test", "e": None}
    patients = {"a": "p", "b": "p", "c": "p", "d": "q", "e": "r"}
    with caplog.at_level(logging.WARNING):
        whole = keep_patients_whole(published, patients, both=both, name="SET")
    assert whole == {"a": both, "b": both, "c": both, "d": "test", "e": None}
    assert f"split of SET has patients on both sides: 1 of their image(s) move to {both}" in (
        caplog.text
    )


def test_a_split_that_respects_patients_stays_without_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    published: Any = {"a": "train", "b": "test"}
    patients = {"a": "p", "b": "q"}
    assert keep_patients_whole(published, patients, both="test", name="SET") == published
    assert caplog.text == ""
