"""Reads an archive's headers and says what is there: every file in one place, none dropped.

Only compact facts of a file are kept (some hundred bytes), and what files have in common is kept
once, so that a scan of millions of files fits in memory.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from medfed.client.data.archive.grouping import group_slices
from medfed.client.data.archive.inventory import Inventory, Series, Unusable, printable
from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.looking import Facts, OtherFacts, look_at
from medfed.client.data.archive.walk import walk_files
from medfed.client.data.dicom.header_facts import SliceFacts
from medfed.common.errors import RunError

Progress = Callable[[int, int], None]
T = TypeVar("T")

_CHUNK = 128
# What two processes save on so many files is what they take to start.
_WORTH_A_POOL = 4000


def scan_folder(
    folder: Path,
    limits: ReadLimits,
    *,
    issuer: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> Inventory:
    """Return what the files below `folder` are, from their headers alone.

    Args:
        folder: Is never left: links are not followed.
        limits: What a file is held to.
        issuer: Whether equal patient ids of different issuers are different patients.
        workers: Processes that read. The result is the same.
        progress: Called with (done, total).

    Raises:
        DataError: No such folder, or more files than the limits allow.
        RunError: A process that reads was killed.
    """
    paths: list[str] = []
    unusable: list[Unusable] = []
    for found in walk_files(folder, limits):
        if isinstance(found, Unusable):
            unusable.append(found)
        else:
            paths.append(str(found))
    slices: list[SliceFacts] = []
    others: list[OtherFacts] = []
    for one in _facts(paths, partial(look_at_all, limits=limits, issuer=issuer), workers, progress):
        if isinstance(one, SliceFacts):
            slices.append(one)
        elif isinstance(one, OtherFacts):
            others.append(one)
        else:
            unusable.append(one)
    num_files = len(unusable) + len(slices) + len(others)
    series, repeated = group_slices(slices)
    # The image of a NIfTI pair has no header of its own: by itself it is of unknown kind.
    voxels = {printable(one.voxels) for one in others if one.voxels}
    unusable = [one for one in unusable if one.path not in voxels] + repeated
    return Inventory(
        series=(*series, *(_other(one, folder) for one in others)),
        unusable=tuple(sorted(unusable, key=lambda one: one.path)),
        num_files=num_files,
    )


def _facts(
    paths: Sequence[str],
    look: Callable[[Sequence[str]], list[Facts]],
    workers: int,
    progress: Progress | None,
) -> Iterator[Facts]:
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    once: dict[object, object] = {}
    done = 0
    for chunk in _mapped(look, chunks, workers if len(paths) >= _WORTH_A_POOL else 1):
        done += len(chunk)
        yield from (_shared(one, once) for one in chunk)
        if progress is not None:
            progress(done, len(paths))


def look_at_all(paths: Sequence[str], limits: ReadLimits, *, issuer: bool) -> list[Facts]:
    """Return the facts of some files: what a worker does at a time."""
    once: dict[object, object] = {}
    return [_shared(look_at(path, limits, issuer=issuer), once) for path in paths]


def _mapped(
    look: Callable[[Sequence[str]], list[Facts]], chunks: Sequence[Sequence[str]], workers: int
) -> Iterator[list[Facts]]:
    if workers <= 1:
        yield from map(look, chunks)
        return
    # Spawned, not forked: who scans may have threads.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        waiting = iter(chunks)
        # A few ahead, so that neither side waits and answers do not pile up.
        given = [pool.submit(look, chunk) for chunk in itertools.islice(waiting, 4 * workers)]
        while given:
            answer = given.pop(0).result()
            given += [pool.submit(look, chunk) for chunk in itertools.islice(waiting, 1)]
            yield answer
    except BrokenProcessPool:
        raise RunError(
            "A process that reads headers was ended, perhaps for want of memory. Run the scan "
            "again with fewer --workers."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _shared(facts: Facts, once: dict[object, object]) -> Facts:
    """The same facts, in which what was seen before is not held again."""

    def same(value: T) -> T:
        return once.setdefault(value, value)  # type: ignore[return-value]

    if isinstance(facts, SliceFacts):
        return facts._replace(
            kin=same(facts.kin), varying=same(facts.varying), notes=same(facts.notes)
        )
    return facts


def _other(facts: OtherFacts, folder: Path) -> Series:
    files = (Path(facts.path), *((Path(facts.voxels),) if facts.voxels else ()))
    return Series(
        kind=facts.kind,
        key=str(Path(facts.path).relative_to(folder)),
        patient="",
        study="",
        modality=facts.modality,
        files=files,
        shape=facts.shape,
        spacing_mm=facts.spacing_mm,
        notes=facts.notes,
        is_stack=facts.kind == "nifti",
    )
