"""Files that only their owner may read, from their first byte on."""

import os
from pathlib import Path

from medfed.common.files import sync_folder


def write_secret(path: Path, content: bytes) -> None:
    """Write `content` to `path` with mode 0600: whole or not at all, over what was there."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.unlink(missing_ok=True)
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        # Part of a secret, or of a picture of patients, on a disk that is full.
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
