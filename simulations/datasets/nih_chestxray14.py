"""NIH ChestX-ray14: frontal chest radiographs with fourteen findings mined from their reports.

    Data_Entry_2017_v2020.csv       a row an image; older copies: Data_Entry_2017.csv
    train_val_list.txt, test_list.txt       the official split, an image name a line
    images/00000001_000.png         Kaggle's copy: images_001/images/, ..., images_012/images/

Findings come from a text-mining program, not from a reader: some are wrong, pneumonia above all.
The boxes of BBox_List_2017.csv (880 images) outline nothing and are not read. The official split
is by patient. All images are of one hospital; its column names neither scanner nor place.
"""

import functools
import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from medfed.client.data.records import SourceDataset, SourceRecord, Split
from medfed.common.errors import DataError
from medfed.simulations.datasets.digests import dataset_digest
from medfed.simulations.datasets.folders import find_root
from medfed.simulations.datasets.known_digests import known_digests
from medfed.simulations.datasets.patients import keep_patients_whole
from medfed.simulations.datasets.pictures import list_pictures, read_picture, refuse
from medfed.simulations.datasets.tables import Table, line_of_key, read_table

logger = logging.getLogger(__name__)

CLASSES = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)

HOW_TO_GET = (
    "Download Data_Entry_2017_v2020.csv, train_val_list.txt, test_list.txt and "
    "images/images_001.tar.gz to images_012.tar.gz from "
    "https://nihcc.app.box.com/v/ChestXray-NIHCC (or "
    "https://www.kaggle.com/datasets/nih-chest-xrays/data), unpack the twelve into one folder and "
    "name the folder that holds images/ and the three with --data."
)

_TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
_LISTS: Mapping[str, Split] = {"train_val_list.txt": "train", "test_list.txt": "test"}
_NOTHING = "No Finding"

_KEYS = ("Image Index", "Patient ID")
# Copies of the table call the same column one or the other.
_SEX = ("Patient Gender", "Patient Sex")
_OTHERS = ("Finding Labels", "Follow-up #", "Patient Age", "View Position")

# The first release has "058Y", "011M", "001D"; later ones whole years. Some are beyond any life.
_AGE = re.compile(r"(?P<number>\d{1,3})(?P<unit>[YMD]?)")
_MAX_AGE = 120

# Part of the digest: raise it when this module turns the same files into other records.
_LOADER = "nih_chestxray14 loader 1"


def load_nih_chestxray14(folder: Path) -> SourceDataset:
    """Read ChestX-ray14 from `folder`, the National Institutes of Health's layout or Kaggle's.

    An image without a finding has no label ("No Finding" is the absence of the fourteen). An image
    that a row names and that is missing is a record whose `read_image` raises. Columns are `age`
    in years (empty where it is beyond 120, as 411 is), `sex`, `view` and `follow_up`. Without the
    two lists there is no split, with a warning.

    Raises:
        DataError: Folder, table or images missing, a table that cannot be read as such, a column
            missing, an image named twice, or a list that does not fit the table. Says file, line
            and column.
    """
    root = find_root(
        folder,
        ("ChestX-ray14", "CXR8"),
        lambda root: _table_path(root) is not None and bool(_image_folders(root)),
        name="NIH ChestX-ray14",
        expected=f"{_TABLES[0]} and images/",
        how_to_get=HOW_TO_GET,
    )
    table = _read_table(root)
    line_of = line_of_key(table, "Image Index")
    names = sorted(line_of)
    patients = {name: table.rows[line_of[name]]["Patient ID"].zfill(8) for name in names}
    published = _published_sides(root, table, line_of)
    sides = keep_patients_whole(published, patients, both="train", name="NIH ChestX-ray14")
    images = {path.name: path for part in _image_folders(root) for path in list_pictures(part)}
    _warn(table, line_of, images)
    with known_digests(root) as digest:
        files = [
            (name, patients[name], str(sides[name]), digest(images.get(name))) for name in names
        ]
    return SourceDataset(
        name="NIH ChestX-ray14",
        licence="Free use; cite the paper and acknowledge the NIH Clinical Center",
        citation=(
            "Wang X, Peng Y, Lu L, Lu Z, Bagheri M, Summers RM. ChestX-ray8: Hospital-scale Chest "
            "X-ray Database and Benchmarks. CVPR (2017)."
        ),
        classes=CLASSES,
        records=tuple(
            _record(table, line_of[name], images.get(name), patients[name], sides[name])
            for name in names
        ),
        digest=dataset_digest(_LOADER, [(hashlib.sha256(table.content).hexdigest(),), *files]),
    )


