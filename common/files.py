"""Files that are whole or absent, whenever the power fails."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medfed.common.errors import RunError

_RESTORE = "Restore it from a copy that is whole."
# One for each `without_waiting` that is open.
_hurrying: list[None] = []


def write_atomically(path: Path, content: bytes) -> None:
    """Write aside, flush to disk, rename over `path`."""
    _write(path, content, 0o666)


def write_secret(path: Path, content: bytes) -> None:
    """Write `content` to `path`, only its owner's to read from the first byte on; else the same."""
    _write(path, content, 0o600)


def replace_keeping_mode(path: Path, content: bytes) -> None:
    """Replace a file that is there: written aside and renamed, with the permissions that it has.

    Raises:
        OSError: It cannot be written; it is unchanged.
    """
    _write(path, content, path.stat().st_mode & 0o777, exactly=True)


def _write(path: Path, content: bytes, mode: int, *, exactly: bool = False) -> None:
    """Write with permissions `mode`, less what the umask takes away unless `exactly`."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.unlink(missing_ok=True)
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            if exactly:
                os.fchmod(handle, mode)
            file.write(content)
            file.flush()
            to_disk(handle)
        aside.replace(path)
    except OSError:
        # It may be part of a secret, or of a picture of patients, on a disk that is full.
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def make_private(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for their owner alone."""
    for path in [*reversed(folder.parents), folder]:
        path.mkdir(exist_ok=True, mode=0o700)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        to_disk(handle)
    finally:
        os.close(handle)


def to_disk(handle: int) -> None:
    """Wait until what was written to an open file or folder is on the disk."""
    if not _hurrying:
        os.fsync(handle)


@contextmanager
def without_waiting() -> Iterator[None]:
    """Within it, in any thread, no file waits for the disk; its end waits once for all of them.

    For simulated sites. A process that is killed loses nothing by it; a machine without power
    might, of what was written since.
    """
    _hurrying.append(None)
    try:
        yield
    finally:
        _hurrying.pop()
        os.sync()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON table.

    Raises:
        RunError: Missing, damaged or not a table.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(
            f"Expected {path}, found none. Name a run folder that `medfed simulate` made."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is damaged: {error}. {_RESTORE}") from None
    if not isinstance(table, dict):
        raise RunError(f"{path} is damaged: expected a table. {_RESTORE}")
    return table
