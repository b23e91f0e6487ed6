"""What each method and each modifier promises of every single partition, whatever the seed."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from medfed.common.errors import DataError
from medfed.common.study import PartitionSection
from medfed.simulations.partition import SEPARATOR, Cohort, Partition, partition_patients

DRAWN = ("iid", "dirichlet", "quantity", "pathological")
METHODS = (*DRAWN, "natural", "scanner", "temporal")


def make_cohort(labels: list[int] | np.ndarray, **columns: list[str]) -> Cohort:
    number = len(labels)
    num_classes = int(np.max(labels)) + 1
    return Cohort(
        patients=tuple(f"{index:08d}" for index in range(number)),
        labels=np.asarray(labels, dtype=np.int64),
        num_images=np.ones(number, dtype=np.int64),
        columns={name: tuple(values) for name, values in columns.items()},
        classes=tuple("abcdefghij"[:num_classes]),
        seen_PL=np.asarray(labels)[:, None] == np.arange(num_classes),
    )


def divide(cohort: Cohort, *, seed: int = 0, **section: object) -> Partition:
    return partition_patients(cohort, PartitionSection.model_validate(section), seed=seed)


def classes_of(cohort: Cohort, partition: Partition) -> dict[str, set[int]]:
    return {
        name: set(cohort.labels[list(members)].tolist())
        for name, members in partition.sites.items()
    }


def num_left_out(partition: Partition) -> int:
    """Every reason begins with how many patients it is about; of a lost site, `left` of them."""
    return sum(int(reason.split(" ")[0]) for reason in partition.left_out.values())


@st.composite
def cases(draw: st.DrawFn) -> tuple[Cohort, PartitionSection, int]:
    method, missing = draw(st.sampled_from(METHODS)), draw(st.booleans())
    num_sites, min_patients = draw(st.integers(2, 6)), draw(st.integers(1, 5))
    size = num_sites * min_patients + draw(st.integers(20, 80))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    labels = rng.integers(0, draw(st.integers(1, 7)), size)
    labels[0] = labels.max()
    cohort = make_cohort(
        labels,
        clinic=rng.choice(["north", "south", "west", ""], size).tolist(),
        scanner=rng.choice(["A 1", "a  1", "B"], size).tolist(),
        date=[f"20{n % 100:02d}-01-01" for n in rng.integers(10, 30, size)],
    )
    table = {
        "method": method,
        "num_sites": num_sites,
        "min_patients": min_patients,
        "alpha": draw(st.floats(1e-3, 1e3)),
        "sigma": draw(st.floats(0.01, 10)),
        "exponent": draw(st.floats(0.01, 10)),
        "classes_per_site": draw(st.integers(1, 3)),
        "column": {"natural": "clinic", "temporal": "date"}.get(method, ""),
    }
    if method not in ("natural", "scanner"):
        laws = ["auto", "lognormal", "power"] + ["equal"] * (method != "quantity")
        table["sizes"] = draw(st.sampled_from(laws))
    if method != "pathological" and labels.max() > 1 and missing:
        table["missing"] = {"num_classes": 1}
    return cohort, PartitionSection.model_validate(table), draw(st.integers(0, 2**63 - 1))


def _divide_or_refuse(cohort: Cohort, section: PartitionSection, seed: int) -> Partition | None:
    """The partition, or None where classes are too few for what is asked of them."""
    try:
        return partition_patients(cohort, section, seed=seed)
    except DataError as error:
        if section.missing is None and section.method != "pathological":
            raise
        if "Lower" not in str(error):
            raise
        return None


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(cases())
def test_partition_places_or_lists_every_patient_once(
    case: tuple[Cohort, PartitionSection, int],
) -> None:
    cohort, section, seed = case
    partition = _divide_or_refuse(cohort, section, seed)
    if partition is None:
        return
    everyone = [index for members in partition.sites.values() for index in members]
    assert len(everyone) == len(set(everyone))
    assert len(everyone) + num_left_out(partition) == len(cohort.patients)
    assert all(len(members) >= section.min_patients for members in partition.sites.values())
    assert all(list(members) == sorted(members) for members in partition.sites.values())
    assert list(partition.sites) == sorted(partition.sites)
    if section.method in DRAWN:
        assert len(partition.sites) == section.num_sites
    assert partition == partition_patients(cohort, section, seed=seed)


@pytest.mark.parametrize("sizes", ["equal", "lognormal", "power"])
@pytest.mark.parametrize(("num_sites", "each"), [(5, 2), (10, 3), (4, 1), (7, 10)])
def test_pathological_site_has_exactly_so_many_classes(
    sizes: str, num_sites: int, each: int
) -> None:
    cohort = make_cohort(np.repeat(np.arange(10), 30))
    for seed in range(20):
        partition = divide(
            cohort,
            seed=seed,
            method="pathological",
            num_sites=num_sites,
            classes_per_site=each,
            sizes=sizes,
            min_patients=1,
        )
        held = classes_of(cohort, partition)
        assert {len(classes) for classes in held.values()} == {each}
        # As many sites for one class as for any other.
        times = Counter(label for classes in held.values() for label in classes)
        counts = [times[label] for label in range(10)]
        assert max(counts) - min(counts) <= 1
        assert num_left_out(partition) == 30 * counts.count(0)


def test_pathological_divides_a_class_equally_among_its_sites() -> None:
    labels = np.repeat(np.arange(4), 40)
    partition = divide(make_cohort(labels), method="pathological", num_sites=8, classes_per_site=2)
    for label in range(4):
        counts = [int((labels[list(m)] == label).sum()) for m in partition.sites.values()]
        assert sorted(counts) == [0, 0, 0, 0, 10, 10, 10, 10]


def test_pathological_gives_a_rare_class_to_no_more_sites_than_it_has_patients() -> None:
    labels = np.repeat([0, 1, 2, 3], [60, 60, 60, 2])
    cohort = make_cohort(labels)
    for seed in range(20):
        partition = divide(
            cohort, seed=seed, method="pathological", num_sites=6, classes_per_site=2
        )
        held = classes_of(cohort, partition)
        assert {len(classes) for classes in held.values()} == {2}
        assert sum(3 in classes for classes in held.values()) <= 2


def test_pathological_fills_up_with_the_classes_that_a_site_has() -> None:
    labels = np.repeat([0, 1], [100, 100])
    cohort = make_cohort(labels)
    for seed in range(10):
        partition = divide(
            cohort,
            seed=seed,
            method="pathological",
            num_sites=8,
            classes_per_site=1,
            sizes="power",
            exponent=5.0,
            min_patients=10,
        )
        assert min(map(len, partition.sites.values())) == 10
        assert {len(classes) for classes in classes_of(cohort, partition).values()} == {1}


@pytest.mark.parametrize(
    ("labels", "section", "message"),
    [
        ([0] * 50, {"classes_per_site": 2}, r"at least 2 classes.*got 1.*Lower"),
        ([0] * 48 + [1] * 2, {"classes_per_site": 2}, r"classes of 2, 48 patients.*Lower"),
        ([0, 1, 2, 3] * 2 + [0] * 40, {"classes_per_site": 1}, r"no other has one to spare"),
    ],
)
def test_pathological_refuses_what_cannot_be(
    labels: list[int], section: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        divide(make_cohort(labels), method="pathological", num_sites=4, **section)


@pytest.mark.parametrize("method", ["iid", "dirichlet", "quantity"])
def test_missing_classes_are_at_no_site_that_lacks_them(method: str) -> None:
    cohort = make_cohort([index % 4 for index in range(400)])
    lacks = {"site-1": ["a"], "site-3": ["b", "d"]}
    partition = divide(cohort, method=method, missing={"at_sites": lacks})
    held = classes_of(cohort, partition)
    assert not held["site-1"] & {0}
    assert not held["site-3"] & {1, 3}
    # Nobody is lost: they are at the other sites.
    assert sum(map(len, partition.sites.values())) == 400
    assert partition.left_out == {}


def test_missing_classes_are_drawn_so_many_a_site_and_none_everywhere() -> None:
    cohort = make_cohort([index % 5 for index in range(1000)])
    drawn = set()
    for seed in range(20):
        partition = divide(cohort, seed=seed, num_sites=6, missing={"num_classes": 2})
        held = classes_of(cohort, partition)
        assert {len(classes) for classes in held.values()} == {3}
        assert set.union(*held.values()) == set(range(5))
        drawn.add(tuple(map(frozenset, held.values())))
    assert len(drawn) == 20


def test_missing_class_leaves_real_hospitals_and_is_listed() -> None:
    labels = [0, 1] * 30
    cohort = make_cohort(labels, clinic=["north", "north", "south", "south"] * 15)
    partition = divide(
        cohort, method="natural", column="clinic", missing={"at_sites": {"south": ["b"]}}
    )
    assert classes_of(cohort, partition) == {"north": {0, 1}, "south": {0}}
    assert partition.left_out == {
        "south, missing classes": "15 patient(s) of classes that the site lacks"
    }
    assert (
        partition.sites["north"] == divide(cohort, method="natural", column="clinic").sites["north"]
    )


def test_missing_class_is_lacked_by_whoever_shows_it_beside_another() -> None:
    # Primary class a, but some show b too: they may not be where b is missing.
    seen_PL = np.tile([[True, False], [True, True]], (50, 1))
    cohort = Cohort(
        patients=tuple(f"{index:08d}" for index in range(100)),
        labels=np.zeros(100, dtype=np.int64),
        num_images=np.ones(100, dtype=np.int64),
        columns={},
        classes=("a", "b"),
        seen_PL=seen_PL,
    )
    partition = divide(cohort, num_sites=2, missing={"at_sites": {"site-2": ["b"]}})
    assert not seen_PL[list(partition.sites["site-2"]), 1].any()
    assert sum(map(len, partition.sites.values())) == 100


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ({"at_sites": {"site-9": ["a"]}}, r"at_sites: expected a site.*Did you mean site-"),
        ({"at_sites": {"site-1": ["z"]}}, r"at_sites.site-1: expected a class.*There are: a, b"),
        ({"num_classes": 2}, "would leave a class at no site"),
    ],
)
def test_missing_refuses_what_is_not_there(missing: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        divide(make_cohort([0, 1] * 50), missing=missing)


@pytest.mark.parametrize("sizes", ["equal", "lognormal", "power"])
def test_temporal_sites_follow_one_another_in_time(sizes: str) -> None:
    rng = np.random.default_rng(0)
    days = rng.integers(0, 400, 300)
    dates = [str(np.datetime64("2020-01-01") + int(day)) for day in days]
    partition = divide(
        make_cohort([0] * 300, when=dates), method="temporal", column="when", sizes=sizes
    )
    periods = [sorted(days[list(members)]) for members in partition.sites.values()]
    for earlier, later in itertools.pairwise(periods):
        assert earlier[-1] <= later[0]
    lengths = [len(period) for period in periods]
    assert sum(lengths) == 300
    if sizes == "equal":
        assert lengths == [75] * 4
    if sizes == "power":  # 300 / (1 + 1/2 + 1/3 + 1/4) = 144, 72, 48, 36
        assert lengths == [144, 72, 48, 36]


def test_temporal_takes_a_patient_at_the_first_date_and_leaves_out_who_has_none() -> None:
    both = SEPARATOR.join(("2024-05-01", "2019-01-01"))
    dates = ["2020-02-03"] * 20 + ["2022"] * 20 + [both, "", ""]
    partition = divide(
        make_cohort([0] * 43, when=dates), method="temporal", column="when", num_sites=2
    )
    assert 40 in partition.sites["site-1"]
    assert partition.left_out == {"no when": "2 patient(s) without a value of it"}


def test_temporal_reads_numbers_and_refuses_texts() -> None:
    numbers = [str(index / 7) for index in range(50)]
    partition = divide(
        make_cohort([0] * 50, age=numbers), method="temporal", column="age", num_sites=2
    )
    assert partition.sites["site-1"] == tuple(range(25))
    with pytest.raises(DataError, match=r"Expected dates.*column \"side\""):
        divide(make_cohort([0] * 50, side=["left"] * 50), method="temporal", column="side")


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("2019", "2019-02"),
        ("20191231", "2020-01-01"),
        ("2019-12-31T23:59:59", "2020-01-01"),
        ("2019-05-06", "2019-05-06T00:00:01"),
    ],
)
def test_temporal_orders_dates_of_different_precision(earlier: str, later: str) -> None:
    dates = [later] * 20 + [earlier] * 20
    partition = divide(
        make_cohort([0] * 40, when=dates), method="temporal", column="when", num_sites=2
    )
    assert partition.sites["site-1"] == tuple(range(20, 40))


def test_scanner_takes_maker_and_model_whatever_their_spelling() -> None:
    cohort = make_cohort(
        [0] * 40,
        Manufacturer=["SIEMENS", "Siemens ", "GE", "ge"] * 10,
        ManufacturerModelName=["Skyra", "skyra", "Optima  CT", "Optima CT"] * 10,
    )
    sites = divide(cohort, method="scanner").sites
    assert {name: len(members) for name, members in sites.items()} == {
        "ge-optima-ct": 20,
        "siemens-skyra": 20,
    }
    only_maker = divide(cohort, method="scanner", column="Manufacturer").sites
    assert list(only_maker) == ["ge", "siemens"]


def test_scanner_refuses_a_data_set_that_names_none() -> None:
    with pytest.raises(DataError, match=r"names the scanner.*got age.*simulation.partition.column"):
        divide(make_cohort([0] * 40, age=["1"] * 40), method="scanner")


def test_iid_with_lognormal_sizes_is_quantity() -> None:
    cohort = make_cohort([0, 1] * 200)
    assert divide(cohort, method="iid", sizes="lognormal") == divide(cohort, method="quantity")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"method": "temporal"}, 'expected column with method = "temporal"'),
        ({"method": "natural", "column": "x", "sizes": "power"}, "as large as they are"),
        ({"method": "quantity", "sizes": "equal"}, 'Set method = "iid"'),
        ({"method": "pathological", "missing": {"num_classes": 1}}, "lack the others already"),
        ({"missing": {}}, "one of num_classes and at_sites"),
        ({"missing": {"num_classes": 1, "at_sites": {"a": ["b"]}}}, "one of num_classes"),
        ({"noise": {"rate": 0}}, "greater than 0"),
        ({"shift": {"strength": 1.5}}, "less than or equal to 1"),
    ],
)
def test_section_refuses_what_contradicts_itself(table: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PartitionSection.model_validate(table)
