"""Folders that stores are written in before they are whole: one process at a time, none for ever.

    .preparing-KEY         what `medfed.client.data.writing` writes
    .preparing-KEY.lock    held by the process that writes there, and by its workers

A preparation that was killed leaves its folder, to go on from. If it never does, because study or
files are others now, nothing else would ever remove it.
"""

import contextlib
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from medfed.client.data.writing import journal_key
from medfed.common.errors import DataError, RunError
from medfed.common.locking import held_alone, holder

log = logging.getLogger(__name__)

# As long as somebody may be away before going on with what was interrupted.
KEEP_DAYS = 30

_LOOK_AGAIN_S = 0.2
_DAY_S = 24 * 60 * 60
_NAME = re.compile(r"(\.preparing-([0-9a-f]{16}))(?:\.lock)?")


def aside_of(parent: Path, key: str) -> Path:
    """Return the folder that the store `key` is written in."""
    return parent / f".preparing-{key[:16]}"


def store_folder(parent: Path, key: str) -> Path:
    """Return the folder of the store `key`, where it is whole."""
    return parent / f"store-{key[:16]}"


@contextlib.contextmanager
def alone(aside: Path) -> Iterator[None]:
    """Be the only process that writes in `aside`; wait for another that does.

    Raises:
        DataError: Nothing can be written beside it.
    """
    told = False
    while True:
        with _held(aside) as why_not:
            if why_not is None:
                yield
                return
        if why_not and not told:
            log.warning("%s", why_not.replace("Stop it first.", "Waiting for it."))
            told = True
        time.sleep(_LOOK_AGAIN_S if why_not else 0)


def remove_abandoned(parent: Path, *, but: Path) -> tuple[Path, ...]:
    """Remove what preparations left in `parent` that nothing can go on with, or nobody did.

    That is: no journal of this version, a store that is whole by now, or nothing written for
    KEEP_DAYS. What a live process writes is left alone, however old, since that process holds its
    lock; so is what cannot be removed.

    Args:
        parent: Folder that holds stores.
        but: A folder to leave alone: of the store that is to be prepared.

    Returns:
        The folders that are gone. Each is named in a warning with the reason.
    """
    try:
        names = {match[1] for path in parent.iterdir() if (match := _NAME.fullmatch(path.name))}
    except OSError:
        # Who may not list the folder may still write in it.
        return ()
    gone = []
    for name in sorted(names - {but.name}):
        aside = parent / name
        try:
            # Not worth a lock yet: most are somebody's, or to be gone on with.
            if _why_abandoned(aside) and _remove(aside):
                gone.append(aside)
        except FileNotFoundError:
            # Somebody finished or removed it meanwhile.
            continue
        except (OSError, DataError) as error:
            log.warning("%s was abandoned and cannot be removed: %s", aside, error)
    return tuple(gone)


def _remove(aside: Path) -> bool:
    """Remove a folder if it is abandoned indeed, and say so."""
    with _held(aside) as why_not:
        if why_not is not None:
            return False
        # It may have been gone on with, or finished, before we held it.
        reason = _why_abandoned(aside)
        if not aside.exists() or not reason:
            return False
        size = sum(path.stat().st_size for path in aside.rglob("*") if path.is_file())
        shutil.rmtree(aside)
        log.warning(
            "Removed %s, %.1f MB of a preparation that was never finished: %s.",
            aside, size / 1e6, reason,
        )  # fmt: skip
    return True


def _why_abandoned(aside: Path) -> str:
    """Why a folder is of no more use; empty if it is, or if it is none of ours."""
    if aside.is_symlink() or (aside.exists() and not aside.is_dir()):
        return ""
    if not aside.exists():
        return "its lock alone is left"
    short = aside.name.removeprefix(".preparing-")
    if store_folder(aside.parent, short).exists():
        return "its store is whole"
    key = journal_key(aside)
    if key is None or not key.startswith(short):
        return "its journal is not of this version"
    changed = max(path.lstat().st_mtime for path in (aside, *aside.rglob("*")))
    days = (time.time() - changed) / _DAY_S
    return f"nothing was written for {days:.0f} days" if days > KEEP_DAYS else ""


@contextlib.contextmanager
def _held(aside: Path) -> Iterator[str | None]:
    """Hold the lock of `aside`; yield None, or why it is not held: empty to try again at once."""
    lock = aside.with_name(f"{aside.name}.lock")
    with contextlib.ExitStack() as stack:
        why_not: str | None = None
        try:
            stack.enter_context(held_alone(lock, f"{aside} is being written"))
        except RunError as error:
            why_not = str(error)
        except OSError as error:
            raise DataError(
                f"The store cannot be written in {aside.parent}: {error.strerror}. Name a folder "
                "of this user's own."
            ) from None
        # Who held it before may have removed the file, and a third made it anew.
        if why_not is None and holder(lock) != os.getpid():
            why_not = ""
        try:
            yield why_not
        finally:
            if why_not is None:
                lock.unlink(missing_ok=True)
