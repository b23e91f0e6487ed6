"""Writes a prepared store from source records: decode, resample, check, pseudonymise.

Nothing is dropped silently: an image that cannot be used is listed in `quarantine.jsonl` with its
reason and counted, or refused at once with `strict`. A label outside the label set, a patient on
both sides of the official split or a record named twice is a mistake in the data set as a whole
and always refused.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

from medfed.client.data.checks import check_records
from medfed.client.data.prepare_aside import alone, aside_of, remove_abandoned, store_folder
from medfed.client.data.preparing import Preparation, Refused
from medfed.client.data.pseudonyms import pseudonym
from medfed.client.data.records import SourceDataset
from medfed.client.data.store import (
    STORE_FORMAT,
    Store,
    image_shape,
    open_store,
    read_quarantine,
)
from medfed.client.data.workers import prepared_in_order
from medfed.client.data.writing import StoreWriter
from medfed.common.errors import DataError, UnreadableImageError
from medfed.common.files import sync_folder
from medfed.common.study import DataSection, TaskSection

__all__ = ["Progress", "prepare_store", "pseudonym", "store_key"]

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


def prepare_store(
    dataset: SourceDataset,
    task: TaskSection,
    image: DataSection,
    *,
    parent: Path,
    pseudonym_key: bytes,
    strict: bool = False,
    progress: Progress | None = None,
    workers: int = 1,
    digest_again: Callable[[], str] | None = None,
) -> Store:
    """Return the store of `dataset` under `parent`, writing it if it is not there yet.

    The folder's name is a hash of the source files, the preprocessing and the label set, so a
    stale store is never used. It appears whole or not at all (written aside, then renamed). What
    was interrupted, by a kill or a full disk too, goes on where it stopped when it is called
    again; of two processes that prepare the same store, one waits for the other. What others were
    interrupted in and never went on with is removed (`remove_abandoned`).

    Args:
        dataset: The source records.
        task: Label set and mode to check every label against.
        image: Size, channels and views of the stored images.
        parent: Folder that holds stores.
        pseudonym_key: Key of the HMAC that turns patient keys into pseudonyms.
        strict: Refuse the first unreadable image instead of quarantining it.
        progress: Called with (done, total).
        workers: Processes that decode. The store is the same, byte for byte.
        digest_again: Returns `dataset.digest` anew from the files, once all are read: a store of
            files that changed meanwhile is refused.

    Raises:
        DataError: Labels outside the label set, records named twice, no usable image, files that
            changed, or a folder that cannot be written.
        LeakageError: A patient on both sides of the official split.
        UnreadableImageError: With `strict`, the first image that cannot be decoded.
        RunError: A process that decodes was killed.
    """
    check_records(dataset, task, image)
    if strict and dataset.unusable:
        raise UnreadableImageError(dataset.unusable[0].reason)
    key = store_key(dataset, task, image, pseudonym_key)
    folder = store_folder(parent, key)
    if not folder.exists():
        _make_folder(parent)
        aside = aside_of(parent, key)
        # First: it may be what fills the disk.
        remove_abandoned(parent, but=aside)
        with alone(aside):
            # It may have been prepared while we waited.
            if not folder.exists():
                resized = image_shape(image) if image.fit == "resize" else None
                with_masks = task.type == "segmentation"
                writer = StoreWriter(aside, key, resized, with_masks=with_masks)
                with contextlib.closing(writer):
                    prepare = Preparation(task, image, pseudonym_key)
                    _decode(writer, dataset, prepare, strict, progress, workers)
                    _refuse_useless(writer, dataset, task, digest_again)
                    header = _header(dataset, prepare, key, writer)
                    _publish(writer.finish(header, dataset.unusable), folder)
                    writer.discard()
    store = open_store(folder)
    if strict and store.num_quarantined:
        raise UnreadableImageError(
            f"{store.num_quarantined} image(s) of {dataset.name} cannot be used; they are listed "
            f"in {folder / 'quarantine.jsonl'}. The first: "
            f"{read_quarantine(folder)[0]['reason']} Mend them, or run without --strict."
        )
    return store


def store_key(
    dataset: SourceDataset, task: TaskSection, image: DataSection, pseudonym_key: bytes
) -> str:
    """Return the SHA-256 that names a store: source, preprocessing, label set, pseudonym key."""
    parts = {
        "format": STORE_FORMAT,
        "source": dataset.digest,
        "image": list(image_shape(image)),
        "stored_size": image.stored_size,
        "spacing_mm": image.spacing_mm,
        "views": image.views,
        "task": task.type,
        "mode": task.mode,
        "labels": task.label_names,
        "findings": task.report.findings if task.type == "report" else {},
        "pseudonyms": hashlib.sha256(b"medfed pseudonym key " + pseudonym_key).hexdigest(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _decode(
    writer: StoreWriter,
    dataset: SourceDataset,
    prepare: Preparation,
    strict: bool,
    progress: Progress | None,
    workers: int,
) -> None:
    """Prepare the records that the writer does not have yet."""
    total, done = len(dataset.records), writer.counts.records
    if done:
        log.info("%d of %d records were prepared before.", done, total)
        if progress is not None:
            progress(done, total)
    outcomes = prepared_in_order(dataset.records, done, prepare, workers)
    with contextlib.closing(outcomes):
        for outcome in outcomes:
            if strict and isinstance(outcome, Refused):
                writer.discard()
                raise UnreadableImageError(outcome.reason)
            writer.add(outcome)
            if progress is not None:
                progress(writer.counts.records, total)


def _refuse_useless(
    writer: StoreWriter,
    dataset: SourceDataset,
    task: TaskSection,
    digest_again: Callable[[], str] | None,
) -> None:
    """Throw away what nothing can be learned from, and what may be half of one, half another."""
    counts, problem = writer.counts, ""
    if not counts.images:
        problem = (
            f"None of the {counts.records} images of {dataset.name} can be used. The first "
            f"reason: {writer.first_reason()}"
        )
    elif task.type == "segmentation" and not counts.with_structures:
        problem = (
            f"All {counts.images} masks of {dataset.name} are empty: there is nothing to learn. "
            "Check that mask values are 1 and up, and that the right folder was given."
        )
    elif digest_again is not None and digest_again() != dataset.digest:
        problem = (
            f"Files of {dataset.name} changed while they were read. Run this again when nothing "
            "writes there, or on a copy."
        )
    if problem:
        writer.discard()
        raise DataError(problem)


def _header(
    dataset: SourceDataset, prepare: Preparation, key: str, writer: StoreWriter
) -> dict[str, object]:
    task, image = prepare.task, prepare.image
    return {
        "format": STORE_FORMAT,
        "key": key,
        "dataset": dataset.name,
        "licence": dataset.licence,
        "citation": dataset.citation,
        "task": task.type,
        "classes": list(task.label_names),
        "mode": task.mode,
        "views": list(image.views),
        "dimensions": image.dimensions,
        "fit": image.fit,
        "num_images": writer.counts.images,
        "num_patients": len(writer.counts.patients),
        "num_quarantined": writer.counts.quarantined + len(dataset.unusable),
    }


def _make_folder(parent: Path) -> None:
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"Expected a folder for stores at {parent}, which cannot be made: {error.strerror}. "
            "Name another."
        ) from None


def _publish(whole: Path, folder: Path) -> None:
    whole.rename(folder)
    sync_folder(folder.parent)
