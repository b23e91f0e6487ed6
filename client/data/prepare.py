"""Writes a prepared store from source records: decode, resample, check, pseudonymise.

Nothing is dropped silently: an image that cannot be used is listed in `quarantine.jsonl` with its
reason and counted, or refused at once with `strict`. A label outside the label set, a patient on
both sides of the official split or a record named twice is a mistake in the data set as a whole
and always refused.
"""

import hashlib
import hmac
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medfed.client.data.checks import check_records
from medfed.client.data.fitting import Pixels, fit_image, fit_mask, fit_views
from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.client.data.store import (
    STORE_FORMAT,
    Store,
    image_shape,
    open_store,
    read_quarantine,
)
from medfed.common.errors import DataError, UnreadableImageError
from medfed.common.metrics.findings import FindingLabeller
from medfed.common.study import DataSection, TaskSection
from medfed.common.text import tokenise

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
) -> Store:
    """Return the store of `dataset` under `parent`, writing it if it is not there yet.

    The folder's name is a hash of the source files, the preprocessing and the label set, so a
    stale store is never used. It appears whole or not at all (written aside, then renamed).

    Args:
        dataset: The source records.
        task: Label set and mode to check every label against.
        image: Size, channels and views of the stored images.
        parent: Folder that holds stores.
        pseudonym_key: Key of the HMAC that turns patient keys into pseudonyms.
        strict: Refuse the first unreadable image instead of quarantining it.
        progress: Called with (done, total).

    Raises:
        DataError: Labels outside the label set, records named twice, or no usable image.
        LeakageError: A patient on both sides of the official split.
        UnreadableImageError: With `strict`, the first image that cannot be decoded.
    """
    check_records(dataset, task, image)
    key = store_key(dataset, task, image, pseudonym_key)
    folder = parent / f"store-{key[:16]}"
    if not folder.exists():
        parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".preparing-", dir=parent))
        try:
            _write(aside, dataset, task, image, key, pseudonym_key, strict, progress)
            _publish(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
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


def pseudonym(key: bytes, kind: str, identity: str) -> str:
    """Return a keyed pseudonym of 128 bits: the same identity always gives the same one."""
    return hmac.new(key, f"{kind}\x1f{identity}".encode(), hashlib.sha256).hexdigest()[:32]


@dataclass
class _Rows:
    """What has been prepared so far."""

    images: list[Pixels] = field(default_factory=list)
    masks: list[Pixels] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    quarantine: list[dict[str, str]] = field(default_factory=list)


def _write(
    folder: Path,
    dataset: SourceDataset,
    task: TaskSection,
    image: DataSection,
    key: str,
    pseudonym_key: bytes,
    strict: bool,
    progress: Progress | None,
) -> None:
    done = _Rows()
    with_masks = task.type == "segmentation"
    total = len(dataset.records)
    for number, record in enumerate(dataset.records, start=1):
        try:
            _add(done, record, task, image, pseudonym_key)
        except UnreadableImageError as error:
            if strict:
                raise
            done.quarantine.append({"source": record.source, "reason": str(error)})
        if progress is not None:
            progress(number, total)
    if not done.images:
        raise DataError(
            f"None of the {total} images of {dataset.name} can be used. The first reason: "
            f"{done.quarantine[0]['reason']}"
        )
    if with_masks and not any(mask.any() for mask in done.masks):
        raise DataError(
            f"All {len(done.masks)} masks of {dataset.name} are empty: there is nothing to learn. "
            "Check that mask values are 1 and up, and that the right folder was given."
        )
    np.save(folder / "images.npy", _stacked(done.images), allow_pickle=False)
    if with_masks:
        np.save(folder / "masks.npy", _stacked(done.masks), allow_pickle=False)
    _write_lines(folder / "records.jsonl", done.rows)
    _write_lines(folder / "quarantine.jsonl", done.quarantine)
    header = {
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
        "num_images": len(done.rows),
        "num_patients": len({row["patient"] for row in done.rows}),
        "num_quarantined": len(done.quarantine),
    }
    (folder / "store.json").write_text(json.dumps(header, indent=1), encoding="utf-8")


def _add(
    done: _Rows, record: SourceRecord, task: TaskSection, image: DataSection, pseudonym_key: bytes
) -> None:
    """Decode, fit and check one record; nothing is added when it cannot be used.

    Raises:
        UnreadableImageError: Pixels or mask cannot be used, or the task's target is missing.
    """
    if task.type == "report" and not record.report.strip():
        raise UnreadableImageError(
            f"{record.source}: expected a report, got none. Add its text, or leave the image out."
        )
    present: Pixels | None = None
    if image.views:
        views = {name: record.views[name]() for name in image.views if name in record.views}
        pixels, present = fit_views(views, image, record.source)
        decoded_shape = next(iter(views.values())).shape[: image.dimensions]
    else:
        decoded = record.read_image()
        decoded_shape = decoded.shape[: image.dimensions]
        pixels = fit_image(decoded, image, record.source, record.spacing_mm)
    row = _row(record, task, pseudonym_key)
    row["shape"] = list(pixels.shape[1:])
    if present is not None:
        row["present"] = present.tolist()
    if task.type == "segmentation":
        mask = _read_mask(record, task, image, decoded_shape, pixels.shape[1:])
        row["labels"] = _structures_in(mask, task)
        done.masks.append(mask)
    done.images.append(pixels)
    done.rows.append(row)


def _read_mask(
    record: SourceRecord,
    task: TaskSection,
    image: DataSection,
    shape: Sequence[int],
    fitted_shape: Sequence[int],
) -> Pixels:
    if record.read_mask is None:
        raise UnreadableImageError(
            f"{record.source}: expected a mask, found none. Place it beside the others, or leave "
            "the image out: an image without a mask is not an image without a finding."
        )
    mask = record.read_mask()
    highest = int(mask.max(initial=0))
    limit = 2 ** len(task.classes) - 1 if task.mode == "multilabel" else len(task.classes)
    if highest > limit:
        raise UnreadableImageError(
            f"{record.source}: mask value {highest} is outside the study's structures "
            f"({', '.join(task.classes)}), which allow 0 to {limit}."
        )
    return fit_mask(mask, image, record.source, shape, fitted_shape)


def _structures_in(mask: Pixels, task: TaskSection) -> list[int]:
    """Indices of the structures that `mask` holds."""
    values = np.unique(mask)
    if task.mode == "multilabel":
        return [i for i in range(len(task.classes)) if (values >> i & 1).any()]
    return [int(value) - 1 for value in values if value]


def _stacked(arrays: Sequence[Pixels]) -> Pixels:
    """Stack arrays [*, *S]; smaller ones are padded with zeros at the far ends."""
    shape = tuple(np.max([array.shape for array in arrays], axis=0))
    if all(array.shape == shape for array in arrays):
        return np.stack(arrays)
    stacked = np.zeros((len(arrays), *shape), dtype=np.uint8)
    for target, array in zip(stacked, arrays, strict=True):
        target[tuple(slice(side) for side in array.shape)] = array
    return stacked


def _row(record: SourceRecord, task: TaskSection, pseudonym_key: bytes) -> dict[str, Any]:
    labels: list[int] = []
    if task.type == "classification":
        labels = sorted(task.classes.index(label) for label in record.labels)
    elif task.type == "report":
        mentioned_F = FindingLabeller(task.report.findings)(tokenise(record.report))
        labels = np.flatnonzero(mentioned_F).tolist()
    return {
        "record": pseudonym(pseudonym_key, "record", record.record_id),
        "patient": pseudonym(pseudonym_key, "patient", record.patient_id),
        "labels": labels,
        "split": record.split or "",
        "columns": dict(record.columns),
        "report": record.report if task.type == "report" else "",
    }


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def _publish(aside: Path, folder: Path) -> None:
    try:
        aside.rename(folder)
    except OSError:
        # Another process prepared the same store meanwhile; its content is the same.
        if not (folder / "store.json").exists():
            raise
