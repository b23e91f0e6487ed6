"""The store as sites have it: shifted images, wrong training labels, everything else untouched."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from medfed.client.data.prepare import prepare_store
from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.client.data.store import Store, verify_store
from medfed.common.errors import DataError
from medfed.common.study import DataSection, PartitionSection, StudyConfig, TaskSection
from medfed.common.study.shift import ShiftSection
from medfed.simulations.partition import cohort_of, partition_patients
from medfed.simulations.partition.seen import read_changes, store_as_seen
from medfed.simulations.partition.shift import shift_image, site_scanners
from medfed.simulations.sites import FakeHospitals, make_hospitals

CLASSES = ("x", "y", "z")


def make_dataset(*, splits: bool = False, order: int = 1) -> SourceDataset:
    """Ninety patients of one to three images, smooth pictures of an own brightness."""
    records = []
    for patient in range(90):
        for image in range(1 + patient % 3):
            picture = np.fromfunction(
                lambda y, x, k=patient: 60 + k + 40 * np.sin(x / 3) * np.cos(y / 4), (24, 24)
            ).astype(np.uint8)
            records.append(
                SourceRecord(
                    record_id=f"{patient:03d}-{image}",
                    patient_id=f"{patient:03d}",
                    labels=(CLASSES[patient % 3],),
                    source=f"{patient}-{image}",
                    read_image=lambda picture=picture: picture,
                    split=("test" if patient % 2 else "train") if splits else None,
                    columns={"clinic": "north" if patient % 2 else "south"},
                )
            )
    return SourceDataset(
        name="made",
        licence="",
        citation="",
        classes=CLASSES,
        records=tuple(records[::order]),
        digest=f"{order}{splits}".ljust(64, "0"),
    )


def prepare(dataset: SourceDataset, parent: Path) -> Store:
    return prepare_store(
        dataset,
        TaskSection(classes=CLASSES),
        DataSection(image_size=24),
        parent=parent,
        pseudonym_key=b"key",
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return prepare(make_dataset(), tmp_path)


def make_study(**partition: object) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "study": {"name": "made", "seed": 4},
            "task": {"classes": list(CLASSES)},
            "training": {"rounds": 1, "local_steps": 1},
            "simulation": {"dataset": "phantom", "partition": {"num_sites": 3, **partition}},
        }
    )


def see(store: Store, study: StudyConfig, hospitals: FakeHospitals) -> Store:
    assert study.simulation is not None
    return store_as_seen(store, hospitals.sites, study.simulation.partition, seed=study.study.seed)


def test_store_without_shift_and_noise_is_the_store_itself(store: Store) -> None:
    study = make_study()
    assert see(store, study, make_hospitals(store, study)) is store
    assert read_changes(store) == {"shift": {}, "noise": {}}


def test_a_site_that_the_official_split_leaves_one_side_is_told_what_would_help(
    tmp_path: Path,
) -> None:
    store = prepare(make_dataset(splits=True), tmp_path)
    with pytest.raises(DataError, match=r"north with 45 patient\(s\) has none to train") as caught:
        make_hospitals(store, make_study(method="natural", column="clinic"))
    assert "The data set's own split" in str(caught.value)
    assert "test_fraction" not in str(caught.value)  # it plays no part where there is a split


def test_store_as_seen_changes_images_of_sites_and_training_labels_alone(store: Store) -> None:
    study = make_study(
        method="natural", column="clinic", shift={"collimation": "circle"}, noise={"rate": 0.5}
    )
    hospitals = make_hospitals(store, study)
    seen = see(store, study, hospitals)
    assert (seen.patients, seen.record_ids, seen.columns) == (
        store.patients,
        store.record_ids,
        store.columns,
    )
    changed_N = (seen.images_NCHW != store.images_NCHW).any(axis=(1, 2, 3))
    assert changed_N.all()
    wrong_N = seen.labels != store.labels
    for name, rows in hospitals.sites.items():
        assert not wrong_N[list(rows.test)].any()
        assert wrong_N[list(rows.train)].any()
        noted = read_changes(seen)["noise"][name]
        assert noted["images"] == wrong_N[list(rows.train)].sum()
        assert noted["patients"] == len({store.patients[r] for r in rows.train if wrong_N[r]})
    assert seen.key != store.key
    verify_store(seen)
    # Found again, not made again; and the true store is as it was.
    assert see(store, study, hospitals).folder == seen.folder
    assert len(list(store.folder.parent.iterdir())) == 2


def test_store_as_seen_is_another_for_another_seed_or_strength(store: Store) -> None:
    study = make_study(shift={"strength": 1.0})
    hospitals = make_hospitals(store, study)
    weaker = make_study(shift={"strength": 0.5})
    other_seed = study.model_copy(update={"study": study.study.model_copy(update={"seed": 5})})
    keys = {see(store, one, hospitals).key for one in (study, weaker, other_seed)}
    assert len(keys) == 3


def test_label_noise_only_at_the_sites_named(store: Store) -> None:
    study = make_study(noise={"rate": 1.0, "pairs": {"x": "y"}, "sites": ["site-2"]})
    hospitals = make_hospitals(store, study)
    seen = see(store, study, hospitals)
    for name, rows in hospitals.sites.items():
        expected = store.labels[list(rows.train)].copy()
        if name == "site-2":
            expected[expected == 0] = 1
        np.testing.assert_array_equal(seen.labels[list(rows.train)], expected)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ({"rate": 0.1, "sites": ["site-4"]}, r"noise.sites: expected a site.*Did you mean site-"),
        ({"rate": 0.1, "pairs": {"w": "x"}}, r"noise.pairs: expected a class.*There are: x, y, z"),
        ({"rate": 0.1, "pairs": {"x": "x"}}, "x is taken for itself"),
    ],
)
def test_label_noise_refuses_what_is_not_there(
    store: Store, noise: dict[str, object], message: str
) -> None:
    study = make_study(noise=noise)
    with pytest.raises(DataError, match=message):
        see(store, study, make_hospitals(store, study))
    # Nothing half-made is left.
    assert len(list(store.folder.parent.iterdir())) == 1


def test_label_noise_refuses_several_labels_an_image(store: Store) -> None:
    study = make_study(noise={"rate": 0.1})
    hospitals = make_hospitals(store, study)
    several = dataclasses.replace(
        store, mode="multilabel", labels=np.eye(3, dtype=np.uint8)[store.labels]
    )
    with pytest.raises(DataError, match="one label an image, this is multilabel"):
        see(several, study, hospitals)


@pytest.mark.parametrize(
    "partition",
    [
        {},
        {"method": "dirichlet", "missing": {"num_classes": 1}},
        {"method": "pathological", "noise": {"rate": 0.3}},
        {"method": "temporal", "column": "clinic_number"},
    ],
    ids=lambda partition: str(partition.get("method", "iid")),
)
def test_partition_does_not_depend_on_the_order_of_rows(
    tmp_path: Path, partition: dict[str, object]
) -> None:
    numbered = [
        dataclasses.replace(
            dataset,
            records=tuple(
                dataclasses.replace(
                    record, columns={"clinic_number": str(int(record.patient_id) // 7)}
                )
                for record in dataset.records
            ),
        )
        for dataset in (make_dataset(), make_dataset(order=-1))
    ]
    first, second = (prepare(dataset, tmp_path) for dataset in numbered)
    assert first.record_ids != second.record_ids
    section = PartitionSection.model_validate(partition)
    parts = [partition_patients(cohort_of(store), section, seed=1) for store in (first, second)]
    assert parts[0] == parts[1]
    study = make_study(**partition)
    found = []
    for store in (first, second):
        hospitals = make_hospitals(store, study)
        seen = see(store, study, hospitals)
        found.append(
            {
                name: [{(seen.record_ids[r], int(seen.labels[r])) for r in side} for side in sides]
                for name, rows in hospitals.sites.items()
                for sides in [(rows.train, rows.test)]
            }
        )
    assert found[0] == found[1]


@pytest.mark.parametrize("method", ["iid", "dirichlet", "pathological", "quantity"])
def test_sites_keep_the_official_split(tmp_path: Path, method: str) -> None:
    store = prepare(make_dataset(splits=True), tmp_path)
    hospitals = make_hospitals(store, make_study(method=method, alpha=5.0))
    for rows in hospitals.sites.values():
        assert {store.splits[row] for row in rows.train} == {"train"}
        assert {store.splits[row] for row in rows.test} == {"test"}
    placed = [row for rows in hospitals.sites.values() for row in (*rows.train, *rows.test)]
    assert sorted(placed) == list(range(len(store)))


def test_scanners_of_four_sites_differ_and_stay_with_their_site() -> None:
    names = [f"site-{number}" for number in range(1, 5)]
    scanners = site_scanners(names, ShiftSection(), seed=3)
    for quantity, low, high in (("noise", 0.012, 0.075), ("gamma", 0.55, 1.8), ("heel", -0.1, 0.1)):
        quarters = {
            int(4 * (getattr(scanner, quantity) - low) / (high - low))
            for scanner in scanners.values()
        }
        assert quarters == {0, 1, 2, 3}
    assert scanners == site_scanners(names[::-1], ShiftSection(), seed=3)
    assert scanners != site_scanners(names, ShiftSection(), seed=4)


def _noise_of(picture: np.ndarray) -> float:
    """Standard deviation of what a pixel differs from its neighbours' mean by."""
    middle = picture[8:-8, 8:-8].astype(np.float64)
    around = (middle[:-2, 1:-1] + middle[2:, 1:-1] + middle[1:-1, :-2] + middle[1:-1, 2:]) / 4
    return float((middle[1:-1, 1:-1] - around).std() / np.sqrt(1.25))


