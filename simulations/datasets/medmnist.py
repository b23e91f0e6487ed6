"""MedMNIST: small public image sets, one `.npz` each, downloaded with their checksum or given.

A file holds `train_images`, `train_labels`, `val_*` and `test_*`: images uint8 [N, H, W] or
[N, H, W, 3], volumes [N, D, H, W], labels [N, 1], or [N, L] of zeros and ones for multi-label sets.
"""

import difflib
import functools
import hashlib
import logging
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfed.client.data.records import SourceDataset, SourceRecord, Split
from medfed.common.errors import DataError
from medfed.simulations.datasets.download import download, file_md5
from medfed.simulations.datasets.medmnist_sets import MEDMNIST_SETS, SIZES, MedMnistSet, url_of

logger = logging.getLogger(__name__)

# Part of the digest: raise it when this module turns the same file into other records.
_LOADER = "medmnist loader 1"

# What reading a damaged archive raises, depending on where the damage is.
_DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One third of a file as checked: `name` is what the file calls it."""

    name: str
    split: Split
    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


def load_medmnist(name: str, path: Path | None, cache: Path) -> SourceDataset:
    """Return the MedMNIST set `name`, from `path` or downloaded once into `cache`/medmnist.

    The published train and val parts are split "train", the test part is "test". The files hold no
    patients, so each image is its own patient, except that images with the very same pixels share
    one. Where copies lie on both sides of the split, all of them are "train": an image that was
    trained on is never tested on. Several images of one person may still be on both sides; nothing
    in the files tells.

    The whole file is held in memory: 4 MB for pneumoniamnist, 16 GB for pathmnist_224. The size of
    a volume's voxel is not in the files.

    Args:
        name: E.g. pneumoniamnist (28 pixels), or with a size, pneumoniamnist_64, organmnist3d_64.
        path: The .npz, or a folder that holds `<name>.npz`. A file that is not the published one
            (by MD5) is taken, with a warning logged.
        cache: Folder for downloads.

    Raises:
        DataError: An unknown name, no file, no connection, a wrong checksum after a download, or
            arrays that are not those of `name`.
    """
    facts, size = _facts(name)
    md5 = facts.md5[size]
    file = _given_file(name, path, md5) if path else _cached_file(name, md5, cache)
    parts = _read_parts(file, name)
    with file.open("rb") as content:
        file_digest = hashlib.file_digest(content, "sha256").hexdigest()
    return SourceDataset(
        name=f"MedMNIST {name}",
        licence=facts.licence,
        citation="Yang J et al. MedMNIST v2. Sci Data 10:41 (2023).",
        classes=facts.classes,
        records=_records(parts, file, facts),
        digest=hashlib.sha256(f"{_LOADER}\x1f{name}\x1f{file_digest}".encode()).hexdigest(),
        dimensions=facts.dimensions,
    )


def _facts(name: str) -> tuple[MedMnistSet, int]:
    base, _, suffix = name.partition("_")
    if base not in MEDMNIST_SETS:
        nearest = difflib.get_close_matches(base, MEDMNIST_SETS, n=1, cutoff=0.5)
        hint = f"Did you mean {nearest[0]}? " if nearest else ""
        raise DataError(
            f"Expected the name of a MedMNIST set (simulation.name), got {name!r}. {hint}"
            f"There are: {', '.join(MEDMNIST_SETS)}."
        )
    facts = MEDMNIST_SETS[base]
    first, *others = SIZES[facts.dimensions]
    if suffix and suffix not in map(str, others):
        names = [base, *(f"{base}_{size}" for size in others)]
        raise DataError(
            f"Expected {', '.join(names[:-1])} or {names[-1]} (simulation.name), got {name!r}."
        )
    return facts, int(suffix or first)


def _given_file(name: str, path: Path, md5: str) -> Path:
    file = path / f"{name}.npz" if path.is_dir() else path
    if not file.is_file():
        raise DataError(
            f"Expected a .npz, or a folder that holds {name}.npz, with --data; found none at "
            f"{file}. Download it from {url_of(name)} (MD5 {md5}), or leave out --data to have it "
            "downloaded."
        )
    actual = file_md5(file)
    if actual != md5:
        logger.warning(
            "%s is not the published %s (MD5 %s, published %s). It is used as it is.",
            file,
            name,
            actual,
            md5,
        )
    return file


def _cached_file(name: str, md5: str, cache: Path) -> Path:
    file = cache / "medmnist" / f"{name}.npz"
    download(url_of(name), file, md5=md5)
    return file


def _read_parts(file: Path, name: str) -> list[_Part]:
    splits: tuple[tuple[str, Split], ...] = (("train", "train"), ("val", "train"), ("test", "test"))
    try:
        # Opened here: on a damaged archive np.load leaves open what it opened itself.
        with file.open("rb") as content:
            arrays = np.load(content, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise ValueError("one array, not an archive of them")
            return [_read_part(arrays, part, split, file, name) for part, split in splits]
    except KeyError as error:
        raise DataError(
            f"{file}: expected the arrays train_images, train_labels, val_*, test_*, got no "
            f"{error.args[0].split()[0]}. Is it a MedMNIST file? Download it from {url_of(name)}."
        ) from None
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise DataError(
            f"{file} cannot be read as a .npz ({reason}). Download it again from {url_of(name)}."
        ) from None


def _read_part(
    arrays: "np.lib.npyio.NpzFile", part: str, split: Split, file: Path, name: str
) -> _Part:
    images = _checked_images(arrays[f"{part}_images"], f"{file}, array {part}_images", name)
    labels = _checked_labels(arrays[f"{part}_labels"], f"{file}, array {part}_labels", name)
    if len(images) != len(labels):
        raise DataError(
            f"{file}: expected one label row for each of the {len(images)} images of "
            f"{part}_images, got {len(labels)}. Download the file again."
        )
    return _Part(name=part, split=split, images=images, labels=labels)


def _checked_images(
    images: npt.NDArray[np.generic], source: str, name: str
) -> npt.NDArray[np.uint8]:
    facts, size = _facts(name)
    shape = (size,) * facts.dimensions + ((3,) if facts.colour else ())
    if images.dtype != np.uint8 or images.shape[1:] != shape:
        raise DataError(
            f"{source}: expected uint8 of shape [N, "
            f"{', '.join(map(str, shape))}] for {name}, got {images.dtype} of shape "
            f"{list(images.shape)}. Set simulation.name to the set that this file holds."
        )
    return images.astype(np.uint8, copy=False)


def _checked_labels(
    labels: npt.NDArray[np.generic], source: str, name: str
) -> npt.NDArray[np.int64]:
    facts, _ = _facts(name)
    multilabel = facts.mode == "multilabel"
    width, limit = (len(facts.classes), 2) if multilabel else (1, len(facts.classes))
    if labels.dtype.kind not in "iu" or labels.ndim != 2 or labels.shape[1] != width:
        raise DataError(
            f"{source}: expected integers of shape [N, {width}] for {name}, got "
            f"{labels.dtype} of shape {list(labels.shape)}. Set simulation.name to the set that "
            "this file holds."
        )
    wide = labels.astype(np.int64)
    wrong = np.argwhere((wide < 0) | (wide >= limit))
    if len(wrong):
        row, column = wrong[0]
        raise DataError(
            f"{source}, row {row}: expected 0 to {limit - 1} for {name}, got "
            f"{wide[row, column]}. Set simulation.name to the set that this file holds."
        )
    return wide


def _records(parts: list[_Part], file: Path, facts: MedMnistSet) -> tuple[SourceRecord, ...]:
    first_of: dict[bytes, tuple[str, Split]] = {}
    records: list[SourceRecord] = []
    # Train comes before test, so the first copy of a picture decides the side of all of them.
    for part in parts:
        for row, (image, label) in enumerate(zip(part.images, part.labels, strict=True)):
            record_id = f"{part.name}-{row:06d}"
            pixels = hashlib.sha256(image.tobytes()).digest()
            patient_id, split = first_of.setdefault(pixels, (record_id, part.split))
            records.append(
                SourceRecord(
                    record_id=record_id,
                    patient_id=patient_id,
                    labels=_label_names(label, facts),
                    source=f"{file.name} {part.name}_images row {row}",
                    read_image=functools.partial(_copy_row, part.images, row),
                    split=split,
                )
            )
    return tuple(records)


def _label_names(label: npt.NDArray[np.int64], facts: MedMnistSet) -> tuple[str, ...]:
    chosen = np.flatnonzero(label) if facts.mode == "multilabel" else label
    return tuple(facts.classes[index] for index in chosen)


def _copy_row(images: npt.NDArray[np.uint8], row: int) -> npt.NDArray[np.generic]:
    # A copy: whoever changes it must not change what the next reader sees.
    pixels: npt.NDArray[np.uint8] = images[row].copy()
    return pixels