def _table_path(root: Path) -> Path | None:
    return next((root / name for name in _TABLES if (root / name).is_file()), None)


def _image_folders(root: Path) -> list[Path]:
    parts = [root / "images", *sorted(root.glob("images_0*/images"))]
    return [part for part in parts if part.is_dir()]


def _read_table(root: Path) -> Table:
    path = _table_path(root)
    assert path is not None  # `find_root` has seen it
    table = read_table(
        path,
        columns=(*_KEYS, *_OTHERS, *_SEX),
        keys=_KEYS,
        optional=_SEX,
        how_to_get=HOW_TO_GET,
    )
    if not set(_SEX) & set(table.header):
        raise DataError(
            f"{path} line 1: expected the columns {' or '.join(_SEX)}, got "
            f"{', '.join(table.header)}. Restore the published header."
        )
    return table


def _published_sides(
    root: Path, table: Table, line_of: Mapping[str, int]
) -> dict[str, Split | None]:
    lists = [name for name in _LISTS if (root / name).is_file()]
    if not lists:
        logger.warning("There is no %s beside the table: no split.", " nor ".join(_LISTS))
        return dict.fromkeys(sorted(line_of))
    if len(lists) < len(_LISTS):
        raise DataError(
            f"Expected {' and '.join(_LISTS)} in {root}, got {lists[0]} only. Place the other "
            f"beside it, or take both away. {HOW_TO_GET}"
        )
    sides: dict[str, Split | None] = {}
    for name, side in _LISTS.items():
        for number, line in enumerate((root / name).read_text("utf-8").splitlines(), start=1):
            image = line.strip()
            if image in sides:
                raise DataError(
                    f"{root / name} line {number}: {image} is in the lists before. Fetch both "
                    "lists again."
                )
            if image:
                sides[image] = side
    # A subset of the rows is fine; a row that is on no side is not.
    without = sorted(line_of.keys() - sides.keys())
    if without:
        raise DataError(
            f"{table.path} line {line_of[without[0]]}: expected each image in one of "
            f"{', '.join(_LISTS)}, got {without[0]} in none ({len(without)} in all). Fetch both "
            "lists again, or take them away to go without a split."
        )
    return {image: sides[image] for image in sorted(line_of)}


def _warn(table: Table, line_of: Mapping[str, int], images: Mapping[str, Path]) -> None:
    aged = sum(bool(row["Patient Age"]) and not _age(row) for row in table.rows.values())
    counts = {
        "%d image(s) have no row in the table and are not used.": len(images.keys() - line_of),
        "%d row(s) name an image that is not here. Are all twelve archives unpacked?": len(
            line_of.keys() - images
        ),
        "%d image(s) have an age beyond any life: their column age is empty.": aged,
    }
    for message, count in counts.items():
        if count:
            logger.warning(message, count)


def _age(row: Mapping[str, str]) -> str:
    """Whole years, or "" where nobody can be that old."""
    match = _AGE.fullmatch(row["Patient Age"].strip())
    if match is None:
        return ""
    years = int(match["number"]) // {"M": 12, "D": 365}.get(match["unit"], 1)
    return str(years) if years <= _MAX_AGE else ""


def _record(
    table: Table, line: int, image: Path | None, patient: str, side: Split | None
) -> SourceRecord:
    row = table.rows[line]
    name = row["Image Index"]
    return SourceRecord(
        record_id=name,
        patient_id=patient,
        labels=_labels(row["Finding Labels"]),
        source=f"{table.path.name} line {line} ({name})",
        # A missing file must surface when it is read, so that it is quarantined and counted.
        read_image=functools.partial(read_picture, image, "L")
        if image
        else functools.partial(
            refuse,
            f"Expected {name} that {table.path.name} names, found none in images/. Unpack its "
            "archive, or delete its row.",
        ),
        split=side,
        columns={
            "age": _age(row),
            "sex": next(row[column] for column in _SEX if column in row),
            "view": row["View Position"],
            "follow_up": row["Follow-up #"],
        },
    )


def _labels(findings: str) -> tuple[str, ...]:
    """The findings in the published order; one outside it as written, for the store to refuse."""
    names = [name.strip() for name in findings.split("|") if name.strip()]
    known = [name for name in CLASSES if name in names]
    return (*known, *(name for name in names if name not in CLASSES and name != _NOTHING))
