"""One process at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medfed.common.errors import RunError


@contextmanager
def held_alone(file: Path, what: str) -> Iterator[None]:
    """Hold `file` for the time of the block; the lock ends with the process, however that ends.

    Raises:
        RunError: Another process holds it; `what` begins the message.
    """
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 32).decode("ascii", "replace").strip()
            who = f" as process {holder}" if holder.isdigit() else ""
            raise RunError(f"{what}{who}. Stop it first.") from None
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
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(handle, 32).decode("ascii", "replace").strip()
        return int(text) if text.isdigit() else None
    finally:
        os.close(handle)
    return None
