"""The prepared store: complete, reproducible, honest about what it could not use."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medfed.client.data.fitting import fit_image
from medfed.client.data.prepare import prepare_store, pseudonym
from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.client.data.store import open_store, read_quarantine
from medfed.common.errors import DataError, LeakageError, UnreadableImageError
from medfed.common.study import DataSection, TaskSection

TASK = TaskSection(classes=("a", "b"))
MULTILABEL = TaskSection(mode="multilabel", classes=("a", "b"))
IMAGE = DataSection(image_size=16)
KEY = b"key"


def picture(value: int) -> Callable[[], np.ndarray]:
    return lambda: np.full((20, 24), value, dtype=np.uint8)


def damaged() -> np.ndarray:
    raise UnreadableImageError("image 2: cut off in the middle")


def record(number: int, **values: object) -> SourceRecord:
    fields: dict[str, object] = {
        "record_id": f"image {number}",
        "patient_id": f"Doe^Jane^{number // 2}",
        "labels": ("a",) if number % 2 else ("b",),
        "source": f"image {number}",
        "read_image": picture(10 * number),
        **values,
    }
    return SourceRecord(**fields)  # type: ignore[arg-type]


def dataset(*records: SourceRecord, digest: str = "0" * 64) -> SourceDataset:
    return SourceDataset(
        name="test set",
        licence="none",
        citation="none",
        classes=("a", "b"),
        records=records,
        digest=digest,
    )


def content(parent: Path) -> dict[str, bytes]:
    """All files below a folder by path."""
    files = (path for path in sorted(parent.rglob("*")) if path.is_file())
    return {str(path.relative_to(parent)): path.read_bytes() for path in files}


def prepare(data: SourceDataset, parent: Path, *, strict: bool = False):  # type: ignore[no-untyped-def]
    return prepare_store(data, TASK, IMAGE, parent=parent, pseudonym_key=KEY, strict=strict)


def test_store_holds_every_image_with_its_label_and_patient(tmp_path: Path) -> None:
    store = prepare(dataset(*(record(n) for n in range(4))), tmp_path)
    assert store.images_NCHW.shape == (4, 1, 16, 16)
    assert [int(image.mean()) for image in store.images_NCHW] == [0, 10, 20, 30]
    assert store.labels.tolist() == [1, 0, 1, 0]
    assert store.patients[0] == store.patients[1] != store.patients[2]
    assert store.patients[0] == pseudonym(KEY, "patient", "Doe^Jane^0")


def test_store_is_prepared_once_and_anew_when_the_source_changes(tmp_path: Path) -> None:
    calls: list[int] = []

    def counting() -> np.ndarray:
        calls.append(1)
        return np.zeros((16, 16), np.uint8)

    one = dataset(record(0, read_image=counting), record(1))
    first = prepare(one, tmp_path)
    again = prepare(one, tmp_path)
    assert (first.folder, len(calls)) == (again.folder, 1)
    changed = prepare(dataset(*one.records, digest="1" * 64), tmp_path)
    assert changed.folder != first.folder
    smaller = prepare_store(
        one, TASK, DataSection(image_size=17), parent=tmp_path, pseudonym_key=KEY
    )
    assert smaller.folder != first.folder


def test_damaged_image_is_quarantined_counted_and_refused_when_strict(tmp_path: Path) -> None:
    data = dataset(record(0), record(1), record(2, read_image=damaged), record(3))
    store = prepare(data, tmp_path)
    assert (len(store), store.num_quarantined) == (3, 1)
    assert read_quarantine(store.folder) == [
        {"source": "image 2", "reason": "image 2: cut off in the middle"}
    ]
    with pytest.raises(UnreadableImageError, match=r"quarantine\.jsonl"):
        prepare(data, tmp_path, strict=True)
    with pytest.raises(UnreadableImageError, match="cut off"):
        prepare(data, tmp_path / "fresh", strict=True)
    assert list((tmp_path / "fresh").iterdir()) == []


def test_interrupted_preparation_leaves_no_store_and_goes_on_where_it_was(tmp_path: Path) -> None:
    def killed() -> np.ndarray:
        raise KeyboardInterrupt

    def must_not() -> np.ndarray:
        raise AssertionError("decoded twice")

    with pytest.raises(KeyboardInterrupt):
        prepare(dataset(record(0), record(1, read_image=killed)), tmp_path / "one")
    [aside] = (tmp_path / "one").iterdir()
    assert aside.name.startswith(".preparing-")
    prepare(dataset(record(0, read_image=must_not), record(1)), tmp_path / "one")
    prepare(dataset(record(0), record(1)), tmp_path / "other")
    assert content(tmp_path / "one") == content(tmp_path / "other")


@pytest.mark.parametrize(
    ("records", "error", "fragments"),
    [
        ((), DataError, ["no images", "--data"]),
        ((record(0), record(0)), DataError, ["image 0", "twice"]),
        ((record(0, labels=("zebra",)),), DataError, ["image 0", "zebra", "task.classes"]),
        ((record(0, labels=()),), DataError, ["image 0", "exactly one label"]),
        ((record(0, labels=("a", "b")),), DataError, ["image 0", "multilabel"]),
        (
            (record(0, split="train"), record(1, split="test")),
            LeakageError,
            ["image 1", "one side"],
        ),
        ((record(2, read_image=damaged),), DataError, ["None of the 1", "cut off"]),
    ],
)
def test_wrong_data_set_is_refused_by_name(
    tmp_path: Path, records: tuple[SourceRecord, ...], error: type[Exception], fragments: list[str]
) -> None:
    with pytest.raises(error) as caught:
        prepare(dataset(*records), tmp_path)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_multilabel_store_takes_any_number_of_labels(tmp_path: Path) -> None:
    records = (record(0, labels=()), record(1, labels=("b", "a")), record(2, labels=("b",)))
    store = prepare_store(dataset(*records), MULTILABEL, IMAGE, parent=tmp_path, pseudonym_key=KEY)
    assert store.labels.tolist() == [[0, 0], [1, 1], [0, 1]]


def test_store_holds_no_patient_key(tmp_path: Path) -> None:
    store = prepare(dataset(*(record(n) for n in range(4))), tmp_path)
    content = b"".join(path.read_bytes() for path in store.folder.iterdir())
    assert b"Doe" not in content
    assert b"Jane" not in content


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("store.json", b"{"),
        ("store.json", b'{"format": 99}'),
        ("records.jsonl", b'{"patient": "x"'),
        ("records.jsonl", b""),
        ("images.npy", b"\x93NUMPY garbage"),
    ],
)
def test_damaged_store_is_refused_with_the_way_out(
    tmp_path: Path, name: str, content: bytes
) -> None:
    store = prepare(dataset(record(0), record(1)), tmp_path)
    (store.folder / name).write_bytes(content)
    with pytest.raises(DataError, match="prepare it again"):
        open_store(store.folder)


def test_store_key_depends_on_the_pseudonym_key(tmp_path: Path) -> None:
    data = dataset(record(0), record(1))
    one = prepare_store(data, TASK, IMAGE, parent=tmp_path, pseudonym_key=b"1")
    other = prepare_store(data, TASK, IMAGE, parent=tmp_path, pseudonym_key=b"2")
    assert one.patients != other.patients
    header = json.loads((one.folder / "store.json").read_text())
    assert header["num_patients"] == 1


@pytest.mark.parametrize(
    ("pixels", "channels", "expected"),
    [
        (np.full((8, 9), 7, np.uint8), 1, 7),
        (np.full((16, 16), 7.4, np.float32), 1, 7),
        (np.full((16, 16), 300.0), 1, 255),
        (np.full((16, 16, 3), 9, np.uint8), 3, 9),
        (np.full((16, 16), 9, np.uint8), 3, 9),
        (np.full((30, 20, 3), 9, np.uint8), 1, 9),
    ],
)
def test_fit_image_gives_the_stored_shape(pixels: np.ndarray, channels: int, expected: int) -> None:
    fitted = fit_image(pixels, DataSection(image_size=16, channels=channels), "x")  # type: ignore[arg-type]
    assert fitted.shape == (channels, 16, 16)
    assert fitted.dtype == np.uint8
    assert np.unique(fitted).tolist() == [expected]


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4,)), np.zeros((4, 4, 4)), np.zeros((0, 4)), np.full((4, 4), np.nan)],
)
def test_fit_image_refuses_what_is_no_picture(pixels: np.ndarray) -> None:
    with pytest.raises(UnreadableImageError, match="x:"):
        fit_image(pixels, IMAGE, "x")
