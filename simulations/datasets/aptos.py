"""APTOS 2019 Blindness Detection: fundus photographs of one hospital in India, graded.

    train.csv                       id_code, diagnosis
    train_images/<id_code>.png
    test_images/                    without labels: not read

The files name no patients: an image counts as its own, save files with the very same content,
which share a patient (some are in the set twice, a few with another grade). Several photographs of
one person may still be on both sides of a split. There is no official split of the graded images.
"""

import functools
import hashlib
import logging
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.common.errors import DataError
from medfed.simulations.datasets.digests import dataset_digest, file_digest
from medfed.simulations.datasets.folders import find_root
from medfed.simulations.datasets.patients import join_patients
from medfed.simulations.datasets.pictures import list_pictures, read_picture, refuse
from medfed.simulations.datasets.retinopathy_grades import GRADES, read_grades
from medfed.simulations.datasets.tables import Table, line_of_key

logger = logging.getLogger(__name__)

CLASSES = GRADES

HOW_TO_GET = (
    "Download aptos2019-blindness-detection.zip from "
    "https://www.kaggle.com/c/aptos2019-blindness-detection/data (account and consent to the "
    "rules needed), unpack it and name the folder that holds train.csv and train_images/ with "
    "--data."
)

_LABELS = "train.csv"
_IMAGES = "train_images"

# Part of the digest: raise it when this module turns the same files into other records.
_LOADER = "aptos loader 1"


def load_aptos(folder: Path) -> SourceDataset:
    """Read the graded photographs of APTOS 2019 from `folder`, in the competition's layout.

    An image that a row names and that is missing or damaged is a record whose `read_image` raises;
    one without a row is not loaded, with a warning. Labels are the names of the grades, in order;
    of copies with different grades all are kept, and a warning tells how many there are.

    Raises:
        DataError: Folder, labels or images missing, a table that cannot be read as such, an image
            named twice, or a grade outside 0 to 4. Says file and line.
    """
    root = find_root(
        folder,
        ("aptos2019-blindness-detection", "aptos2019"),
        lambda root: (root / _LABELS).is_file(),
        name="APTOS 2019",
        expected=f"{_LABELS} and {_IMAGES}/",
        how_to_get=HOW_TO_GET,
    )
    if not (root / _IMAGES).is_dir():
        raise DataError(f"Expected {_IMAGES}/ in {root}, got none. {HOW_TO_GET}")
    table = read_grades(root / _LABELS, image="id_code", grade="diagnosis", how_to_get=HOW_TO_GET)
    lines = dict(sorted(line_of_key(table, "id_code").items()))
    images = {path.stem: path for path in list_pictures(root / _IMAGES)}
    if extra := len(images.keys() - lines.keys()):
        logger.warning("%d image(s) have no row in %s and are not used.", extra, _LABELS)
    contents = {name: file_digest(images.get(name)) for name in lines}
    patients = join_patients(
        {
            name: (name, content) if len(content) == 64 else (name,)
            for name, content in contents.items()
        }
    )
    _warn_about_copies(table, lines, patients)
    return SourceDataset(
        name="APTOS 2019",
        licence="The competition's rules on Kaggle, to be accepted there; no redistribution",
        citation=(
            "Karthik M, Dane S. APTOS 2019 Blindness Detection. Kaggle (2019). Images by Aravind "
            "Eye Hospital."
        ),
        classes=CLASSES,
        records=tuple(
            _record(table, line, images.get(name), patients[name]) for name, line in lines.items()
        ),
        digest=dataset_digest(
            _LOADER, [(hashlib.sha256(table.content).hexdigest(),), *contents.items()]
        ),
    )


def _warn_about_copies(table: Table, lines: Mapping[str, int], patients: Mapping[str, str]) -> None:
    copies: dict[str, list[str]] = defaultdict(list)
    for name, patient in patients.items():
        copies[patient].append(table.rows[lines[name]]["diagnosis"])
    groups = [grades for grades in copies.values() if len(grades) > 1]
    if groups:
        logger.warning(
            "%d image(s) are in APTOS more than once, %d of them with different grades. All are "
            "kept, copies as one patient.",
            len(groups),
            sum(len(set(grades)) > 1 for grades in groups),
        )


def _record(table: Table, line: int, path: Path | None, patient: str) -> SourceRecord:
    row = table.rows[line]
    name = row["id_code"]
    return SourceRecord(
        record_id=name,
        patient_id=patient,
        labels=(CLASSES[int(row["diagnosis"])],),
        source=f"{_LABELS} line {line} ({name}.png)",
        # A missing file must surface when it is read, so that it is quarantined and counted.
        read_image=functools.partial(read_picture, path, "RGB")
        if path
        else functools.partial(
            refuse,
            f"Expected {name}.png that {_LABELS} names, found none in {_IMAGES}/. Place it there, "
            "or delete its row.",
        ),
    )
