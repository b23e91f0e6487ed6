"""The digest of a data set: the same one means the same records and pixels."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path


def dataset_digest(loader: str, rows: Iterable[Sequence[str]]) -> str:
    """Return the SHA-256 over `rows`: the texts and the files' digests that make up the records.

    Args:
        loader: Name and version of the loader, raised when it turns the same files into other
            records.
        rows: In the order of the records.
    """
    whole = hashlib.sha256(f"{loader}\n".encode())
    for row in rows:
        whole.update(("\x1f".join(row) + "\n").encode())
    return whole.hexdigest()


def file_digest(path: Path | None) -> str:
    """Return the SHA-256 of a file, or a word that says why there is none."""
    if path is None:
        return "missing"
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        # Reading it as an image names the file and the reason.
        return "unreadable"
