"""The site's pseudonym key: 32 random bytes that never leave the hospital.

Whoever has it can tell which pseudonym is whose; whoever loses it gets other pseudonyms for the
same patients. So it is readable by its owner alone, and never written over.
"""

import os
import re
import secrets
import stat
from pathlib import Path

from medfed.common.errors import DataError
from medfed.common.files import sync_folder

_KEY_BYTES = 32
_KEY_FORM = re.compile(rb"[0-9a-f]{64}\n?")


def load_or_create_key(path: Path) -> bytes:
    """Return the key in `path`, made on first use with mode 0600.

    Raises:
        DataError: The file is damaged, may be read by others, or cannot be read or written.
    """
    try:
        return _load(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise DataError(f"The pseudonym key {path} cannot be read: {error.strerror}.") from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _create(path)
        return _load(path)
    except OSError as error:
        raise DataError(
            f"The pseudonym key {path} cannot be written: {error.strerror}. "
            "Name a file in a folder that this account may write to."
        ) from None


def _load(path: Path) -> bytes:
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        content = file.read(4 * _KEY_BYTES)
    if mode & 0o077:
        raise DataError(
            f"Expected {path} to be readable by its owner alone, got mode {mode:o}. Find out who "
            f"may have read it; then `chmod 600 {path}`, or start again with another key."
        )
    if not _KEY_FORM.fullmatch(content):
        raise DataError(
            f"Expected {2 * _KEY_BYTES} hexadecimal digits in {path}, got something else. Restore "
            "it from a backup: another key gives every patient another pseudonym."
        )
    return bytes.fromhex(content.decode())


def _create(path: Path) -> None:
    """Write a new key aside, then link it to `path`: two that start at once get the same one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES).hex().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(aside, path)
        except FileExistsError:
            return
        sync_folder(path.parent)
    finally:
        aside.unlink()
