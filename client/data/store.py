"""The prepared store: images decoded, resampled and checked once, then memory-mapped by training.

A store is a folder:

    store.json         format, key, task, label names, counts, SHA-256 of the files below
    images.npy         uint8 [N, C, H, W] or, of volumes, [N, C, D, H, W]
    masks.npy          uint8 [N, *S] for segmentation: structure indices, or one bit a region
    records.jsonl      one line an image: pseudonyms, labels, shape, split, columns, report
    quarantine.jsonl   one line an image that could not be used, and why. Never leaves this machine.

Images that keep their own size (data.fit = "patch") are padded with zeros at the far ends; `shapes`
says how far each goes. An examination in several views is one image, its views' channels side by
side. A segmentation's labels are the structures that the mask holds, a report's the findings that
its text mentions.

Shapes: N images, C channels of all views, *S spatial, P patients, L labels, V views.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medfed.client.data.npy_files import file_sha256, write_npy
from medfed.common.errors import DataError
from medfed.common.study import DataSection

STORE_FORMAT = 2


@dataclass(frozen=True)
class Store:
    """A prepared store opened for reading.

    Attributes:
        images_NCHW: Memory-mapped uint8, NCDHW where images are volumes.
        masks_NHW: Memory-mapped uint8, NDHW where images are volumes, or None.
        labels: int64 [N] class indices where an image has exactly one, else uint8 [N, L].
        patients: [N] patient pseudonyms.
        splits: [N] the official split of each image, "" where the data set has none.
        columns: Metadata by column name, [N] texts each.
        reports: [N] report texts, empty where there is none.
        record_ids: [N] image pseudonyms.
        task: The task that the store was prepared for.
        views: Names of the views, empty for single images.
        shapes: int64 [N, dimensions], the part of each stored image that is image; None if all.
        present: uint8 [N, V], which views are there; None for single images.
        dataset: Name of the data set that it was prepared from.
    """

    folder: Path
    key: str
    classes: tuple[str, ...]
    mode: Literal["multiclass", "multilabel", "ordinal"]
    images_NCHW: npt.NDArray[np.uint8]
    masks_NHW: npt.NDArray[np.uint8] | None
    labels: npt.NDArray[np.int64] | npt.NDArray[np.uint8]
    patients: tuple[str, ...]
    splits: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]
    reports: tuple[str, ...]
    record_ids: tuple[str, ...]
    num_quarantined: int
    task: Literal["classification", "segmentation", "report"] = "classification"
    views: tuple[str, ...] = ()
    shapes: npt.NDArray[np.int64] | None = field(default=None)
    present: npt.NDArray[np.uint8] | None = field(default=None)
    dataset: str = ""

    def __len__(self) -> int:
        return len(self.patients)

    @property
    def one_label(self) -> bool:
        """Whether an image has exactly one label."""
        return self.labels.ndim == 1


def image_shape(image: DataSection) -> tuple[int, ...]:
    """Return [C, *S] of the images of a store that a study asks for; -1 where sizes differ."""
    side = image.image_size if image.fit == "resize" else -1
    return (image.total_channels, *[side] * image.dimensions)


def open_store(folder: Path) -> Store:
    """Open the store in `folder`.

    Whoever opens it again while its files are as they were gets the same object: the sites of a
    simulation share a store, and a thousand of them would each read and keep all of its rows.

    Raises:
        DataError: If it is missing, half-written, of another format, or its parts disagree.
    """
    files = (folder / name for name in ("store.json", "records.jsonl", "images.npy", "masks.npy"))
    return _opened(folder, tuple(_stamp(file) for file in files))


def _stamp(file: Path) -> tuple[int, ...]:
    """What tells that a file was written anew; empty for one that is not there."""
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@lru_cache(maxsize=16)
def _opened(folder: Path, stamps: tuple[tuple[int, ...], ...]) -> Store:
    header = _read_header(folder)
    try:
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        masks_file = folder / "masks.npy"
        masks = (
            np.load(masks_file, mmap_mode="r", allow_pickle=False) if masks_file.exists() else None
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"The store {folder} is damaged ({error}). Delete the folder and prepare it again."
        ) from None
    table = _Table()
    for row in _read_rows(folder / "records.jsonl"):
        table.add(row)
    expected = header["num_images"]
    if len(table.labels) != expected or images.shape[0] != expected:
        raise DataError(
            f"The store {folder} names {expected} images but holds {images.shape[0]} images and "
            f"{len(table.labels)} records. Delete the folder and prepare it again."
        )
    return _assemble(folder, header, table, images, masks)


class _Table:
    """records.jsonl by column: a tenth of the memory that its rows would take."""

    def __init__(self) -> None:
        self.labels: list[list[int]] = []
        self.texts: dict[str, list[str]] = {
            name: [] for name in ("patient", "split", "report", "record")
        }
        self.numbers: dict[str, list[list[int]]] = {"shape": [], "present": []}
        self.columns: dict[str, list[str]] = {}
        # A text that many rows hold is kept once.
        self._known: dict[str, str] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        for name, column in self.columns.items():
            column.append(self._once(row["columns"].get(name, "")))
        for name in row["columns"].keys() - self.columns.keys():
            missing = [""] * len(self.labels)
            self.columns[name] = [*missing, self._once(row["columns"][name])]
        for name, texts in self.texts.items():
            texts.append(row[name] if name == "record" else self._once(row[name]))
        for name, numbers in self.numbers.items():
            if name in row:
                numbers.append(row[name])
        self.labels.append(row["labels"])

    def _once(self, text: str) -> str:
        return self._known.setdefault(text, text)


def _assemble(
    folder: Path,
    header: Mapping[str, Any],
    table: _Table,
    images: npt.NDArray[np.uint8],
    masks: npt.NDArray[np.uint8] | None,
) -> Store:
    classes = tuple(header["classes"])
    labels: npt.NDArray[np.int64] | npt.NDArray[np.uint8]
    if header["task"] == "classification" and header["mode"] != "multilabel":
        labels = np.array([own[0] for own in table.labels], dtype=np.int64)
    else:
        labels = np.zeros((len(table.labels), len(classes)), dtype=np.uint8)
        for index, own in enumerate(table.labels):
            labels[index, own] = 1
    labels.flags.writeable = False  # whoever opened the store shares them
    views = tuple(header["views"])
    numbers = {name: np.array(own, dtype=np.int64) for name, own in table.numbers.items()}
    return Store(
        folder=folder,
        key=header["key"],
        classes=classes,
        mode=header["mode"],
        images_NCHW=images,
        masks_NHW=masks,
        labels=labels,
        patients=tuple(table.texts["patient"]),
        splits=tuple(table.texts["split"]),
        columns={name: tuple(table.columns[name]) for name in sorted(table.columns)},
        reports=tuple(table.texts["report"]),
        record_ids=tuple(table.texts["record"]),
        num_quarantined=header["num_quarantined"],
        task=header["task"],
        views=views,
        shapes=numbers["shape"] if header["fit"] == "patch" else None,
        present=numbers["present"].astype(np.uint8) if views else None,
        dataset=header["dataset"],
    )


def verify_store(store: Store) -> None:
    """Hold a store's files to the hashes that were written with them. Reads all of it.

    Raises:
        DataError: A file was changed or damaged since, or the store states no hashes.
    """
    stated = _read_header(store.folder).get("sha256")
    names = {"images.npy", "records.jsonl"} | (
        {"masks.npy"} if store.masks_NHW is not None else set()
    )
    if not isinstance(stated, dict) or set(stated) != names:
        raise DataError(
            f"The store {store.folder} does not state the hashes of its files: an earlier version "
            "wrote it. Prepare it again to have them."
        )
    for name in sorted(names):
        try:
            found = file_sha256(store.folder / name)
        except OSError as error:
            raise DataError(f"{store.folder / name} cannot be read: {error.strerror}.") from None
        if found != stated[name]:
            raise DataError(
                f"{store.folder / name} is not what was prepared: expected SHA-256 "
                f"{stated[name][:16]}..., got {found[:16]}.... The file was damaged or changed. "
                "Delete the store and prepare it again."
            )


def copy_rows(store: Store, rows: Sequence[int], folder: Path) -> None:
    """Write a new store in `folder` that holds only images `rows` of another, in this order.

    Raises:
        OSError: The folder cannot be written.
    """
    header, chosen = _read_header(store.folder), list(rows)
    records = list(_read_rows(store.folder / "records.jsonl"))
    kept = [records[row] for row in chosen]
    folder.mkdir(parents=True)
    parts = {"images.npy": store.images_NCHW}
    if store.masks_NHW is not None:
        parts["masks.npy"] = store.masks_NHW
    for name, array in parts.items():
        shape = (len(chosen), *array.shape[1:])
        write_npy(folder / name, shape, (np.asarray(array[row]) for row in chosen))
    lines = "".join(json.dumps(record, sort_keys=True) + "\n" for record in kept)
    (folder / "records.jsonl").write_text(lines, encoding="utf-8")
    (folder / "quarantine.jsonl").write_text("", encoding="utf-8")
    content = {
        **header,
        # Of these images and no others.
        "key": hashlib.sha256(f"{header['key']}\n{lines}".encode()).hexdigest(),
        "num_images": len(kept),
        "num_patients": len({record["patient"] for record in kept}),
        "num_quarantined": 0,
        "sha256": {name: file_sha256(folder / name) for name in (*parts, "records.jsonl")},
    }
    # Last: it says that all of the store is there.
    (folder / "store.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def read_quarantine(folder: Path) -> list[dict[str, str]]:
    """Return the store's quarantined images: `source` and `reason` each. For local eyes only."""
    return [
        {"source": row["source"], "reason": row["reason"]}
        for row in _read_rows(folder / "quarantine.jsonl")
    ]


def _read_header(folder: Path) -> dict[str, Any]:
    try:
        header = json.loads((folder / "store.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"Expected a prepared store at {folder}, found none. "
            "Check that path; `medfed data prepare` makes one."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{folder / 'store.json'} is damaged ({error}). Delete the folder, prepare it again."
        ) from None
    if not isinstance(header, dict) or header.get("format") != STORE_FORMAT:
        raise DataError(
            f"Expected a store of format {STORE_FORMAT} at {folder}, got another. "
            "Delete the folder and prepare it again with this version."
        )
    return header


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as lines:
            yield from (json.loads(line) for line in lines)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}). Delete the store and prepare it again."
        ) from None
