"""Finds where in a given folder a data set lies: people name the one above, or below."""

from collections.abc import Callable, Iterable
from pathlib import Path

from medfed.common.errors import DataError


def find_root(
    folder: Path,
    subfolders: Iterable[str],
    holds: Callable[[Path], bool],
    *,
    name: str,
    expected: str,
    how_to_get: str,
) -> Path:
    """Return the first of `folder` and its `subfolders` that `holds` the data set.

    Args:
        folder: What `--data` names.
        subfolders: Relative paths in which the published archives unpack.
        holds: Whether a folder is the root of the data set's layout.
        name: The data set, for the error.
        expected: What the root holds, for the error.
        how_to_get: The publisher's page and what to place where, for the error.

    Raises:
        DataError: None of them.
    """
    if not folder.is_dir():
        raise DataError(f"Expected the folder of {name} at {folder}, found none. {how_to_get}")
    for root in (folder, *(folder / subfolder for subfolder in subfolders)):
        if root.is_dir() and holds(root):
            return root
    raise DataError(f"Expected {expected} in {folder}, got none. {how_to_get}")
