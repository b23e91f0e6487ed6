"""Writes a store aside, record by record, so that whatever ends it, nothing is decoded twice.

    .preparing-KEY/rows.jsonl       journal: a line a record, with the SHA-256 of its pixels
    .preparing-KEY/*.packed         pixels one after the other, where images differ in size
    .preparing-KEY/store/           what becomes the store, renamed as a whole at the very end

Memory does not grow with the images. Records come in their order: line n is about record n, and
what follows the last line whose pixels are there, and are what it says, is cut off on resuming.

Shapes: N images, C channels, *S spatial.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from medfed.client.data.npy_files import Pixels, file_sha256, npy_header, write_npy
from medfed.client.data.preparing import Prepared, Refused
from medfed.client.data.records import UnusableSource
from medfed.common.errors import DataError
from medfed.common.files import sync_folder

_JOURNAL = "rows.jsonl"
_JOURNAL_FORMAT = 1
_MAX_HEAD_BYTES = 1000


@dataclass
class Counts:
    """What has been written so far."""

    records: int = 0
    images: int = 0
    quarantined: int = 0
    with_structures: int = 0
    patients: set[str] = field(default_factory=set)


class _Pixels:
    """The file that images or masks go to: an .npy whose first side grows, or packed bytes."""

    def __init__(self, aside: Path, name: str, shape: Sequence[int] | None) -> None:
        self.npy = aside / "store" / f"{name}.npy"
        self._shape = shape
        self._path = self.npy if shape is not None else aside / f"{name}.packed"
        self._head = len(npy_header((0, *shape))) if shape is not None else 0
        self.largest: tuple[int, ...] = ()
        self._file: BinaryIO | None = None

    def begin(self, *, anew: bool) -> None:
        self._file = self._path.open("w+b" if anew or not self._path.exists() else "r+b")
        if anew:
            self._file.write(npy_header((0, *self._shape)) if self._shape is not None else b"")
        self.file.seek(self._head)

    @property
    def file(self) -> BinaryIO:
        assert self._file is not None
        return self._file

    def append(self, array: Pixels) -> None:
        self.file.write(np.ascontiguousarray(array).reshape(-1).data)
        self.file.flush()
        self.grow(array.shape)

    def grow(self, shape: Sequence[int]) -> None:
        pairs = zip(self.largest, shape, strict=True) if self.largest else ((n, n) for n in shape)
        self.largest = tuple(max(pair) for pair in pairs)

    def read(self, shape: Sequence[int]) -> Pixels | None:
        """Return the next array, or None if there is no more of it."""
        size = int(np.prod(shape, dtype=np.int64))
        content = self.file.read(size)
        return np.frombuffer(content, np.uint8).reshape(shape) if len(content) == size else None

    def finish(self, shapes: Iterator[Sequence[int]], num_images: int) -> None:
        """Make the .npy of what was written."""
        if self._shape is not None:
            self.file.seek(0)
            self.file.write(npy_header((num_images, *self._shape)))
            self.file.flush()
            return
        self.file.seek(0)
        write_npy(self.npy, (num_images, *self.largest), (self._next(one) for one in shapes))

    def _next(self, shape: Sequence[int]) -> Pixels:
        array = self.read(shape)
        if array is None:
            raise DataError(f"{self._path} is cut short. Delete its folder, prepare again.")
        return array

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class StoreWriter:
    """Writes one store aside.

    Args:
        aside: The folder to write in; the same one for the same store.
        key: The store's key: what another key left here is thrown away.
        image_shape: [C, *S] of the images, or None where their sizes differ.
        with_masks: Whether masks go with the images.

    Raises:
        DataError: Nothing can be written there.
    """

    def __init__(
        self, aside: Path, key: str, image_shape: Sequence[int] | None, *, with_masks: bool
    ) -> None:
        self.aside = aside
        self.folder = aside / "store"
        self.counts = Counts()
        self._head = _journal_head(key)
        self._images = _Pixels(aside, "images", image_shape)
        self._masks = _Pixels(aside, "masks", image_shape and image_shape[1:])
        self._parts = [self._images, self._masks] if with_masks else [self._images]
        with self._told():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._journal = (aside / _JOURNAL).open("a+b")
            self._resume()

    def add(self, outcome: Prepared | Refused) -> None:
        """Write the next record.

        Raises:
            DataError: It cannot be written. What was written before is kept.
        """
        with self._told():
            if isinstance(outcome, Refused):
                line: dict[str, Any] = {"source": outcome.source, "reason": outcome.reason}
            else:
                arrays = [outcome.image] if outcome.mask is None else [outcome.image, outcome.mask]
                for part, array in zip(self._parts, arrays, strict=True):
                    part.append(array)
                line = {
                    "sha256": _digest(arrays),
                    "shapes": [array.shape for array in arrays],
                    "row": outcome.row,
                }
            # After the pixels: a line says that they are there.
            self._journal.write((json.dumps(line, sort_keys=True) + "\n").encode())
            self._journal.flush()
        self._count(line)

    def first_reason(self) -> str:
        """Return why the first record that cannot be used cannot."""
        return next((str(line["reason"]) for line in self._lines() if "reason" in line), "")

    def finish(self, header: dict[str, Any], never_records: Sequence[UnusableSource] = ()) -> Path:
        """Complete the store; return its folder, which only has to be renamed.

        Args:
            header: store.json but for the files' hashes.
            never_records: What gave no record, and is listed with the records that failed.

        Raises:
            DataError: It cannot be written. What was written before is kept.
        """
        with self._told():
            for number, part in enumerate(self._parts):
                part.finish(self._shapes(number), self.counts.images)
            rows = (line["row"] for line in self._lines() if "row" in line)
            _write_lines(self.folder / "records.jsonl", rows)
            refused = [asdict(one) for one in never_records]
            refused += [line for line in self._lines() if "reason" in line]
            _write_lines(self.folder / "quarantine.jsonl", refused)
            names = [*(part.npy.name for part in self._parts), "records.jsonl"]
            hashes = {name: file_sha256(self.folder / name) for name in names}
            # Last: it says that all of the store is there.
            content = json.dumps({**header, "sha256": hashes}, indent=1)
            (self.folder / "store.json").write_text(content, encoding="utf-8")
            for path in self.folder.iterdir():
                _flush_to_disk(path)
            sync_folder(self.folder)
        return self.folder

    def close(self) -> None:
        """Close the files; what was written stays for the next attempt."""
        for close in (self._journal.close, *(part.close for part in self._parts)):
            # A disk that is full refuses once more what it refused before.
            with suppress(OSError):
                close()

    def discard(self) -> None:
        """Throw away what was written."""
        self.close()
        shutil.rmtree(self.aside, ignore_errors=True)

    def _resume(self) -> None:
        """Go on after the last record that is whole, or begin anew."""
        self._journal.seek(0)
        known = self._journal.readline() == self._head.encode()
        if not known:
            self._journal.truncate(0)
            self._journal.write(self._head.encode())
        for part in self._parts:
            part.begin(anew=not known)
        end = len(self._head)
        ends = [part.file.tell() for part in self._parts]
        while known and (line := _parsed(self._journal.readline())) and self._is_whole(line):
            self._count(line)
            end, ends = self._journal.tell(), [part.file.tell() for part in self._parts]
        self._journal.truncate(end)
        for part, position in zip(self._parts, ends, strict=True):
            part.file.truncate(position)
            part.file.seek(position)
        self._journal.seek(0, os.SEEK_END)

    def _is_whole(self, line: dict[str, Any]) -> bool:
        """Whether the pixels of a line are there, and are what it says."""
        if "reason" in line:
            return True
        arrays = []
        for part, shape in zip(self._parts, line["shapes"], strict=True):
            array = part.read(shape)
            if array is None:
                return False
            arrays.append(array)
        if _digest(arrays) != line["sha256"]:
            return False
        for part, array in zip(self._parts, arrays, strict=True):
            part.grow(array.shape)
        return True

    def _count(self, line: dict[str, Any]) -> None:
        counts = self.counts
        counts.records += 1
        if "reason" in line:
            counts.quarantined += 1
            return
        counts.images += 1
        counts.with_structures += bool(line["row"]["labels"])
        counts.patients.add(line["row"]["patient"])

    def _lines(self) -> Iterator[dict[str, Any]]:
        with (self.aside / _JOURNAL).open("rb") as lines:
            next(lines)
            yield from (json.loads(line) for line in lines)

    def _shapes(self, number: int) -> Iterator[Sequence[int]]:
        return (line["shapes"][number] for line in self._lines() if "row" in line)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"The store cannot be written in {self.aside.parent}: {error.strerror}. Make room "
                "there or name another folder, and run this again: the "
                f"{self.counts.records:,} record(s) that are done are kept."
            ) from None


def journal_key(aside: Path) -> str | None:
    """Return the key of the store that was begun in `aside`; None if nothing can go on there."""
    try:
        with (aside / _JOURNAL).open("rb") as journal:
            line = journal.readline(_MAX_HEAD_BYTES)
    except FileNotFoundError:
        return None
    table = _parsed(line)
    key = table.get("key") if isinstance(table, dict) else None
    return key if isinstance(key, str) and line == _journal_head(key).encode() else None


def _journal_head(key: str) -> str:
    return json.dumps({"journal": _JOURNAL_FORMAT, "key": key}) + "\n"


def _digest(arrays: Sequence[Pixels]) -> str:
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(np.ascontiguousarray(array).reshape(-1).data)
    return whole.hexdigest()


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return a line of the journal; None if it is not whole."""
    if not line.endswith(b"\n"):
        return None
    try:
        table: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return table


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, sort_keys=True) + "\n" for row in rows)


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
