"""Preparations that nobody went on with are removed; what somebody may go on with is not."""

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from small_set import NUM_RECORDS, content, prepare, small_set
from test_resuming import broken_off, decoded, start, until

from medfed.client.data.prepare_aside import KEEP_DAYS, remove_abandoned
from medfed.client.data.store import open_store
from medfed.common.locking import held_alone

OTHER = "labels"


def leave(parent: Path, kind: str = "masks") -> Path:
    """A preparation that was interrupted."""
    return broken_off(small_set(), parent, kind, 20)


def age(aside: Path, days: float) -> None:
    then = time.time() - days * 24 * 60 * 60
    for path in (*aside.rglob("*"), aside):
        os.utime(path, (then, then))


def nothing(parent: Path) -> Path:
    """As `but`: no folder."""
    return parent / "none"


def test_old_folder_is_removed_by_the_next_preparation_which_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    aside = leave(tmp_path)
    aside.with_name(f"{aside.name}.lock").touch()
    age(aside, KEEP_DAYS + 4)
    with caplog.at_level(logging.WARNING):
        store = prepare(small_set(), tmp_path, OTHER)
    assert list(tmp_path.iterdir()) == [store.folder]
    [said] = caplog.messages
    assert f"Removed {aside}" in said
    assert f"nothing was written for {KEEP_DAYS + 4} days" in said


def test_folder_that_may_be_gone_on_with_stays_and_is(tmp_path: Path) -> None:
    aside = leave(tmp_path)
    age(aside, KEEP_DAYS - 1)
    prepare(small_set(), tmp_path, OTHER)
    assert aside.exists()
    # Its own preparation goes on with it however old it is.
    age(aside, 10 * KEEP_DAYS)
    log = tmp_path / "log"
    prepare(small_set(log), tmp_path, "masks")
    assert decoded(log) == list(range(20, NUM_RECORDS))
    assert not aside.exists()


def test_last_file_that_was_written_counts(tmp_path: Path) -> None:
    aside = leave(tmp_path)
    age(aside, 10 * KEEP_DAYS)
    os.utime(aside / "rows.jsonl")
    assert remove_abandoned(tmp_path, but=nothing(tmp_path)) == ()
    assert aside.exists()


@pytest.mark.parametrize("how", ["other format", "other key", "cut", "empty", "no journal"])
def test_folder_whose_journal_nothing_reads_is_removed_at_once(tmp_path: Path, how: str) -> None:
    aside = leave(tmp_path)
    journal = aside / "rows.jsonl"
    first, *rest = journal.read_bytes().splitlines(keepends=True)
    head = json.loads(first)
    if how == "other format":
        first = json.dumps({**head, "journal": 0}).encode() + b"\n"
    elif how == "other key":
        first = json.dumps({**head, "key": "0" * 64}).encode() + b"\n"
    journal.write_bytes({"cut": first[:20], "empty": b""}.get(how, first + b"".join(rest)))
    if how == "no journal":
        journal.unlink()
    assert remove_abandoned(tmp_path, but=nothing(tmp_path)) == (aside,)
    assert list(tmp_path.iterdir()) == []


def test_folder_of_a_store_that_is_whole_is_removed(tmp_path: Path) -> None:
    aside = leave(tmp_path)
    aside.rename(tmp_path / "kept")
    store = prepare(small_set(), tmp_path, "masks")
    # As if it had been killed between the store's renaming and the end.
    (tmp_path / "kept").rename(aside)
    assert remove_abandoned(tmp_path, but=nothing(tmp_path)) == (aside,)
    assert list(tmp_path.iterdir()) == [store.folder]


def test_lock_without_a_folder_is_removed(tmp_path: Path) -> None:
    lock = tmp_path / f".preparing-{'a' * 16}.lock"
    lock.touch()
    assert remove_abandoned(tmp_path, but=nothing(tmp_path)) == ()
    assert not lock.exists()


@pytest.mark.parametrize(
    "name", [".preparing-mine", "preparing-" + "a" * 16, ".preparing-" + "A" * 16]
)
def test_folder_of_another_name_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    age(tmp_path / name, 10 * KEEP_DAYS)
    assert remove_abandoned(tmp_path, but=nothing(tmp_path)) == ()
    assert (tmp_path / name).exists()


def test_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").write_text("keep")
    parent = tmp_path / "stores"
    parent.mkdir()
    (parent / f".preparing-{'b' * 16}").symlink_to(tmp_path / "else")
    assert remove_abandoned(parent, but=nothing(parent)) == ()
    assert (tmp_path / "else" / "file").exists()


def test_folder_whose_lock_is_held_is_left_alone(tmp_path: Path) -> None:
    aside = leave(tmp_path)
    age(aside, 10 * KEEP_DAYS)
    lock = aside.with_name(f"{aside.name}.lock")
    with held_alone(lock, "the test is at it"):
        assert remove_abandoned(tmp_path, but=nothing(tmp_path)) == ()
        assert aside.exists()
        assert lock.exists()
    assert remove_abandoned(tmp_path, but=nothing(tmp_path)) == (aside,)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_live_preparation_is_not_hurt_however_old_its_folder_looks(
    tmp_path: Path, workers: int
) -> None:
    parent, log = tmp_path / "stores", tmp_path / "log"
    live = start(parent, log, workers)
    until(lambda: len(decoded(log)) >= 15)
    os.kill(live.pid, signal.SIGSTOP)
    try:
        [aside] = parent.glob(".preparing-????????????????")
        age(aside, 10 * KEEP_DAYS)
        other = prepare(small_set(), parent, OTHER)
        assert aside.exists()
    finally:
        os.kill(live.pid, signal.SIGCONT)
    assert live.wait(60) == 0
    [folder] = set(parent.iterdir()) - {other.folder}
    assert len(open_store(folder)) == NUM_RECORDS - 1
    assert sorted(decoded(log)) == list(range(NUM_RECORDS))
    whole = prepare(small_set(), tmp_path / "whole", "masks")
    assert content(folder) == content(whole.folder)


@pytest.mark.slow
def test_killed_preparation_is_removed_once_it_is_old(tmp_path: Path) -> None:
    parent, log = tmp_path / "stores", tmp_path / "log"
    killed = start(parent, log, 1)
    until(lambda: len(decoded(log)) >= 15)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    [aside] = parent.glob(".preparing-????????????????")
    prepare(small_set(), parent, OTHER)
    assert aside.exists()
    age(aside, KEEP_DAYS + 1)
    prepare(small_set(), parent, "patches")
    assert sorted(path.name[:6] for path in parent.iterdir()) == ["store-", "store-"]


@pytest.mark.slow
def test_preparations_at_once_remove_what_is_old_and_finish(tmp_path: Path) -> None:
    parent = tmp_path / "stores"
    aside = leave(parent)
    age(aside, 10 * KEEP_DAYS)
    runs = [start(parent, tmp_path / f"log-{kind}", 1, kind) for kind in (OTHER, "patches")]
    # The third one goes on in the very folder that the others may remove.
    runs.append(start(parent, tmp_path / "log-masks", 1, "masks"))
    assert [run.wait(60) for run in runs] == [0, 0, 0]
    folders = list(parent.iterdir())
    assert all(folder.name.startswith("store-") for folder in folders)
    assert [len(open_store(folder)) for folder in folders] == [NUM_RECORDS - 1] * 3
