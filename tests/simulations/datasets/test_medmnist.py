import logging
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from medfed.client.data.prepare import prepare_store
from medfed.common.errors import DataError
from medfed.common.study import DataSection, TaskSection
from medfed.simulations.datasets.medmnist import load_medmnist
from medfed.simulations.datasets.medmnist_sets import MEDMNIST_SETS, SIZES, url_of

Arrays = dict[str, npt.NDArray[np.generic]]


def _arrays(
    *,
    size: int = 28,
    colour: bool = False,
    width: int = 1,
    num_classes: int = 2,
    dimensions: int = 2,
) -> Arrays:
    rng = np.random.default_rng(3)
    arrays: Arrays = {}
    for part, number in (("train", 5), ("val", 3), ("test", 4)):
        shape = (number, *(size,) * dimensions, *(3,) * colour)
        arrays[f"{part}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        arrays[f"{part}_labels"] = rng.integers(0, num_classes, (number, width), dtype=np.uint8)
    return arrays


def _save(folder: Path, arrays: Arrays, name: str = "pneumoniamnist") -> Path:
    np.savez(folder / f"{name}.npz", **arrays)
    return folder / f"{name}.npz"


def test_medmnist_reads_file_or_folder_and_splits_val_to_train(tmp_path: Path) -> None:
    arrays = _arrays()
    file = _save(tmp_path, arrays)
    dataset = load_medmnist("pneumoniamnist", file, tmp_path)
    assert dataset.digest == load_medmnist("pneumoniamnist", tmp_path, tmp_path).digest
    assert [r.split for r in dataset.records] == ["train"] * 8 + ["test"] * 4
    ids = [r.record_id for r in dataset.records]
    assert ids[4:6] == ["train-000004", "val-000000"]
    assert [r.patient_id for r in dataset.records] == ids
    names = ("normal", "pneumonia")
    labels = [*arrays["train_labels"], *arrays["val_labels"], *arrays["test_labels"]]
    assert [r.labels for r in dataset.records] == [(names[int(row[0])],) for row in labels]
    np.testing.assert_array_equal(dataset.records[5].read_image(), arrays["val_images"][0])
    assert dataset.records[5].source == "pneumoniamnist.npz val_images row 0"


def test_medmnist_gives_copies_one_patient_and_never_tests_on_a_trained_image(
    tmp_path: Path,
) -> None:
    arrays = _arrays()
    arrays["train_images"][3] = arrays["train_images"][1]  # within train
    arrays["test_images"][2] = arrays["val_images"][0]  # across the split
    arrays["test_images"][3] = arrays["test_images"][0]  # within test
    records = load_medmnist("pneumoniamnist", _save(tmp_path, arrays), tmp_path).records
    of = {r.record_id: (r.patient_id, r.split) for r in records}
    assert of["train-000003"] == ("train-000001", "train")
    assert of["test-000002"] == ("val-000000", "train")
    assert of["test-000003"] == ("test-000000", "test")
    assert len({r.patient_id for r in records}) == 12 - 3
    sides: dict[str, set[str | None]] = {}
    for record in records:
        sides.setdefault(record.patient_id, set()).add(record.split)
    assert all(len(side) == 1 for side in sides.values())


def test_medmnist_reads_multilabel_rows_and_colour(tmp_path: Path) -> None:
    arrays = _arrays(width=14)
    records = load_medmnist("chestmnist", _save(tmp_path, arrays, "chestmnist"), tmp_path).records
    classes = MEDMNIST_SETS["chestmnist"].classes
    for record, row in zip(records, arrays["train_labels"], strict=False):
        assert record.labels == tuple(c for c, on in zip(classes, row, strict=True) if on)
    colour = _save(tmp_path, _arrays(size=64, colour=True, num_classes=8), "bloodmnist_64")
    record = load_medmnist("bloodmnist_64", colour, tmp_path).records[0]
    assert record.read_image().shape == (64, 64, 3)


@pytest.mark.parametrize(("name", "size"), [("organmnist3d", 28), ("organmnist3d_64", 64)])
def test_medmnist_reads_volumes_into_a_store(tmp_path: Path, name: str, size: int) -> None:
    arrays = _arrays(size=size, num_classes=11, dimensions=3)
    dataset = load_medmnist(name, _save(tmp_path, arrays, name), tmp_path)
    assert dataset.dimensions == 3
    np.testing.assert_array_equal(dataset.records[5].read_image(), arrays["val_images"][0])
    classes = MEDMNIST_SETS["organmnist3d"].classes
    assert dataset.classes == classes
    assert dataset.records[0].labels == (classes[int(arrays["train_labels"][0, 0])],)
    store = prepare_store(
        dataset,
        TaskSection(classes=classes),
        DataSection(image_size=16, dimensions=3),
        parent=tmp_path / "stores",
        pseudonym_key=b"k" * 32,
    )
    assert (len(store), store.num_quarantined) == (12, 0)
    flat = _save(tmp_path, _arrays(size=size, num_classes=11), name)
    with pytest.raises(DataError, match=rf"\[N, {size}, {size}, {size}\] for {name}"):
        load_medmnist(name, flat, tmp_path)


def test_medmnist_warns_of_a_given_file_that_is_not_the_published_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        load_medmnist("pneumoniamnist", _save(tmp_path, _arrays()), tmp_path)
    assert "not the published pneumoniamnist" in caplog.text
    assert MEDMNIST_SETS["pneumoniamnist"].md5[28] in caplog.text


def test_medmnist_refuses_a_cached_file_that_is_not_the_published_one(tmp_path: Path) -> None:
    (tmp_path / "medmnist").mkdir()
    file = _save(tmp_path / "medmnist", _arrays())
    with pytest.raises(DataError, match=r"expected MD5|Expected MD5") as caught:
        load_medmnist("pneumoniamnist", None, tmp_path)
    assert str(file) in str(caught.value)
    assert file.exists()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("pneumonia", "pneumoniamnist"),
        ("pneumoniamnst", "Did you mean pneumoniamnist"),
        ("pneumoniamnist_32", "pneumoniamnist_64"),
        ("pneumoniamnist_28", "pneumoniamnist_64"),
        ("organmnist3d_128", "Expected organmnist3d or organmnist3d_64 "),
        ("organmnist", "Did you mean organ"),
        ("", "There are: pathmnist"),
    ],
)
def test_medmnist_refuses_an_unknown_name(tmp_path: Path, name: str, hint: str) -> None:
    with pytest.raises(DataError, match=hint):
        load_medmnist(name, None, tmp_path)


