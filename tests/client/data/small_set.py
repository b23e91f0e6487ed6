"""A small data set whose readers say what they decode, and a program that prepares it.

python small_set.py PARENT LOG WORKERS TASK: prepare it under PARENT, a line in LOG a decoded image.
"""

import functools
import hashlib
import os
import sys
import time
from pathlib import Path

import numpy as np

from medfed.client.data.prepare import prepare_store
from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.client.data.store import Store
from medfed.common.errors import UnreadableImageError
from medfed.common.study import DataSection, TaskSection

NUM_RECORDS = 40
LABELS = TaskSection(classes=("a", "b"))
ORGANS = TaskSection(type="segmentation", classes=("liver", "spleen"))
RESIZED = DataSection(image_size=16)
OWN_SIZE = DataSection(image_size=16, fit="patch")
KINDS = {"labels": (LABELS, RESIZED), "masks": (ORGANS, RESIZED), "patches": (ORGANS, OWN_SIZE)}


def read_image(number: int, log: Path | None, delay_s: float) -> np.ndarray:
    """Return noise of a size of its own; image 5 is damaged."""
    if log is not None:
        with log.open("ab", buffering=0) as file:
            file.write(f"{number} {os.getpid()}\n".encode())
    time.sleep(delay_s)
    if number == 5:
        raise UnreadableImageError(f"image {number}: cut off")
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (20 + number % 3, 24), dtype=np.uint8)


def read_mask(number: int) -> np.ndarray:
    mask = np.zeros((20 + number % 3, 24), dtype=np.uint8)
    mask[: number % 5, :8] = 1
    mask[10:12, number % 7 :] = 2
    return mask


def small_set(log: Path | None = None, delay_s: float = 0.0) -> SourceDataset:
    records = tuple(
        SourceRecord(
            record_id=f"{number:03d}",
            patient_id=f"{number // 2}",
            labels=("a",) if number % 2 else ("b",),
            source=f"image {number}",
            read_image=functools.partial(read_image, number, log, delay_s),
            read_mask=functools.partial(read_mask, number),
        )
        for number in range(NUM_RECORDS)
    )
    digest = hashlib.sha256(b"small set").hexdigest()
    return SourceDataset(
        name="small set", licence="", citation="", classes=(), records=records, digest=digest
    )


def prepare(dataset: SourceDataset, parent: Path, kind: str, workers: int = 1) -> Store:
    task, image = KINDS[kind]
    return prepare_store(dataset, task, image, parent=parent, pseudonym_key=b"key", workers=workers)


def content(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder by path."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


if __name__ == "__main__":
    parent, log, workers, kind = sys.argv[1:]
    prepare(small_set(Path(log), 0.02), Path(parent), kind, int(workers))
