"""Lists an archive's files in the order of their names, without ever leaving its folder."""

import os
from collections.abc import Iterator
from pathlib import Path

from medfed.client.data.archive.inventory import Unusable, printable
from medfed.client.data.archive.limits import ReadLimits
from medfed.common.errors import DataError


def walk_files(folder: Path, limits: ReadLimits) -> Iterator[Path | Unusable]:
    """Yield every file below `folder`, and what cannot be looked at with its reason.

    No link is followed: what it leads to within the folder is found there, and what lies outside
    is none of this archive's. So there are no loops either, save those that mounts make, which
    are cut off. `folder` itself may be a link.

    Raises:
        DataError: No such folder, or more than `limits.max_files` files.
    """
    if not folder.is_dir():
        raise DataError(
            f"Expected a folder of images at {folder}, found none. Name the archive's folder."
        )
    for number, found in enumerate(_walk(folder), start=1):
        if number > limits.max_files:
            raise DataError(
                f"{folder} holds more than {limits.max_files:,} files. Name a folder below it, or "
                "raise limits.max_files."
            )
        yield found


def _walk(folder: Path) -> Iterator[Path | Unusable]:
    # A stack of open folders and not recursion: depth is the file system's to choose.
    stack: list[tuple[Iterator[os.DirEntry[str]], tuple[int, int]]] = []
    waiting: Path | None = folder
    while stack or waiting is not None:
        if waiting is not None:
            opened = _entries(waiting, {identity for _, identity in stack})
            if isinstance(opened, Unusable):
                yield opened
            else:
                stack.append(opened)
            waiting = None
            continue
        entry = next(stack[-1][0], None)
        if entry is None:
            stack.pop()
        elif not entry.is_symlink() and entry.is_dir(follow_symlinks=False):
            waiting = Path(entry.path)
        else:
            yield _file(entry, folder)


def _entries(
    folder: Path, above: set[tuple[int, int]]
) -> tuple[Iterator[os.DirEntry[str]], tuple[int, int]] | Unusable:
    """The folder's entries by name, and which folder it is."""
    try:
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return Unusable(
                printable(folder),
                f"{printable(folder)} is a folder that lies in itself; it was entered once.",
                "refused",
                "loop of folders",
            )
        with os.scandir(folder) as found:
            return iter(sorted(found, key=lambda entry: entry.name)), identity
    except OSError as error:
        return Unusable(
            printable(folder),
            f"{printable(folder)} cannot be opened: {error.strerror}. Let this user read it.",
            "unreadable",
            "folder that cannot be opened",
        )


def _file(entry: os.DirEntry[str], root: Path) -> Path | Unusable:
    path = printable(entry.path)
    if entry.is_symlink():
        target = Path(os.path.realpath(entry.path))
        if target.is_relative_to(os.path.realpath(root)) and target.exists():
            reason = f"{path} is a link; what it leads to is counted where it lies."
            return Unusable(path, reason, "not_an_image", "link within the folder")
        reason = f"{path} is a link out of the folder. Copy what it leads to, or leave it out."
        return Unusable(path, reason, "refused", "link out of the folder")
    if not entry.is_file(follow_symlinks=False):
        reason = f"{path} is a device, pipe or socket. Leave it out."
        return Unusable(path, reason, "refused", "no ordinary file")
    return Path(entry.path)
