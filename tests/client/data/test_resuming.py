"""A preparation that is ended in any way: nothing half-written, nothing decoded twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "integration"))

from small_disk import small_disk, why_not
from small_set import KINDS, LABELS, NUM_RECORDS, RESIZED, content, prepare, small_set

from medfed.client.data.prepare import prepare_store
from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.client.data.store import open_store
from medfed.common.errors import DataError
from medfed.common.study import DataSection

needs_disk = pytest.mark.skipif(bool(why_not()), reason=why_not())


def start(parent: Path, log: Path, workers: int, kind: str = "masks") -> subprocess.Popen[bytes]:
    program = Path(__file__).parent / "small_set.py"
    command = [sys.executable, program, parent, log, str(workers), kind]
    with log.with_name("stderr").open("ab") as said:
        return subprocess.Popen([str(part) for part in command], stderr=said)


def decoded(log: Path) -> list[int]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [int(line.split()[0]) for line in lines]


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def broken_off(dataset: SourceDataset, parent: Path, kind: str, at: int) -> Path:
    """Prepare until record `at` and return the folder that is left."""

    def interrupt() -> np.ndarray:
        raise KeyboardInterrupt

    records = list(dataset.records)
    records[at] = replace(records[at], read_image=interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(replace(dataset, records=tuple(records)), parent, kind)
    [aside] = parent.iterdir()
    return aside


@pytest.mark.parametrize(("workers", "kind"), [(1, "masks"), (2, "patches")])
def test_killed_preparation_goes_on_to_the_same_bytes_and_decodes_nothing_twice(
    tmp_path: Path, workers: int, kind: str
) -> None:
    parent, log = tmp_path / "stores", tmp_path / "log"
    first = start(parent, log, workers, kind)
    until(lambda: len(decoded(log)) >= 15)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    [aside] = parent.glob(".preparing-????????????????")
    assert not list(parent.glob("store-*"))
    # The lock is free once the workers have noticed: they outlive their parent by an image.
    second = start(parent, log, workers, kind)
    assert second.wait(60) == 0
    times = Counter(decoded(log))
    assert set(times) == set(range(NUM_RECORDS))
    # Only what was in somebody's hands at the kill.
    assert sum(count - 1 for count in times.values()) <= (1 if workers == 1 else 8)
    assert not aside.exists()
    whole = prepare(small_set(), tmp_path / "whole", kind)
    assert content(parent) == content(whole.folder.parent)


def test_workers_end_with_the_process_that_they_work_for(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(tmp_path / "stores", log, 2)
    until(lambda: len(decoded(log)) >= 8)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    pids = {int(line.split()[1]) for line in log.read_text().splitlines()}
    assert len(pids) == 2
    assert process.pid not in pids
    until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids))


def test_two_processes_at_once_decode_every_image_once(tmp_path: Path) -> None:
    parent, log = tmp_path / "stores", tmp_path / "log"
    first = start(parent, log, 1)
    until(lambda: len(decoded(log)) >= 1)
    os.kill(first.pid, signal.SIGSTOP)  # or it might be through before the other has begun
    try:
        second = start(parent, log, 1)
        until(lambda: "Waiting for it" in (tmp_path / "stderr").read_text())
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert [process.wait(60) for process in (first, second)] == [0, 0]
    assert Counter(decoded(log)) == Counter(range(NUM_RECORDS))
    [folder] = parent.iterdir()
    assert len(open_store(folder)) == NUM_RECORDS - 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [2, 3])
def test_store_is_the_same_for_any_number_of_workers(
    tmp_path: Path, workers: int, kind: str
) -> None:
    one = prepare(small_set(), tmp_path / "one", kind)
    several = prepare(small_set(), tmp_path / "several", kind, workers)
    assert content(several.folder) == content(one.folder)
    assert several.num_quarantined == 1


def spoil_pixels(aside: Path) -> None:
    """As a power cut may: a line is on the disk, its pixels are not."""
    [file] = [*aside.rglob("images.npy"), *aside.rglob("images.packed")]
    content = bytearray(file.read_bytes())
    content[-700:] = bytes(700)
    file.write_bytes(content)


def lose_pixels(aside: Path) -> None:
    [file] = [*aside.rglob("images.npy"), *aside.rglob("images.packed")]
    file.write_bytes(file.read_bytes()[:-900])


def cut_line(aside: Path) -> None:
    journal = aside / "rows.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])


def spoil_line(aside: Path) -> None:
    journal = aside / "rows.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:8], bytes(30) + b"\n", *lines[9:]]))


def lose_journal(aside: Path) -> None:
    (aside / "rows.jsonl").unlink()


def change_key(aside: Path) -> None:
    journal = aside / "rows.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    head = json.loads(lines[0])
    lines[0] = json.dumps({**head, "key": "0" * 64}).encode() + b"\n"
    journal.write_bytes(b"".join(lines))


@pytest.mark.parametrize("kind", ["masks", "patches"])
@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (spoil_pixels, range(8, 12)),
        (lose_pixels, range(8, 12)),
        (cut_line, range(11, 12)),
        (spoil_line, range(7, 8)),
        (lose_journal, range(1)),
        (change_key, range(1)),
    ],
)
def test_what_is_damaged_is_decoded_again_and_what_is_whole_is_not(
    tmp_path: Path, kind: str, damage: Callable[[Path], None], kept: range
) -> None:
    aside = broken_off(small_set(), tmp_path / "stores", kind, at=12)
    damage(aside)
    log = tmp_path / "log"
    store = prepare(small_set(log), tmp_path / "stores", kind)
    again = decoded(log)
    assert again == list(range(again[0], NUM_RECORDS))
    assert again[0] in kept
    whole = prepare(small_set(), tmp_path / "whole", kind)
    assert content(store.folder.parent) == content(whole.folder.parent)


def test_files_that_change_while_they_are_read_make_no_store(tmp_path: Path) -> None:
    data = small_set()
    with pytest.raises(DataError, match="changed while they were read"):
        prepare_store(
            data, LABELS, RESIZED, parent=tmp_path, pseudonym_key=b"key",
            digest_again=lambda: "0" * 64,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
    store = prepare_store(
        data, LABELS, RESIZED, parent=tmp_path, pseudonym_key=b"key",
        digest_again=lambda: data.digest,
    )  # fmt: skip
    assert len(store) == NUM_RECORDS - 1


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match=r"cannot be made: .* Name another"):
        prepare(small_set(), tmp_path / "file" / "stores", "labels")


def large(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (256, 256), dtype=np.uint8)


def large_set(log: Path) -> SourceDataset:
    def read(number: int) -> np.ndarray:
        with log.open("a") as file:
            file.write(f"{number} 0\n")
        return large(number)

    records = tuple(
        SourceRecord(
            record_id=f"{n:03d}",
            patient_id=f"{n}",
            labels=("a",) if n % 2 else ("b",),
            source=f"image {n}",
            read_image=lambda n=n: read(n),
        )
        for n in range(48)
    )
    return replace(small_set(), records=records)


@needs_disk
def test_full_disk_is_said_and_what_was_done_is_kept(tmp_path: Path) -> None:
    """48 images of 64 KiB on a disk of 2 MiB."""
    parent, log = tmp_path / "stores", tmp_path / "log"
    parent.mkdir()
    image = DataSection(image_size=256)

    def attempt(where: Path) -> object:
        return prepare_store(
            large_set(log), LABELS, image, parent=where, pseudonym_key=b"key", workers=1
        )

    with small_disk(parent, size_mb=2):
        with pytest.raises(DataError, match=r"No space left on device\. Make room") as caught:
            attempt(parent)
        assert not list(parent.glob("store-*"))
        before = len(decoded(log))
        assert f"{before - 1:,} record(s) that are done are kept" in str(caught.value)
        with pytest.raises(DataError, match="No space left"):
            attempt(parent)
        # Once more the one that did not fit, and no other.
        assert decoded(log)[before:] == [before - 1]
    attempt(parent)
    assert len(decoded(log)) == 48 + 2
    attempt(tmp_path / "other")
    assert content(parent) == content(tmp_path / "other")


@needs_disk
def test_read_only_folder_is_said_and_a_store_in_it_is_read(tmp_path: Path) -> None:
    parent = tmp_path / "stores"
    parent.mkdir()
    with small_disk(parent):
        prepare(small_set(), parent, "labels")
        subprocess.run(["mount", "-o", "remount,ro", str(parent)], check=True)
        try:
            assert len(prepare(small_set(), parent, "labels")) == NUM_RECORDS - 1
            with pytest.raises(DataError, match="Read-only file system"):
                prepare(small_set(), parent, "masks")
        finally:
            subprocess.run(["mount", "-o", "remount,rw", str(parent)], check=True)