def _flat_store(shape: tuple[int, ...], **facts: object) -> Store:
    """A store of one grey image [C, *S]."""
    whole: dict[str, object] = {
        "folder": Path(),
        "key": "",
        "classes": CLASSES,
        "mode": "multiclass",
        "images_NCHW": np.full((1, *shape), 128, dtype=np.uint8),
        "masks_NHW": None,
        "labels": np.zeros(1, dtype=np.int64),
        "patients": ("p",),
        "splits": ("",),
        "columns": {},
        "reports": ("",),
        "record_ids": ("r",),
        "num_quarantined": 0,
    }
    return Store(**{**whole, **facts})  # type: ignore[arg-type]


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_shift_puts_the_noise_of_the_scanner_into_the_image(strength: float) -> None:
    section = ShiftSection(strength=strength, collimation="none")
    store = _flat_store((1, 128, 128))
    for scanner in site_scanners(["a", "b", "c", "d"], section, seed=0).values():
        [picture] = shift_image(store, 0, scanner, section, seed=0)
        level = picture[8:-8, 8:-8].mean() / 255
        expected = 255 * scanner.noise * (0.5 + level)
        found = _noise_of(picture)
        # Brightness varies over the image (heel), which the mean level stands for; about 4 %.
        assert found == pytest.approx(expected, rel=0.12)
        for wrong in (2 / 3, 3 / 2):
            assert found != pytest.approx(expected * wrong, rel=0.12)


