"""Files wait for the disk, except those of simulated sites."""

import os
from pathlib import Path
from threading import Thread

import pytest

from medfed.common.files import make_private, without_waiting, write_atomically


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    monkeypatch.setattr(os, "fsync", seen.append)
    return seen


def test_a_file_waits_for_the_disk(tmp_path: Path, waits: list[int]) -> None:
    write_atomically(tmp_path / "file", b"content")
    assert len(waits) == 2  # the file, and its name in the folder


def test_without_waiting_counts_in_every_thread_and_ends_with_an_error(
    tmp_path: Path, waits: list[int]
) -> None:
    with without_waiting():
        with pytest.raises(KeyError), without_waiting():
            raise KeyError
        thread = Thread(target=write_atomically, args=(tmp_path / "file", b"content"))
        thread.start()
        thread.join()
    assert not waits
    assert (tmp_path / "file").read_bytes() == b"content"
    write_atomically(tmp_path / "file", b"other")
    assert len(waits) == 2


def test_private_folders_are_their_owners_alone_with_all_that_is_made_above(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(mode=0o755)
    for _ in range(2):
        make_private(tmp_path / "there" / "state" / "statistics")
    modes = [(tmp_path / part).stat().st_mode & 0o777 for part in
             ("there", "there/state", "there/state/statistics")]  # fmt: skip
    assert modes == [0o755, 0o700, 0o700]
