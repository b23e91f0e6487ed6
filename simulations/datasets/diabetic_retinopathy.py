"""Kaggle Diabetic Retinopathy Detection (EyePACS, 2015): fundus photographs of both eyes, graded.

    trainLabels.csv                     image, level
    train/<patient>_<left|right>.jpeg
    retinopathy_solution.csv            image, level, Usage: the test labels, given out later
    test/<patient>_<left|right>.jpeg

The grades of both eyes are a patient's own, and both eyes stay on one side of a split. The split
is the competition's where the images and labels of its test are there too; without them there is
none. Its public and private part are column `usage`.
"""

import functools
import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medfed.client.data.records import SourceDataset, SourceRecord, Split
from medfed.common.errors import DataError
from medfed.simulations.datasets.digests import dataset_digest, file_digest
from medfed.simulations.datasets.folders import find_root
from medfed.simulations.datasets.pictures import list_pictures, read_picture, refuse
from medfed.simulations.datasets.retinopathy_grades import GRADES, read_grades
from medfed.simulations.datasets.tables import Table

logger = logging.getLogger(__name__)

CLASSES = GRADES

HOW_TO_GET = (
    "Download trainLabels.csv and train.zip.001 to .005 (and, for the official test part, "
    "test.zip.001 to .007) from https://www.kaggle.com/c/diabetic-retinopathy-detection/data "
    "(account and consent to the rules needed), join and unpack them (cat train.zip.0* > "
    "train.zip), and name the folder that holds trainLabels.csv and train/ with --data. The test "
    "labels are https://storage.googleapis.com/kaggle-forum-message-attachments/90528/2877/"
    "retinopathy_solution.csv."
)

_TRAIN_LABELS = "trainLabels.csv"
_TEST_LABELS = "retinopathy_solution.csv"
_IMAGE = re.compile(r"(?P<patient>\d+)_(?P<eye>left|right)")

# Part of the digest: raise it when this module turns the same files into other records.
_LOADER = "diabetic_retinopathy loader 1"


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The training or the test part."""

    side: Split
    table: Table
    images: Mapping[str, Path]


def load_diabetic_retinopathy(folder: Path) -> SourceDataset:
    """Read the graded photographs in `folder`, in the competition's layout.

    An image that a row names and that is missing or damaged is a record whose `read_image` raises;
    one without a row is not loaded, with a warning. Labels are the names of the grades, in order.
    Columns are `eye` and `usage` (Public or Private in the test part, else empty).

    Raises:
        DataError: Folder, labels or images missing, a table that cannot be read as such, an image
            named twice or not after patient and eye, or a grade outside 0 to 4. Says file and line.
    """
    root = find_root(
        folder,
        ("diabetic-retinopathy-detection",),
        lambda root: (root / _TRAIN_LABELS).is_file(),
        name="Kaggle Diabetic Retinopathy Detection",
        expected=_TRAIN_LABELS,
        how_to_get=HOW_TO_GET,
    )
    train = _read_part(root, "train", _TRAIN_LABELS)
    if train is None:
        raise DataError(f"Expected train/ with images in {root}, got none. {HOW_TO_GET}")
    test = _read_part(root, "test", _TEST_LABELS)
    parts = [train, test] if test else [train]
    records = tuple(
        _record(part, line, part.side if test else None)
        for part in parts
        for line, _ in sorted(part.table.rows.items(), key=lambda item: _order(item[1]["image"]))
    )
    _check_patients(parts)
    return SourceDataset(
        name="Kaggle Diabetic Retinopathy Detection",
        licence="The competition's rules on Kaggle, to be accepted there; no redistribution",
        citation=(
            "Dugas E, Jared, Jorge, Cukierski W. Diabetic Retinopathy Detection. Kaggle (2015). "
            "Images by EyePACS: Cuadros J, Bresnick G. J Diabetes Sci Technol 3:509 (2009)."
        ),
        classes=CLASSES,
        records=records,
        digest=_digest(parts),
    )


def _read_part(root: Path, side: Split, labels: str) -> _Part | None:
    # Kaggle's archives hold a folder of the same name in the folder.
    nested = root / side / side
    folder = nested if nested.is_dir() else root / side
    images = {path.stem: path for path in list_pictures(folder)} if folder.is_dir() else {}
    if not images or not (root / labels).is_file():
        if images:
            logger.warning("The images of %s/ have no %s here and are not used.", side, labels)
        return None
    table = read_grades(root / labels, image="image", grade="level", how_to_get=HOW_TO_GET)
    named = {row["image"] for row in table.rows.values()}
    if extra := len(images.keys() - named):
        logger.warning("%d image(s) of %s/ have no row in %s.", extra, side, labels)
    for line, row in table.rows.items():
        if not _IMAGE.fullmatch(row["image"]):
            raise DataError(
                f"{table.path} line {line}, column image: expected <patient>_left or "
                f"<patient>_right, got {row['image']!r}. Mend that line."
            )
    return _Part(side=side, table=table, images=images)


def _order(image: str) -> tuple[int, str]:
    return (int(image.partition("_")[0]), image)


def _check_patients(parts: list[_Part]) -> None:
    """Refuse a mix of two copies: in the published files no patient is in both parts."""
    patients = [{_order(row["image"])[0] for row in part.table.rows.values()} for part in parts]
    if len(patients) == 2 and (both := patients[0] & patients[1]):
        raise DataError(
            f"{parts[1].table.path}: {len(both)} patient(s), the first {min(both)}, are in "
            f"{_TRAIN_LABELS} too. In the published files none is: fetch both again."
        )


def _record(part: _Part, line: int, split: Split | None) -> SourceRecord:
    row = part.table.rows[line]
    name = row["image"]
    patient, _, eye = name.partition("_")
    path = part.images.get(name)
    return SourceRecord(
        record_id=name,
        patient_id=patient,
        labels=(CLASSES[int(row["level"])],),
        source=f"{part.table.path.name} line {line} ({name}.jpeg)",
        # A missing file must surface when it is read, so that it is quarantined and counted.
        read_image=functools.partial(read_picture, path, "RGB")
        if path
        else functools.partial(
            refuse,
            f"Expected {name}.jpeg that {part.table.path.name} names, found none in {part.side}/. "
            "Place it there, or delete its row.",
        ),
        split=split,
        columns={"eye": eye, "usage": row.get("Usage", "")},
    )


def _digest(parts: list[_Part]) -> str:
    rows = [
        (name, file_digest(part.images.get(name)))
        for part in parts
        for name in sorted(row["image"] for row in part.table.rows.values())
    ]
    contents = [hashlib.sha256(part.table.content).hexdigest() for part in parts]
    return dataset_digest(_LOADER, [contents, *rows])
