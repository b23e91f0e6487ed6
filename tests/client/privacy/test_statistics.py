"""Without noise: no number about few patients leaves, nor one that follows by subtraction."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.client.privacy.statistics import suppressed

LEAST = 5
NAN = float("nan")


def said(
    classes: list[float],
    *,
    patients: int = 100,
    images: int | None = None,
    per_patient: list[float] | None = None,
    mass: list[list[float]] | None = None,
    holders: list[list[float]] | None = None,
    one_class: bool = True,
) -> dict[str, list[float]]:
    sums = {
        "patients": [patients],
        "images": [patients if images is None else images],
        "images_per_patient": per_patient or [patients, 0, 0],
        "classes": classes,
        "intensities": mass or [[patients / 2, patients / 2]],
    }
    found = suppressed(
        {name: np.array(values, dtype=np.float64) for name, values in sums.items()},
        np.array(holders or [[patients, patients]], dtype=np.float64),
        least=LEAST,
        one_class=one_class,
    )
    return {name: array.tolist() for name, array in found.items()}


@pytest.mark.parametrize(
    ("classes", "one_class", "expected"),
    [
        ([60, 40], True, [60, 40]),
        ([95, 5], True, [95, 5]),
        # A class that few show, and then the other one, which few lack.
        ([96, 4], True, [NAN, NAN]),
        # What follows from the number of patients: the smallest of the others is left out too.
        ([50, 47, 3], True, [50, NAN, NAN]),
        ([50, 44, 3, 3], True, [50, 44, NAN, NAN]),
        ([50, 46, 2, 2], True, [50, NAN, NAN, NAN]),
        # 0 is fewer than 5.
        ([60, 40, 0], True, [60, NAN, NAN]),
        # Patients may have none of these: nothing follows from the number of patients.
        ([50, 40, 3], False, [50, 40, NAN]),
        # All but 3 have it.
        ([97, 40, 40], False, [NAN, 40, 40]),
    ],
)
def test_classes_of_few_patients_are_not_said(
    classes: list[float], one_class: bool, expected: list[float]
) -> None:
    np.testing.assert_array_equal(said(classes, one_class=one_class)["classes"], expected)


@pytest.mark.parametrize(
    ("bins", "expected"),
    [
        ([100, 0, 0], [100, 0, 0]),
        ([50, 50, 0], [50, 50, 0]),
        ([60, 37, 3], [60, NAN, NAN]),
        ([97, 3, 0], [NAN, NAN, 0]),
        ([60, 30, 4, 6], [60, 30, NAN, NAN]),
    ],
)
def test_bins_of_few_patients_are_not_said(bins: list[float], expected: list[float]) -> None:
    # With one hidden bin another has to go; with none left to hide behind, all of them.
    found = said([60, 40], per_patient=bins)["images_per_patient"]
    if not np.isfinite(expected).any() or expected == [NAN, NAN, 0]:
        assert np.isnan(found[:2]).all()
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("several", "is_said"), [(0, True), (1, False), (4, False), (5, True)])
def test_images_are_not_said_if_they_show_few_patients_with_several(
    several: int, is_said: bool
) -> None:
    found = said([60, 40], images=100 + 3 * several, per_patient=[100 - several, 0, several])
    assert np.isfinite(found["images"]).all() == is_said


def test_grey_levels_of_few_patients_count_as_none() -> None:
    found = said([60, 40], mass=[[40, 59.5, 0.5]], holders=[[80, 90, 4]])["intensities"]
    assert found == [[round(40 / 99.5, 4), round(59.5 / 99.5, 4), 0.0]]
    nothing = said([60, 40], mass=[[1.0, 0.0]], holders=[[1, 0]])["intensities"]
    assert np.isnan(nothing).all()


def test_nothing_is_said_of_few_patients() -> None:
    found = said([4, 0], patients=4)
    assert all(np.isnan(values).all() for values in found.values())
    assert np.isfinite(said([5, 0], patients=5)["patients"]).all()


@settings(max_examples=300, deadline=None)
@given(counts=st.lists(st.integers(0, 12), min_size=2, max_size=6))
def test_what_is_left_out_of_a_partition_follows_from_no_sum(counts: list[int]) -> None:
    # Every patient has one class, so the classes add up to the number of patients.
    patients = sum(counts)
    found = said(list(counts), patients=patients, per_patient=[patients, 0, 0])["classes"]
    shown = [count for count in found if not np.isnan(count)]
    hidden = patients - sum(shown)
    if patients < LEAST:
        assert shown == []
        return
    assert all(LEAST <= count <= patients - LEAST for count in shown)
    if len(shown) < len(counts) and shown:
        assert hidden >= LEAST
        assert len(counts) - len(shown) >= 2