def _with(key: str, value: npt.NDArray[np.generic] | None) -> Arrays:
    arrays = _arrays()
    if value is None:
        del arrays[key]
    else:
        arrays[key] = value
    return arrays


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (_with("test_labels", None), "got no test_labels"),
        (_with("val_images", np.zeros((3, 64, 64), np.uint8)), r"val_images.*\[3, 64, 64\]"),
        (_with("val_images", np.zeros((3, 28, 28, 3), np.uint8)), "val_images: expected uint8"),
        (_with("val_images", np.zeros((3, 28, 28))), "got float64"),
        (_with("train_labels", np.zeros(5, np.uint8)), r"train_labels.*\[N, 1\].*\[5\]"),
        (_with("train_labels", np.zeros((5, 2), np.uint8)), r"\[5, 2\]"),
        (_with("train_labels", np.full((5, 1), 0.5)), "expected integers"),
        (
            _with("val_labels", np.array([[0], [1], [2]])),
            "val_labels, row 2: expected 0 to 1.*got 2",
        ),
        (_with("val_labels", np.array([[0], [-1], [1]])), "row 1.*got -1"),
        (_with("val_labels", np.zeros((2, 1), np.uint8)), "the 3 images of val_images, got 2"),
    ],
)
def test_medmnist_refuses_arrays_of_another_set(
    tmp_path: Path, arrays: Arrays, message: str
) -> None:
    file = _save(tmp_path, arrays)
    with pytest.raises(DataError, match=message) as caught:
        load_medmnist("pneumoniamnist", file, tmp_path)
    assert str(file) in str(caught.value)


