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
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.client.data.store import STORE_FORMAT, Store, open_store, read_quarantine
from medfed.common.errors import DataError, LeakageError, UnreadableImageError
from medfed.common.study import DataSection, TaskSection

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
        image: Size and channels of the stored images.
        parent: Folder that holds stores.
        pseudonym_key: Key of the HMAC that turns patient keys into pseudonyms.
        strict: Refuse the first unreadable image instead of quarantining it.
        progress: Called with (done, total).

    Raises:
        DataError: Labels outside the label set, records named twice, or no usable image.
        LeakageError: A patient on both sides of the official split.
        UnreadableImageError: With `strict`, the first image that cannot be decoded.
    """
    _check_records(dataset, task)
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
        "image_size": image.image_size,
        "channels": image.channels,
        "mode": task.mode,
        "classes": task.classes,
        "pseudonyms": hashlib.sha256(b"medfed pseudonym key " + pseudonym_key).hexdigest(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def pseudonym(key: bytes, kind: str, identity: str) -> str:
    """Return a keyed pseudonym of 128 bits: the same identity always gives the same one."""
    return hmac.new(key, f"{kind}\x1f{identity}".encode(), hashlib.sha256).hexdigest()[:32]


def fit_image(
    pixels: npt.NDArray[np.generic], image: DataSection, source: str
) -> npt.NDArray[np.uint8]:
    """Return `pixels` ([H, W] or [H, W, 3], 0..255) as uint8 [C, image_size, image_size].

    Colour becomes grey by luma and grey is repeated over channels; bilinear with antialiasing.
    """
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3) or not pixels.size:
        raise UnreadableImageError(
            f"{source}: expected pixels of shape [H, W] or [H, W, 3], got {list(pixels.shape)}."
        )
    values = np.asarray(pixels, dtype=np.float32)
    if not np.isfinite(values).all():
        raise UnreadableImageError(f"{source}: holds NaN or infinite pixels.")
    picture = Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    picture = picture.convert("L" if image.channels == 1 else "RGB")
    side = image.image_size
    if picture.size != (side, side):
        picture = picture.resize((side, side), Image.Resampling.BILINEAR)
    array = np.asarray(picture, dtype=np.uint8)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _check_records(dataset: SourceDataset, task: TaskSection) -> None:
    if not dataset.records:
        raise DataError(f"{dataset.name} holds no images. Check the folder given with --data.")
    seen: set[str] = set()
    side: dict[str, str] = {}
    for record in dataset.records:
        if record.record_id in seen:
            raise DataError(
                f"{record.source}: the image identifier occurs twice in {dataset.name}. "
                "Keep one of the two."
            )
        seen.add(record.record_id)
        _check_labels(record, task)
        if record.split and side.setdefault(record.patient_id, record.split) != record.split:
            raise LeakageError(
                f"{record.source}: its patient is in both the train and the test split of "
                f"{dataset.name}. Put all images of a patient on one side."
            )


def _check_labels(record: SourceRecord, task: TaskSection) -> None:
    unknown = [label for label in record.labels if label not in task.classes]
    if unknown:
        raise DataError(
            f"{record.source}: label {unknown[0]!r} is outside the study's label set "
            f"({', '.join(task.classes)}). Add it to task.classes or mend the row."
        )
    if task.mode == "multiclass" and len(record.labels) != 1:
        raise DataError(
            f"{record.source}: expected exactly one label, got {len(record.labels)}. "
            'Set task.mode = "multilabel" or mend the row.'
        )


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
    images: list[npt.NDArray[np.uint8]] = []
    masks: list[npt.NDArray[np.uint8]] = []
    rows: list[dict[str, Any]] = []
    quarantine: list[dict[str, str]] = []
    with_masks = any(record.read_mask for record in dataset.records)
    total = len(dataset.records)
    for done, record in enumerate(dataset.records, start=1):
        try:
            pixels = fit_image(record.read_image(), image, record.source)
            mask = _fit_mask(record, image) if with_masks else None
        except UnreadableImageError as error:
            if strict:
                raise
            quarantine.append({"source": record.source, "reason": str(error)})
        else:
            images.append(pixels)
            rows.append(_row(record, task, pseudonym_key))
            if mask is not None:
                masks.append(mask)
        if progress is not None:
            progress(done, total)
    if not images:
        raise DataError(
            f"None of the {total} images of {dataset.name} can be used. The first reason: "
            f"{quarantine[0]['reason']}"
        )
    np.save(folder / "images.npy", np.stack(images), allow_pickle=False)
    if with_masks:
        np.save(folder / "masks.npy", np.stack(masks), allow_pickle=False)
    _write_lines(folder / "records.jsonl", rows)
    _write_lines(folder / "quarantine.jsonl", quarantine)
    header = {
        "format": STORE_FORMAT,
        "key": key,
        "dataset": dataset.name,
        "licence": dataset.licence,
        "citation": dataset.citation,
        "classes": list(task.classes),
        "mode": task.mode,
        "num_images": len(rows),
        "num_patients": len({row["patient"] for row in rows}),
        "num_quarantined": len(quarantine),
    }
    (folder / "store.json").write_text(json.dumps(header, indent=1), encoding="utf-8")


def _fit_mask(record: SourceRecord, image: DataSection) -> npt.NDArray[np.uint8]:
    side = image.image_size
    if record.read_mask is None:
        return np.zeros((side, side), dtype=np.uint8)
    # Nearest neighbour: class indices must not be averaged.
    picture = Image.fromarray(record.read_mask()).resize((side, side), Image.Resampling.NEAREST)
    return np.asarray(picture, dtype=np.uint8)


def _row(record: SourceRecord, task: TaskSection, pseudonym_key: bytes) -> dict[str, Any]:
    return {
        "record": pseudonym(pseudonym_key, "record", record.record_id),
        "patient": pseudonym(pseudonym_key, "patient", record.patient_id),
        "labels": sorted(task.classes.index(label) for label in record.labels),
        "split": record.split or "",
        "columns": dict(record.columns),
        "report": record.report,
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
