"""One process at a time."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medfed.common.errors import RunError

_TRIES = 5
_PAUSE_S = 0.05


@contextmanager
def held_alone(file: Path, what: str) -> Iterator[None]:
    """Hold `file` for the time of the block; the lock ends with the process, however that ends.

    Raises:
        RunError: Another process holds it; `what` begins the message.
    """
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not _taken(handle):
            number = _number(handle)
            who = "" if number is None else f" as process {number}"
            raise RunError(f"{what}{who}. Stop it first.")
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(handle)


def holder(file: Path) -> int | None:
    """Return the number of the process that holds `file`; None if nobody does."""
    try:
        handle = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        # Shared: of two that ask at once, neither takes the other for the holder.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _number(handle)
    finally:
        os.close(handle)
    return None


def _taken(handle: int) -> bool:
    """Take the lock; somebody who only asks who holds it gives it back in a moment."""
    for _ in range(_TRIES):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE_S)
        else:
            return True
    return False


def _number(handle: int) -> int | None:
    text = os.read(handle, 32).decode("ascii", "replace").strip()
    return int(text) if text.isdigit() else None