def test_medmnist_never_unpickles(tmp_path: Path) -> None:
    arrays = _arrays()
    arrays["train_labels"] = np.array([[{"a": 1}]] * 5, dtype=object)
    with pytest.raises(DataError, match="cannot be read as a"):
        load_medmnist("pneumoniamnist", _save(tmp_path, arrays), tmp_path)


def test_medmnist_refuses_a_single_array(tmp_path: Path) -> None:
    with (tmp_path / "pneumoniamnist.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match="one array"):
        load_medmnist("pneumoniamnist", tmp_path, tmp_path)


def test_medmnist_names_the_file_whatever_bytes_are_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    file = tmp_path / "pneumoniamnist.npz"
    np.savez_compressed(file, **_arrays())
    whole = file.read_bytes()
    headers = [at for at in range(len(whole)) if whole[at : at + 2] == b"PK"]
    rng = np.random.default_rng(0)
    refused = []
    for trial in range(900):
        content = bytearray(whole)
        for _ in range(4):
            anywhere = int(rng.integers(len(whole)))
            in_header = min(len(whole) - 1, int(rng.choice(headers) + rng.integers(50)))
            content[in_header if trial % 3 == 0 else anywhere] = rng.integers(256)
        file.write_bytes(content[:anywhere] if trial % 3 == 1 else content)
        try:
            load_medmnist("pneumoniamnist", file, tmp_path)
        except DataError as error:
            refused.append(str(error))
    assert all(str(file) in message for message in refused)
    assert len(refused) > 700


def test_medmnist_table_is_complete() -> None:
    assert len(MEDMNIST_SETS) == 18
    sums = []
    for facts in MEDMNIST_SETS.values():
        assert tuple(facts.md5) == SIZES[facts.dimensions]
        sums += facts.md5.values()
    assert len(set(sums)) == len(sums) == 12 * 4 + 6 * 2
    assert all(len(md5) == 32 and set(md5) <= set("0123456789abcdef") for md5 in sums)
    assert all(name.endswith("3d") == (s.dimensions == 3) for name, s in MEDMNIST_SETS.items())
    others = {name: s.mode for name, s in MEDMNIST_SETS.items() if s.mode != "multiclass"}
    assert others == {"chestmnist": "multilabel", "retinamnist": "ordinal"}
    # Number of classes as in table 2 of Yang et al. 2023, https://doi.org/10.1038/s41597-022-01721-8
    counts = {name: len(facts.classes) for name, facts in MEDMNIST_SETS.items()}
    assert counts == {
        "pathmnist": 9,
        "chestmnist": 14,
        "dermamnist": 7,
        "octmnist": 4,
        "pneumoniamnist": 2,
        "retinamnist": 5,
        "breastmnist": 2,
        "bloodmnist": 8,
        "tissuemnist": 8,
        "organamnist": 11,
        "organcmnist": 11,
        "organsmnist": 11,
        "organmnist3d": 11,
        "nodulemnist3d": 2,
        "adrenalmnist3d": 2,
        "fracturemnist3d": 3,
        "vesselmnist3d": 2,
        "synapsemnist3d": 2,
    }
    assert url_of("pneumoniamnist").startswith("https://zenodo.org/records/10519652/files/")


def test_real_pneumoniamnist_has_the_counts_of_its_file(real_pneumoniamnist: Path) -> None:
    dataset = load_medmnist("pneumoniamnist", real_pneumoniamnist, real_pneumoniamnist)
    assert len(dataset.records) == 3512
    assert Counter(r.split for r in dataset.records) == {"train": 2824 + 314, "test": 374}
    # 17 groups of exact copies among 35 images, none of them across the split.
    sizes = Counter(r.patient_id for r in dataset.records).values()
    copies = [size for size in sizes if size > 1]
    assert (len(copies), sum(copies)) == (17, 35)
    with np.load(real_pneumoniamnist / "pneumoniamnist.npz", allow_pickle=False) as arrays:
        labels = arrays["test_labels"]
        assert labels.shape == (374, 1)
        np.testing.assert_array_equal(
            np.stack([r.read_image() for r in dataset.records[-374:]]), arrays["test_images"]
        )
    positive = sum(r.labels == ("pneumonia",) for r in dataset.records[-374:])
    assert positive == int(labels.sum())
