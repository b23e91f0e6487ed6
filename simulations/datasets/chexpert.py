"""CheXpert: chest radiographs with fourteen observations, some of them marked uncertain.

    CheXpert-v1.0-small/train.csv, valid.csv        Path,Sex,Age,Frontal/Lateral,AP/PA, 14 columns
    CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg

or CheXpert-v1.0/ in full size. The column Path starts with the name of that folder, whatever the
folder is called now. An observation is 1.0 (stated), 0.0 (denied), -1.0 (uncertain) or empty (not
mentioned). train.csv is the train side (a program read the reports), valid.csv the test side (three
radiologists read the images); the challenge's own test set is not read.
"""

import functools
import hashlib
import itertools
import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medfed.client.data.records import SourceDataset, SourceRecord, Split
from medfed.common.errors import DataError
from medfed.simulations.datasets.digests import dataset_digest
from medfed.simulations.datasets.folders import find_root
from medfed.simulations.datasets.known_digests import known_digests
from medfed.simulations.datasets.pictures import read_picture, refuse
from medfed.simulations.datasets.tables import Table, line_of_key, read_table

logger = logging.getLogger(__name__)

CLASSES = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)

HOW_TO_GET = (
    "Download CheXpert-v1.0-small or CheXpert-v1.0 (registration needed) by way of "
    "https://stanfordmlgroup.github.io/competitions/chexpert/ and unpack it, so that train/, "
    "valid/, train.csv and valid.csv lie in one folder; name that folder with --data."
)

Uncertain = Literal["zeros", "ones", "leave_out"]

_TABLES: Mapping[str, Split] = {"train.csv": "train", "valid.csv": "test"}
_PATH = "Path"
_COLUMNS = {"Sex": "sex", "Age": "age", "Frontal/Lateral": "view", "AP/PA": "projection"}
_FILE = re.compile(
    r"(?:.*/)?(?P<file>(?:train|valid)/(?P<patient>patient\d+)/(?P<study>study\d+)/[^/]+)"
)
_STATED, _DENIED, _UNCERTAIN, _NOT_MENTIONED = 1.0, 0.0, -1.0, None

