from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.client.data.prepare import prepare_store
from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.common.errors import DataError
from medfed.common.study import DataSection, PartitionSection, TaskSection
from medfed.simulations.partition import (
    SEPARATOR,
    Cohort,
    Partition,
    cohort_of,
    partition_patients,
    site_name,
)


def make_cohort(labels: list[int] | np.ndarray, **columns: list[str]) -> Cohort:
    number = len(labels)
    return Cohort(
        patients=tuple(f"{index:08d}" for index in range(number)),
        labels=np.asarray(labels, dtype=np.int64),
        num_images=np.ones(number, dtype=np.int64),
        columns={name: tuple(values) for name, values in columns.items()},
    )


def _sections(draw: st.DrawFn) -> tuple[Cohort, PartitionSection, int]:
    num_sites = draw(st.integers(1, 12))
    min_patients = draw(st.integers(1, 6))
    extra = draw(st.integers(0, 60))
    size = num_sites * min_patients + extra
    labels = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    section = PartitionSection(
        method=draw(st.sampled_from(["iid", "dirichlet", "quantity"])),
        num_sites=num_sites,
        min_patients=min_patients,
        alpha=draw(st.floats(1e-300, 1e300)),
        sigma=draw(st.floats(1e-300, 1e300)),
    )
    return make_cohort(labels), section, draw(st.integers(0, 2**63 - 1))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.composite(_sections)())
def test_partition_is_complete_disjoint_large_enough_and_repeatable(
    drawn: tuple[Cohort, PartitionSection, int],
) -> None:
    cohort, section, seed = drawn
    partition = partition_patients(cohort, section, seed=seed)
    everyone = [index for members in partition.sites.values() for index in members]
    assert sorted(everyone) == list(range(len(cohort.patients)))
    assert len(partition.sites) == section.num_sites
    assert list(partition.sites) == sorted(partition.sites)
    assert partition.left_out == {}
    for members in partition.sites.values():
        assert list(members) == sorted(members)
        assert len(members) >= section.min_patients
        assert all(type(index) is int for index in members)
    assert partition == partition_patients(cohort, section, seed=seed)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(["a", "b", "c d", "É", ""]), min_size=1, max_size=60))
def test_partition_natural_is_the_column(values: list[str]) -> None:
    cohort = make_cohort([0] * len(values), clinic=values)
    section = PartitionSection(method="natural", column="clinic", min_patients=3)
    expected = {
        name: tuple(index for index, other in enumerate(values) if other == value)
        for name, value in (("a", "a"), ("b", "b"), ("c-d", "c d"), ("e", "É"))
        if values.count(value) >= 3
    }
    if expected:
        partition = partition_patients(cohort, section, seed=0)
        assert partition.sites == expected
        assert list(partition.sites) == sorted(partition.sites)
        too_few = {v for v in values if v and values.count(v) < 3}
        assert set(partition.left_out) == too_few | ({"no clinic"} if "" in values else set())
    else:
        with pytest.raises(DataError, match="No site is left"):
            partition_patients(cohort, section, seed=0)


@pytest.mark.parametrize("method", ["iid", "dirichlet", "quantity"])
def test_partition_changes_with_the_seed(method: str) -> None:
    cohort = make_cohort([index % 3 for index in range(100)])
    section = PartitionSection.model_validate({"method": method})
    assert partition_patients(cohort, section, seed=1) != partition_patients(
        cohort, section, seed=2
    )


def test_partition_iid_sizes_differ_by_at_most_one() -> None:
    section = PartitionSection(method="iid", num_sites=4)
    partition = partition_patients(make_cohort([0] * 102), section, seed=0)
    assert [len(members) for members in partition.sites.values()] == [26, 26, 25, 25]


@pytest.mark.parametrize(
    ("num_sites", "first", "last"), [(9, "site-1", "site-9"), (10, "site-01", "site-10")]
)
def test_partition_pads_site_names(num_sites: int, first: str, last: str) -> None:
    section = PartitionSection(num_sites=num_sites, min_patients=1)
    sites = list(partition_patients(make_cohort([0] * 20), section, seed=0).sites)
    assert (sites[0], sites[-1]) == (first, last)


@pytest.mark.parametrize("method", ["iid", "dirichlet", "quantity"])
def test_partition_refuses_too_few_patients(method: str) -> None:
    section = PartitionSection.model_validate({"method": method, "num_sites": 4})
    with pytest.raises(DataError, match=r"at least 32 patients for 4 sites of 8.*got 31.*Lower"):
        partition_patients(make_cohort([0] * 31), section, seed=0)


def _natural(min_patients: int = 2, **columns: list[str]) -> Partition:
    cohort = make_cohort([0] * len(next(iter(columns.values()))), **columns)
    section = PartitionSection(method="natural", column="clinic", min_patients=min_patients)
    return partition_patients(cohort, section, seed=0)


