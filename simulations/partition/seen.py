"""The store as the sites have it: with their scanners' images and their wrong training labels.

A store of its own, beside the one it comes from and with the same rows. What a site reads is then
a store and a subset as anywhere else: the client, the other grids and a deployment of trial sites
know nothing of it.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medfed.client.data.npy_files import write_npy
from medfed.client.data.store import Store, copy_rows, open_store
from medfed.common.download import file_checksum
from medfed.common.files import read_json
from medfed.common.study import PartitionSection
from medfed.simulations.partition.noise import wrong_labels
from medfed.simulations.partition.shift import shift_image, site_scanners

if TYPE_CHECKING:
    from medfed.simulations.sites import SiteRows

CHANGES_FILE = "changes.json"

# Raise this with any change that moves a pixel or a label: stores are keyed by it.
_VERSION = 1

Progress = Callable[[int, int], None]


def store_as_seen(
    store: Store,
    sites: Mapping[str, "SiteRows"],
    section: PartitionSection,
    *,
    seed: int,
    progress: Progress | None = None,
) -> Store:
    """Return `store` with `section.shift` and `section.noise` applied; itself if there is neither.

    Written beside `store` unless it is there already. Its `changes.json` says what was done: the
    scanner of each site and its number of wrong labels.

    Args:
        store: As prepared, images and labels true.
        sites: Rows of the store at each site.
        section: The partition.
        seed: Root seed.
        progress: Called with (done, total) images.

    Raises:
        DataError: A shift or noise that does not fit the store, or an unknown site or class.
    """
    if section.shift is None and section.noise is None:
        return store

    def change(folder: Path) -> None:
        changes = {
            "shift": _shift(store, sites, section, seed, folder, progress),
            "noise": _mislabel(store, sites, section, seed, folder),
        }
        (folder / CHANGES_FILE).write_text(json.dumps(changes, indent=1))

    return changed_store(store, _key(store, sites, section, seed), change)


def changed_store(store: Store, key: str, change: Callable[[Path], None]) -> Store:
    """Return the store of this key beside `store`; made from a copy of it unless it is there.

    Args:
        store: What is copied.
        key: Names the result: 64 hexadecimal digits that stand for all that decides it.
        change: Writes files of the copy, in the folder that it is given, anew.
    """
    folder = store.folder.parent / f"store-{key[:16]}"
    if not folder.exists():
        aside = Path(tempfile.mkdtemp(prefix=".seeing-", dir=store.folder.parent))
        try:
            copy_rows(store, range(len(store)), aside / "store")
            change(aside / "store")
            _write_header(aside / "store", key)
            _publish(aside / "store", folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return open_store(folder)


def read_changes(store: Store) -> dict[str, dict[str, Any]]:
    """Return by site the scanner (`shift`) and the number of wrong labels (`noise`) of a store.

    Both are empty for a store as prepared.
    """
    path = store.folder / CHANGES_FILE
    return read_json(path) if path.exists() else {"shift": {}, "noise": {}}


def _key(
    store: Store, sites: Mapping[str, "SiteRows"], section: PartitionSection, seed: int
) -> str:
    parts = {
        "version": _VERSION,
        "store": store.key,
        "seed": seed,
        "shift": section.shift.model_dump(mode="json") if section.shift else None,
        "noise": section.noise.model_dump(mode="json") if section.noise else None,
        "sites": {name: [rows.train, rows.test] for name, rows in sites.items()},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _shift(
    store: Store,
    sites: Mapping[str, "SiteRows"],
    section: PartitionSection,
    seed: int,
    folder: Path,
    progress: Progress | None,
) -> dict[str, dict[str, float]]:
    """Write the images again, each site's by its scanner; return the scanners."""
    if section.shift is None:
        return {}
    shift = section.shift
    scanners = site_scanners(sorted(sites), shift, seed)
    scanner_of = {
        row: scanners[name] for name, rows in sites.items() for row in (*rows.train, *rows.test)
    }

    def images() -> Iterator[npt.NDArray[np.uint8]]:
        for row, image in enumerate(store.images_NCHW):
            if row in scanner_of:
                yield shift_image(store, row, scanner_of[row], shift, seed)
            else:
                yield np.asarray(image)
            if progress is not None:
                progress(row + 1, len(store))

    write_npy(folder / "images.npy", store.images_NCHW.shape, images())
    quantities = ("noise", "gamma", "contrast", "offset", "blur", "border", "border_level", "heel")
    return {
        name: {quantity: round(getattr(scanner, quantity), 4) for quantity in quantities}
        for name, scanner in scanners.items()
    }


def _mislabel(
    store: Store,
    sites: Mapping[str, "SiteRows"],
    section: PartitionSection,
    seed: int,
    folder: Path,
) -> dict[str, dict[str, int]]:
    """Write the wrong labels; return how many patients and images of each site have one."""
    if section.noise is None:
        return {}
    training = {name: rows.train for name, rows in sorted(sites.items())}
    wrong = wrong_labels(store, training, section.noise, seed)
    write_labels(folder, {row: [label] for row, label in wrong.items()})
    mistaken = {name: [row for row in rows if row in wrong] for name, rows in training.items()}
    return {
        name: {"patients": len({store.patients[row] for row in rows}), "images": len(rows)}
        for name, rows in mistaken.items()
    }


def write_labels(folder: Path, labels: Mapping[int, list[int]]) -> None:
    """Write other labels, indices into the classes, into some rows of a store's copy."""
    path = folder / "records.jsonl"
    with path.open(encoding="utf-8") as written:
        records = [json.loads(line) for line in written]
    for row, own in labels.items():
        records[row]["labels"] = own
    lines = "".join(json.dumps(record, sort_keys=True) + "\n" for record in records)
    path.write_text(lines, encoding="utf-8")


def _write_header(folder: Path, key: str) -> None:
    header = read_json(folder / "store.json")
    header["key"] = key
    stated = header.get("sha256", {})
    header["sha256"] = {name: file_checksum(folder / name, "sha256") for name in stated}
    (folder / "store.json").write_text(json.dumps(header, indent=1), encoding="utf-8")


def _publish(aside: Path, folder: Path) -> None:
    try:
        aside.rename(folder)
    except OSError:
        # Another process made the same store meanwhile; its content is the same.
        if not (folder / "store.json").exists():
            raise