# Part of the digest: raise it when this module turns the same files into other records.
_LOADER = "chexpert loader 1"


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A row as checked."""

    file: str
    patient: str
    study: str
    observations: Mapping[str, float | None]
    columns: Mapping[str, str]
    table: str
    line: int

    def is_uncertain(self) -> bool:
        return _UNCERTAIN in self.observations.values()

    def labels(self, uncertain: Uncertain) -> tuple[str, ...]:
        stated = {_STATED, _UNCERTAIN} if uncertain == "ones" else {_STATED}
        return tuple(name for name in CLASSES if self.observations[name] in stated)


def load_chexpert(folder: Path, uncertain: Uncertain = "zeros") -> SourceDataset:
    """Read CheXpert from `folder`, the folder with train.csv or the one above.

    Observations that are not mentioned count as absent. An image that a row names and that is
    missing is a record whose `read_image` raises. Columns are `sex`, `age`, `view`, `projection`
    and `study`. With one of the two tables there is no split.

    Args:
        folder: Where it is.
        uncertain: What an uncertain observation is: "zeros" absent, "ones" present, "leave_out"
            a reason to leave the image out (U-Zeros, U-Ones and, for whole images, U-Ignore of
            Irvin et al. 2019, https://arxiv.org/abs/1901.07031).

    Raises:
        DataError: Folder or tables missing, a table that cannot be read as such, a value that is
            none of the four, or an image named twice. Says file, line and column.
    """
    if uncertain not in ("zeros", "ones", "leave_out"):
        raise DataError(f"Expected uncertain zeros, ones or leave_out, got {uncertain!r}.")
    root = find_root(
        folder,
        ("CheXpert-v1.0-small", "CheXpert-v1.0"),
        lambda root: any((root / name).is_file() for name in _TABLES),
        name="CheXpert",
        expected="train.csv and valid.csv beside train/ and valid/",
        how_to_get=HOW_TO_GET,
    )
    tables = [_read_table(root / name) for name in _TABLES if (root / name).is_file()]
    rows = sorted((row for table in tables for row in _rows(table)), key=lambda row: row.file)
    _check_files_once(rows)
    used = [row for row in rows if uncertain != "leave_out" or not row.is_uncertain()]
    paths = {row.file: _existing(root / row.file) for row in used}
    _report(rows, used, paths)
    with known_digests(root) as digest:
        files = [(row.file, digest(paths[row.file])) for row in used]
    contents = [hashlib.sha256(table.content).hexdigest() for table in tables]
    return SourceDataset(
        name="CheXpert",
        licence="Stanford University Dataset Research Use Agreement: research only, not to share",
        citation=(
            "Irvin J, Rajpurkar P et al. CheXpert: A Large Chest Radiograph Dataset with "
            "Uncertainty Labels and Expert Comparison. AAAI (2019)."
        ),
        classes=CLASSES,
        records=tuple(
            _record(row, paths[row.file], uncertain, split=len(tables) > 1) for row in used
        ),
        digest=dataset_digest(_LOADER, [(uncertain, *contents), *files]),
    )


def _read_table(path: Path) -> Table:
    return read_table(
        path, columns=(_PATH, *_COLUMNS, *CLASSES), keys=(_PATH,), how_to_get=HOW_TO_GET
    )


def _rows(table: Table) -> list[_Row]:
    rows = []
    for line in line_of_key(table, _PATH).values():
        values = table.rows[line]
        match = _FILE.fullmatch(values[_PATH].replace("\\", "/"))
        # Such a path could lead anywhere.
        if match is None or ".." in values[_PATH]:
            raise DataError(
                f"{table.path} line {line}, column {_PATH}: expected "
                "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg or the like, got "
                f"{values[_PATH]!r}. Restore the published row."
            )
        rows.append(
            _Row(
                file=match["file"],
                patient=match["patient"],
                study=match["study"],
                observations={name: _observation(table, line, name) for name in CLASSES},
                columns={new: values[old] for old, new in _COLUMNS.items()},
                table=table.path.name,
                line=line,
            )
        )
    return rows


def _observation(table: Table, line: int, name: str) -> float | None:
    text = table.rows[line][name].strip()
    if not text:
        return _NOT_MENTIONED
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value not in (_STATED, _DENIED, _UNCERTAIN):
        raise DataError(
            f"{table.path} line {line}, column {name}: expected 1.0, 0.0, -1.0 or nothing, got "
            f"{text!r}. Restore the published row."
        )
    return value


def _check_files_once(rows: list[_Row]) -> None:
    for first, second in itertools.pairwise(rows):
        if first.file == second.file:
            raise DataError(
                f"{second.table} line {second.line}, column {_PATH}: {second.file} is also in "
                f"{first.table} line {first.line}. Delete one of the two lines."
            )


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def _report(rows: list[_Row], used: list[_Row], paths: Mapping[str, Path | None]) -> None:
    uncertain = Counter(
        name for row in rows for name, value in row.observations.items() if value == _UNCERTAIN
    )
    logger.info(
        "Uncertain observations: %s.",
        ", ".join(f"{name} {count}" for name, count in uncertain.most_common()) or "none",
    )
    if len(used) < len(rows):
        logger.warning(
            "%d image(s) with an uncertain observation are left out.", len(rows) - len(used)
        )
    missing = sum(path is None for path in paths.values())
    if missing:
        logger.warning("%d image(s) that the tables name are not here.", missing)


def _record(row: _Row, path: Path | None, uncertain: Uncertain, *, split: bool) -> SourceRecord:
    return SourceRecord(
        record_id=row.file,
        patient_id=row.patient,
        labels=row.labels(uncertain),
        source=f"{row.table} line {row.line} ({row.file})",
        # A missing file must surface when it is read, so that it is quarantined and counted.
        read_image=functools.partial(read_picture, path, "L")
        if path
        else functools.partial(
            refuse,
            f"Expected {row.file} that {row.table} names, found none beside the table. Unpack it "
            "there, or delete its row.",
        ),
        split=_TABLES[row.table] if split else None,
        columns={**row.columns, "study": row.study},
    )