def test_shift_gives_the_same_image_again_and_another_of_another_record() -> None:
    section = ShiftSection()
    scanner = site_scanners(["a"], section, seed=0)["a"]
    store, other = _flat_store((1, 32, 32)), _flat_store((1, 32, 32), record_ids=("s",))
    first = shift_image(store, 0, scanner, section, seed=0)
    np.testing.assert_array_equal(first, shift_image(store, 0, scanner, section, seed=0))
    assert (first != shift_image(other, 0, scanner, section, seed=0)).any()


def test_shift_keeps_grey_grey_and_padding_black() -> None:
    section = ShiftSection()
    scanner = site_scanners(["a"], section, seed=1)["a"]
    store = _flat_store((3, 40, 30), shapes=np.array([[40, 20]]))
    image = shift_image(store, 0, scanner, section, seed=1)
    np.testing.assert_array_equal(image[0], image[1])
    np.testing.assert_array_equal(image[0], image[2])
    assert (image[:, :, 20:] == 128).all()  # not image: left as it was
    assert (image[:, 5:-5, 8:12] != 128).mean() > 0.9


def test_shift_exposes_each_view_by_itself_and_leaves_a_missing_one() -> None:
    section = ShiftSection(collimation="none")
    scanner = site_scanners(["a"], section, seed=1)["a"]
    facts = {"views": ("frontal", "lateral", "other"), "present": np.array([[1, 1, 0]], np.uint8)}
    image = shift_image(_flat_store((3, 32, 32), **facts), 0, scanner, section, seed=1)
    assert (image[0] != image[1]).mean() > 0.5
    assert (image[2] == 128).all()


def test_shift_of_a_volume_shuts_a_circle_and_draws_noise_by_slice() -> None:
    section = ShiftSection()
    scanner = dataclasses.replace(site_scanners(["a"], section, seed=1)["a"], border=0.07)
    [volume] = shift_image(_flat_store((1, 4, 48, 48)), 0, scanner, section, seed=1)
    shut = round(255 * scanner.border_level)
    assert (volume[:, 0, 0] == shut).all()
    assert (volume[:, 24, 10:38] != shut).mean() > 0.95
    assert (volume[0] != volume[1]).mean() > 0.5
