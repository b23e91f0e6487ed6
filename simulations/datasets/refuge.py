"""REFUGE (2018): fundus photographs with glaucoma labels and masks of optic disc and cup.

    Training400/Glaucoma/g0001.jpg, Training400/Non-Glaucoma/n0001.jpg
    REFUGE-Validation400/V0001.jpg
    Test400/T0001.jpg
    Annotation-Training400/Disc_Cup_Masks/{Glaucoma,Non-Glaucoma}/g0001.bmp
    REFUGE-Validation400-GT/Disc_Cup_Masks/V0001.bmp, ../Fovea_locations.xlsx
    REFUGE-Test-GT/Disc_Cup_Masks/{G,N}/T0001.bmp, ../Glaucoma_label_and_Fovea_location.xlsx

or the same parts as the archive of REFUGE2 holds them (Train/REFUGE1-train, -val, -test), or as
Kaggle's copy does (train/Images, train/Masks, train/index.json, and val, test). Files are known by
their names, so folders may lie anywhere below the one given. What REFUGE2 adds (its Validation/
and Test/, which repeat names) is not read.

Masks are 0 cup, 128 disc around it, 255 background. The files name no patients: an image counts as
its own. Training photographs are from one camera, the others from another: column `camera`.
"""

import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfed.client.data.records import SourceDataset, SourceRecord, Split
from medfed.common.errors import DataError, UnreadableImageError
from medfed.simulations.datasets.digests import dataset_digest, file_digest
from medfed.simulations.datasets.pictures import read_picture, refuse
from medfed.simulations.datasets.spreadsheet import read_xlsx

logger = logging.getLogger(__name__)

CLASSES = ("Non-Glaucoma", "Glaucoma")
# Regions: the cup lies in the disc.
STRUCTURES = ("optic disc", "optic cup")

HOW_TO_GET = (
    "Download REFUGE-Training400.zip, Annotation-Training400.zip, REFUGE-Validation400.zip, "
    "REFUGE-Validation400-GT.zip, REFUGE-Test400.zip and REFUGE-Test-GT.zip from "
    "https://refuge.grand-challenge.org/REFUGE2Download/ (account needed; REFUGE2.zip has them), "
    "unpack them into one folder and name it with --data."
)

_NAME = re.compile(r"[gnVT]\d{4}")
_PART_OF = {"g": "train", "n": "train", "V": "val", "T": "test"}
_PARTS = ("train", "val", "test")
_CAMERAS = {"train": "Zeiss Visucam 500", "val": "Canon CR-2", "test": "Canon CR-2"}
_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg"})
_MASK_SUFFIXES = frozenset({".bmp", ".png"})
# REFUGE2's own parts repeat the names of REFUGE's.
_SECOND_EDITION = re.compile(r"Validation|Test|refuge2-.*|__MACOSX", re.IGNORECASE)
_KAGGLE_PARTS = frozenset(_PARTS)

_IMAGE_COLUMN = "ImgName"
_TABLES = {
    "Fovea_locations.xlsx": "Glaucoma Label",
    "Glaucoma_label_and_Fovea_location.xlsx": "Label(Glaucoma=1)",
}
_INDEX = "index.json"

_CUP, _DISC, _BACKGROUND = 0, 128, 255

# Part of the digest: raise it when this module turns the same files into other records.
_LOADER = "refuge loader 1"


@dataclass
class _Found:
    """What lies below the folder, by the name of the image; and the labels of val and test."""

    images: dict[str, Path] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    contents: list[str] = field(default_factory=list)


def load_refuge(folder: Path) -> SourceDataset:
    """Read REFUGE from `folder`, from any of the published forms.

    Training images are labelled by their names, the others by the tables; val and test images
    without a label are not loaded, with a warning. An image whose mask or table row is there and
    that is missing is a record whose `read_image` raises. Mask regions overlap: bit 0 is the disc
    with the cup, bit 1 the cup. The last of the parts that are there is the test side (of all
    three: the test part), the others are train; with one part there is no split.

    Raises:
        DataError: No such folder, no image, one name twice, or a table that cannot be read as such.
    """
    if not folder.is_dir():
        raise DataError(f"Expected the folder of REFUGE at {folder}, found none. {HOW_TO_GET}")
    found = _find_files(folder)
    labels = _label_all(found)
    if not labels or not found.images:
        raise DataError(
            f"Expected images g0001.jpg, n0001.jpg, ... below {folder}, got none. {HOW_TO_GET}"
        )
    present = [part for part in _PARTS if any(_PART_OF[name[0]] == part for name in labels)]
    tested = present[-1] if len(present) > 1 else ""
    return SourceDataset(
        name="REFUGE",
        licence="Terms of the challenge on grand-challenge.org, after registration",
        citation=(
            "Orlando JI et al. REFUGE Challenge: a unified framework for evaluating automated "
            "methods for glaucoma assessment from fundus photographs. Med Image Anal 59:101570 "
            "(2020)."
        ),
        classes=CLASSES,
        records=tuple(_record(found, name, label, tested) for name, label in labels.items()),
        digest=dataset_digest(
            _LOADER,
            [
                sorted(found.contents),
                *(
                    (name, file_digest(found.images.get(name)), file_digest(found.masks.get(name)))
                    for name in labels
                ),
            ],
        ),
        structures=STRUCTURES,
    )


