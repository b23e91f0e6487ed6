"""A store is held to the hashes that it states; a copy of rows states its own."""

import functools
import json
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from small_set import KINDS, ORGANS, prepare, small_set

from medfed.client.data.npy_files import npy_header, write_npy
from medfed.client.data.prepare import prepare_store
from medfed.client.data.store import Store, copy_rows, open_store, verify_store
from medfed.common.errors import DataError
from medfed.common.study import DataSection


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return prepare(small_set(), tmp_path, "masks")


@pytest.mark.parametrize("kind", KINDS)
def test_store_that_is_whole_is_verified(tmp_path: Path, kind: str) -> None:
    verify_store(prepare(small_set(), tmp_path, kind))


def test_store_is_read_once_until_it_changes(store: Store) -> None:
    first = open_store(store.folder)
    assert open_store(store.folder) is first
    with pytest.raises(ValueError, match="read-only"):
        first.labels[0] = 1
    records = store.folder / "records.jsonl"
    records.write_text(records.read_text().replace(first.patients[0], "another"))
    assert open_store(store.folder).patients[0] == "another"


@pytest.mark.parametrize("name", ["images.npy", "masks.npy", "records.jsonl"])
def test_one_changed_bit_of_any_file_is_found(store: Store, name: str) -> None:
    path = store.folder / name
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} is not what was prepared.*prepare it again"):
        verify_store(store)


def test_store_without_hashes_opens_and_says_so_when_verified(store: Store) -> None:
    path = store.folder / "store.json"
    header = json.loads(path.read_text())
    del header["sha256"]
    path.write_text(json.dumps(header))
    with pytest.raises(DataError, match="does not state the hashes"):
        verify_store(open_store(store.folder))


def test_copied_rows_are_a_store_of_their_own(tmp_path: Path, store: Store) -> None:
    copy_rows(store, [7, 3, 11], tmp_path / "copy")
    copy = open_store(tmp_path / "copy")
    verify_store(copy)
    assert np.array_equal(copy.images_NCHW, store.images_NCHW[[7, 3, 11]])
    assert copy.masks_NHW is not None
    assert store.masks_NHW is not None
    assert np.array_equal(copy.masks_NHW, store.masks_NHW[[7, 3, 11]])
    assert copy.record_ids == tuple(store.record_ids[row] for row in (7, 3, 11))


@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (3, 1, 4, 4), (2, 3, 5, 6, 7)])
def test_array_written_by_rows_is_the_file_that_numpy_writes(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "numpy.npy", array, allow_pickle=False)
    write_npy(tmp_path / "rows.npy", shape, iter(array))
    assert (tmp_path / "rows.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()


def test_header_keeps_its_length_while_an_array_grows() -> None:
    for row in ((1, 16, 16), (4, 1024, 1024, 1024)):
        assert len({len(npy_header((n, *row))) for n in (0, 9, 10**6, 10**12)}) == 1


def test_smaller_rows_are_padded_at_the_far_ends_and_a_missing_one_is_refused(
    tmp_path: Path,
) -> None:
    rows = [np.full((2, 3), 7, np.uint8), np.full((4, 1), 9, np.uint8)]
    write_npy(tmp_path / "x.npy", (2, 4, 3), iter(rows))
    array = np.load(tmp_path / "x.npy", allow_pickle=False)
    assert array[0].tolist() == [[7, 7, 7], [7, 7, 7], [0, 0, 0], [0, 0, 0]]
    assert array[1].tolist() == [[9, 0, 0]] * 4
    with pytest.raises(DataError, match="expected 3 rows, got 2"):
        write_npy(tmp_path / "y.npy", (3, 4, 3), iter(rows))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("fit", ["resize", "patch"])
def test_memory_does_not_grow_with_the_images(tmp_path: Path, fit: str, workers: int) -> None:
    """160 images and masks of 256 x 256: 21 MB, of which no more than a few are held at a time."""

    def read(number: int) -> np.ndarray:
        return np.full((256, 256), 1 + number % 2, dtype=np.uint8)

    records = tuple(
        replace(
            small_set().records[0],
            record_id=f"{n}",
            read_image=functools.partial(read, n),
            read_mask=functools.partial(read, n),
        )
        for n in range(160)
    )
    image = DataSection.model_validate({"image_size": 256, "fit": fit})
    tracemalloc.start()
    try:
        store = prepare_store(
            replace(small_set(), records=records), ORGANS, image, parent=tmp_path,
            pseudonym_key=b"key", workers=workers,
        )  # fmt: skip
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 2 * store.images_NCHW.nbytes > 20e6
    assert peak < 4e6
