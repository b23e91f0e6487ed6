"""Digests of files, remembered between runs: a large set is read whole once, not each time.

A file's digest is taken as known while its inode, size and both times are the same. The time of
the last change of the inode (ctime) cannot be set back by a program, so a file that was edited, or
copied over with its old date, is read again. What changed within the last seconds is not
remembered: two changes may fall into one tick of the clock.
"""

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from medfed.common.download import cache_folder
from medfed.common.files import write_atomically
from medfed.simulations.datasets.digests import file_digest

logger = logging.getLogger(__name__)

_SETTLED_S = 3.0

_Known = dict[str, list[int | str]]


@contextlib.contextmanager
def known_digests(root: Path) -> Iterator[Callable[[Path | None], str]]:
    """Give a function that returns what `file_digest` does, from memory where it can.

    What it learns is written to `medfed.common.download.cache_folder()`/digests at the end; if
    that cannot be written, it is only slower the next time.

    Args:
        root: Folder of the data set, which names the memory.
    """
    name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:32]
    memory = cache_folder() / "digests" / f"{name}.json"
    known = _read(memory)
    learnt: _Known = {}

    def digest(path: Path | None) -> str:
        if path is None:
            return "missing"
        state = _state(path)
        if state is None:
            return file_digest(path)
        key = str(path)
        found = known.get(key) or learnt.get(key)
        if found and found[:-1] == state:
            return str(found[-1])
        value = file_digest(path)
        # A file that changed while it was read, or just before, may change again unseen.
        if _state(path) == state and time.time() - max(state[2:]) / 1e9 > _SETTLED_S:
            learnt[key] = [*state, value]
        return value

    yield digest
    if learnt:
        _write(memory, {**known, **learnt})


def _state(path: Path) -> list[int] | None:
    """Inode, size, time of the last change of the content and of the inode in ns."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _read(memory: Path) -> _Known:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    # What is not of this form was not written here.
    return {
        path: row
        for path, row in known.items()
        if isinstance(row, list) and len(row) == 5 and isinstance(row[-1], str)
    }


def _write(memory: Path, known: _Known) -> None:
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(memory, json.dumps(known, separators=(",", ":")).encode())
    except OSError as error:
        logger.warning("Digests cannot be remembered in %s (%s).", memory, error)