def _find_files(folder: Path) -> _Found:
    found = _Found()
    for path in _walk(folder):
        name, suffix = path.stem, path.suffix.lower()
        if path.name in _TABLES:
            _add_sheet(found, path, _TABLES[path.name])
        elif path.name == _INDEX and path.parent.name in _KAGGLE_PARTS:
            _add_index(found, path)
        elif _NAME.fullmatch(name) and "mask" in str(path.relative_to(folder).parent).lower():
            if suffix in _MASK_SUFFIXES:
                _add_file(found.masks, name, path)
        elif _NAME.fullmatch(name) and suffix in _IMAGE_SUFFIXES:
            _add_file(found.images, name, path)
    return found


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            # Kaggle's test/ is in small letters and holds REFUGE's own.
            if name in _KAGGLE_PARTS or not _SECOND_EDITION.fullmatch(name)
        )
        yield from (Path(root) / name for name in sorted(names) if not name.startswith("."))


def _add_file(files: dict[str, Path], name: str, path: Path) -> None:
    if name in files:
        raise DataError(
            f"Expected {path.name} of REFUGE once, got {files[name]} and {path}. Name the folder "
            "of one copy with --data."
        )
    files[name] = path


def _add_sheet(found: _Found, path: Path, column: str) -> None:
    table = read_xlsx(path, columns=(_IMAGE_COLUMN, column), how_to_get=HOW_TO_GET)
    found.contents.append(hashlib.sha256(table.content).hexdigest())
    for line, row in table.rows.items():
        _add_label(found, row[_IMAGE_COLUMN], row[column], f"{path} line {line}, column {column}")


def _add_index(found: _Found, path: Path) -> None:
    content = path.read_bytes()
    try:
        rows = [(str(row[_IMAGE_COLUMN]), row.get("Label")) for row in json.loads(content).values()]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f'{path}: expected the keys "0", "1", ... with ImgName and Label, got something else '
            f"({error!r}). Fetch the file again."
        ) from None
    found.contents.append(hashlib.sha256(content).hexdigest())
    for position, (image, label) in enumerate(rows):
        if label is not None:
            _add_label(found, image, str(label), f"{path} entry {position}")


def _add_label(found: _Found, image: str, value: str, where: str) -> None:
    name = Path(image).stem
    try:
        label = CLASSES[("0", "1").index(value.removesuffix(".0"))]
    except ValueError:
        raise DataError(
            f"{where}: expected 1 for glaucoma or 0, got {value!r}. Mend that line, or fetch the "
            "file again."
        ) from None
    if not _NAME.fullmatch(name):
        raise DataError(
            f"{where}: expected the name of an image such as V0001.jpg, got {image!r}. Fetch the "
            "file again."
        )
    if found.labels.setdefault(name, label) != label:
        raise DataError(
            f"{where}: {image} is {label} here and {found.labels[name]} before. Delete the wrong "
            "one."
        )


def _label_all(found: _Found) -> dict[str, str]:
    """The label by image, training before val before test."""
    by_name: Mapping[str, str] = {"g": "Glaucoma", "n": "Non-Glaucoma"}
    names = sorted(
        {*found.images, *found.masks, *found.labels},
        key=lambda name: (_PARTS.index(_PART_OF[name[0]]), name),
    )
    labels = {name: by_name.get(name[0]) or found.labels.get(name, "") for name in names}
    if without := sum(not label for label in labels.values()):
        logger.warning(
            "%d image(s) of val or test have no label and are not used: %s are not here, or do not "
            "name them.",
            without,
            " and ".join(_TABLES),
        )
    return {name: label for name, label in labels.items() if label}


def _record(found: _Found, name: str, label: str, tested: str) -> SourceRecord:
    part = _PART_OF[name[0]]
    path, mask = found.images.get(name), found.masks.get(name)
    side: Split = "test" if part == tested else "train"
    return SourceRecord(
        record_id=name,
        patient_id=name,
        labels=(label,),
        source=f"{part} {name}.jpg",
        # A missing file must surface when it is read, so that it is quarantined and counted.
        read_image=functools.partial(read_picture, path, "RGB")
        if path
        else functools.partial(
            refuse,
            f"Expected {name}.jpg of REFUGE's {part} part, found none, though its mask or label is "
            "there. Fetch it again, or delete those.",
        ),
        read_mask=functools.partial(_read_mask, mask) if mask else None,
        split=side if tested else None,
        columns={"part": part, "camera": _CAMERAS[part]},
    )


def _read_mask(path: Path) -> npt.NDArray[np.uint8]:
    values = read_picture(path, "L")
    others = np.setdiff1d(values, (_CUP, _DISC, _BACKGROUND))
    if others.size:
        raise UnreadableImageError(
            f"{path}: expected {_CUP} for the cup, {_DISC} for the disc and {_BACKGROUND} "
            f"elsewhere, got {', '.join(map(str, others[:5]))} too. Take the published mask: one "
            "that was resampled or renumbered cannot be told apart."
        )
    disc, cup = (values <= _DISC).astype(np.uint8), (values == _CUP).astype(np.uint8)
    regions: npt.NDArray[np.uint8] = disc | (cup << 1)
    return regions
