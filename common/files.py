"""Files that are whole or absent, whenever the power fails."""

import json
import os
from pathlib import Path
from typing import Any

from medfed.common.errors import RunError


def write_atomically(path: Path, content: bytes) -> None:
    """Write aside, flush to disk, rename over `path`."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def replace_keeping_mode(path: Path, content: bytes) -> None:
    """Replace a file that is there: written aside and renamed, with the permissions that it has.

    Raises:
        OSError: It cannot be written; it is unchanged.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.unlink(missing_ok=True)
    mode = path.stat().st_mode & 0o777
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        os.fchmod(handle, mode)  # whatever the umask takes away
        file.write(content)
        file.flush()
        os.fsync(handle)
    aside.replace(path)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
        raise RunError(f"{path} is damaged: {error}.") from None
    if not isinstance(table, dict):
        raise RunError(f"{path} is damaged: expected a table.")
    return table