def test_partition_natural_reports_what_it_leaves_out() -> None:
    mixed = SEPARATOR.join(("north", "south"))
    partition = _natural(clinic=["north"] * 20 + ["south"] * 20 + ["west", "", "  ", mixed])
    assert {name: len(members) for name, members in partition.sites.items()} == {
        "north": 20,
        "south": 20,
    }
    assert partition.left_out == {
        "west": "1 patient(s), fewer than min_patients = 2",
        "no clinic": "2 patient(s) without a value of clinic",
        "north and south": "1 patient(s) with images at several sites",
    }


def test_partition_natural_takes_blanks_and_spaces_for_no_difference() -> None:
    spaced = SEPARATOR.join(("", "north", "north "))
    assert _natural(clinic=["north", spaced]).sites == {"north": (0, 1)}


def test_partition_natural_refuses_a_column_that_differs_within_patients() -> None:
    mixed = SEPARATOR.join(("left", "right"))
    with pytest.raises(DataError, match="several for 2 of 22 patients"):
        _natural(clinic=["left"] * 10 + ["right"] * 10 + [mixed] * 2)


def test_partition_ignores_such_a_column_unless_it_is_the_natural_one() -> None:
    mixed = SEPARATOR.join(("left", "right"))
    assert len(_natural(clinic=["a"] * 5, side=[mixed] * 5).sites) == 1


def test_partition_natural_refuses_two_values_with_one_name() -> None:
    with pytest.raises(DataError, match=r"'St Mary' and 'st mary'.*Rename"):
        _natural(clinic=["St Mary"] * 3 + ["st mary"] * 3)


def test_partition_natural_refuses_when_no_site_is_left() -> None:
    with pytest.raises(DataError, match=r"at least 9 patients, got a: 3 patient.*Lower"):
        _natural(min_patients=9, clinic=["a"] * 3)


@pytest.mark.parametrize(
    ("columns", "hint"), [({"clinics": ["a"]}, "Did you mean clinics"), ({"x": ["a"]}, "It has: x")]
)
def test_partition_natural_refuses_an_unknown_column(
    columns: dict[str, list[str]], hint: str
) -> None:
    with pytest.raises(DataError, match=hint):
        _natural(**columns)


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=100))
def test_site_name_is_fit_for_files(value: str) -> None:
    name = site_name(value)
    assert 1 <= len(name) <= 64
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    assert name[0].isalnum()
    assert site_name(name) == name


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("vidir_modern", "vidir_modern"),
        ("Hôpital Nord", "hopital-nord"),
        ("../etc", "etc"),
        ("病院", "site-616b0d57"),  # printf 病院 | sha256sum
    ],
)
def test_site_name_of_examples(value: str, name: str) -> None:
    assert site_name(value) == name


def test_cohort_refuses_rows_that_do_not_fit() -> None:
    with pytest.raises(DataError, match=r"Expected 2 entries of column clinic.*got 1"):
        make_cohort([0, 1], clinic=["a"])
    with pytest.raises(DataError, match="sorted and each once"):
        Cohort(
            patients=("b", "a"),
            labels=np.zeros(2, dtype=np.int64),
            num_images=np.ones(2, dtype=np.int64),
            columns={},
        )


def _dataset(rows: list[tuple[str, tuple[str, ...], str]]) -> SourceDataset:
    return SourceDataset(
        name="made",
        licence="",
        citation="",
        classes=("x", "y", "z"),
        records=tuple(
            SourceRecord(
                record_id=str(number),
                patient_id=patient,
                labels=labels,
                source=str(number),
                read_image=lambda: np.zeros((16, 16), dtype=np.uint8),
                columns={"clinic": clinic},
            )
            for number, (patient, labels, clinic) in enumerate(rows)
        ),
        digest="0" * 64,
    )


@pytest.mark.parametrize("mode", ["multiclass", "multilabel"])
def test_cohort_of_store_counts_patients(tmp_path: Path, mode: str) -> None:
    rows = [
        ("p", ("x",), "north"),
        ("p", ("z",), "north"),
        ("p", ("z",), "south"),
        ("q", ("y",), "north"),
        ("r", ("z",), "south"),
        ("r", ("y",), "south"),  # a tie: the lower index
    ]
    if mode == "multilabel":
        rows += [("s", (), "south"), ("q", ("x", "y"), "north")]
    store = prepare_store(
        _dataset(rows),
        TaskSection.model_validate({"mode": mode, "classes": ["x", "y", "z"]}),
        DataSection(image_size=16),
        parent=tmp_path,
        pseudonym_key=b"key",
    )
    cohort = cohort_of(store)
    assert list(cohort.patients) == sorted(set(store.patients))
    pseudonym = {row[0]: store.patients[number] for number, row in enumerate(rows)}
    found = {
        patient: (
            int(cohort.labels[row]),
            int(cohort.num_images[row]),
            cohort.columns["clinic"][row],
        )
        for patient in pseudonym
        for row in [cohort.patients.index(pseudonym[patient])]
    }
    expected = {
        "p": (2, 3, f"north{SEPARATOR}south"),
        "q": (1, 1, "north"),
        "r": (1, 2, "south"),
    }
    if mode == "multilabel":
        expected |= {"q": (1, 2, "north"), "s": (3, 1, "south")}
    assert found == expected
