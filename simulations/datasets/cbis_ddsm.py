"""CBIS-DDSM: digitised film mammograms with masses or calcifications, proven benign or malignant.

    mass_case_description_train_set.csv, ..._test_set.csv, and calc_case_description_...
    CBIS-DDSM/Mass-Training_P_00001_LEFT_CC/<study>/<series>/1-1.dcm        the mammogram
    CBIS-DDSM/Mass-Training_P_00001_LEFT_CC_1/<study>/<series>/1-1.dcm, 1-2.dcm     mask and crop

or, as Kaggle hands it out, csv/mass_case_description_train_set.csv, ... and
jpeg/<series UID>/1-263.jpg.

The tables' paths are not those of any download: see `cbis_ddsm_files`. A row is an abnormality; a
record is a mammogram with all of its abnormalities of one type. A mammogram with both types is two
files and two records. The official split was drawn for masses and calcifications apart, so some
patients are on both of its sides; they are train here. Scanners and hospitals are not named.
"""

import functools
import hashlib
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medfed.client.data.records import SourceDataset, SourceRecord, Split
from medfed.common.errors import DataError
from medfed.simulations.datasets.cbis_ddsm_files import (
    Mammograms,
    case_of,
    find_mammograms,
    read_mammogram,
    read_outlines,
)
from medfed.simulations.datasets.digests import dataset_digest
from medfed.simulations.datasets.folders import find_root
from medfed.simulations.datasets.known_digests import known_digests
from medfed.simulations.datasets.patients import keep_patients_whole
from medfed.simulations.datasets.pictures import refuse
from medfed.simulations.datasets.tables import Table, read_table

logger = logging.getLogger(__name__)

CLASSES = ("benign", "malignant")
STRUCTURES = ("mass", "calcification")

HOW_TO_GET = (
    "Download the four tables (mass and calc, train and test) and, with the NBIA Data Retriever, "
    "the images (163 GB) from https://doi.org/10.7937/K9/TCIA.2016.7O02S9CY; or the JPEG copy "
    "(6 GB) https://www.kaggle.com/datasets/awsaf49/cbis-ddsm-breast-cancer-image-dataset. Name "
    "the folder that holds the tables and CBIS-DDSM/ (or csv/ and jpeg/) with --data."
)

_TABLES: Mapping[str, tuple[str, Split]] = {
    "mass_case_description_train_set.csv": ("mass", "train"),
    "mass_case_description_test_set.csv": ("mass", "test"),
    "calc_case_description_train_set.csv": ("calcification", "train"),
    "calc_case_description_test_set.csv": ("calcification", "test"),
}
_LABEL_OF = {"BENIGN": "benign", "BENIGN_WITHOUT_CALLBACK": "benign", "MALIGNANT": "malignant"}

_IMAGE = "image file path"
_ROIS = ("ROI mask file path", "cropped image file path")
_KEYS = ("patient_id", "pathology", _IMAGE)
# The two kinds of table write the same column in two ways.
_DENSITY = ("breast_density", "breast density")
_OTHERS = ("left or right breast", "image view", "abnormality id", "assessment", "subtlety")

# Part of the digest: raise it when this module or cbis_ddsm_files turns the same files into other
# records.
_LOADER = "cbis_ddsm loader 1"


@dataclass(frozen=True)
class _Abnormality:
    """A row, with the table that it is in."""

    table: Table
    line: int

    def __getitem__(self, column: str) -> str:
        # Paths and others end in line breaks.
        return self.table.rows[self.line][column].strip()

    @property
    def where(self) -> str:
        return f"{self.table.path.name} line {self.line}"


@dataclass(frozen=True, kw_only=True)
class _Mammogram:
    """A mammogram with the files of its image and its abnormalities, as far as they are there."""

    case: str
    abnormalities: tuple[_Abnormality, ...]
    image: Path | None
    outlines: tuple[tuple[Path, ...], ...]


def load_cbis_ddsm(folder: Path) -> SourceDataset:
    """Read CBIS-DDSM from `folder`, in TCIA's layout or Kaggle's.

    A mammogram is malignant if one of its abnormalities is; "benign without callback" is benign.
    Masks are 0 background, 1 mass, 2 calcification, the union of a mammogram's outlines; one with
    an outline missing has no mask. An image that is missing is a record whose `read_image` raises.
    Columns are `breast`, `view`, `density`, `abnormality`, and of several abnormalities the
    highest `assessment` (BI-RADS) and the lowest `subtlety`. With train or test tables alone there
    is no split.

    Raises:
        DataError: Folder or tables missing, a table that cannot be read as such, an unknown
            pathology, a mammogram of two patients. Says file, line and column.
    """
    root = find_root(
        folder,
        ("CBIS-DDSM",),
        lambda root: bool(_table_paths(root)),
        name="CBIS-DDSM",
        expected=", ".join(_TABLES),
        how_to_get=HOW_TO_GET,
    )
    tables = [_read_table(path) for path in _table_paths(root)]
    found = find_mammograms(root)
    if found is None:
        raise DataError(
            f"Expected CBIS-DDSM/ or jpeg/ with images in {root}, got none. {HOW_TO_GET}"
        )
    mammograms = _join(tables, found)
    _warn(mammograms)
    patients = {one.case: one.abnormalities[0]["patient_id"] for one in mammograms}
    sides = _sides(mammograms, patients)
    with known_digests(root) as digest:
        rows = [
            (one.case, digest(one.image), *(digest(path) for own in one.outlines for path in own))
            for one in mammograms
        ]
    contents = [hashlib.sha256(table.content).hexdigest() for table in tables]
    return SourceDataset(
        name="CBIS-DDSM",
        licence="CC BY 3.0",
        citation=(
            "Lee RS, Gimenez F, Hoogi A, Miyake KK, Gorovoy M, Rubin DL. A curated mammography "
            "data set for use in computer-aided detection and diagnosis research. Sci Data "
            "4:170177 (2017)."
        ),
        classes=CLASSES,
        records=tuple(_record(one, patients[one.case], sides[one.case]) for one in mammograms),
        digest=dataset_digest(_LOADER, [contents, *rows]),
        structures=STRUCTURES,
    )


def _table_paths(root: Path) -> list[Path]:
    places = [(root / name, root / "csv" / name) for name in _TABLES]
    return [path for pair in places if (path := next(filter(Path.is_file, pair), None))]


def _read_table(path: Path) -> Table:
    table = read_table(
        path,
        columns=(*_KEYS, *_ROIS, *_OTHERS, *_DENSITY),
        keys=_KEYS,
        optional=_DENSITY,
        how_to_get=HOW_TO_GET,
    )
    for line, row in table.rows.items():
        if row["pathology"].strip() not in _LABEL_OF:
            raise DataError(
                f"{path} line {line}, column pathology: expected one of {', '.join(_LABEL_OF)}, "
                f"got {row['pathology']!r}. Restore the published row."
            )
    return table


def _join(tables: Sequence[Table], found: Mammograms) -> list[_Mammogram]:
    rows: dict[str, list[_Abnormality]] = defaultdict(list)
    for table in tables:
        for line in table.rows:
            one = _Abnormality(table, line)
            rows[case_of(one[_IMAGE], f"{table.path} line {line}, column {_IMAGE}")].append(one)
    for case, own in rows.items():
        if len({(one["patient_id"], one.table.path.name) for one in own}) > 1:
            raise DataError(
                f"{own[-1].where}: the mammogram {case} is another patient's, or in another table, "
                f"in {own[0].where}. Restore the published rows."
            )
    return [
        _Mammogram(
            case=case,
            abnormalities=tuple(own),
            image=found.image(own[0][_IMAGE]),
            outlines=tuple(found.outline([one[column] for column in _ROIS]) for one in own),
        )
        for case, own in sorted(rows.items())
    ]


def _warn(mammograms: Sequence[_Mammogram]) -> None:
    missing = sum(one.image is None for one in mammograms)
    if missing:
        logger.warning("%d mammogram(s) that the tables name are not here.", missing)
    without = sum(not all(one.outlines) for one in mammograms)
    if without:
        logger.warning("%d mammogram(s) lack the outline of an abnormality: no mask.", without)


def _sides(
    mammograms: Sequence[_Mammogram], patients: Mapping[str, str]
) -> dict[str, Split | None]:
    sides: dict[str, Split | None] = {
        one.case: _TABLES[one.abnormalities[0].table.path.name][1] for one in mammograms
    }
    if len(set(sides.values())) < 2:
        return dict.fromkeys(sides)
    return keep_patients_whole(sides, patients, both="train", name="CBIS-DDSM")


def _record(one: _Mammogram, patient: str, side: Split | None) -> SourceRecord:
    first = one.abnormalities[0]
    kind = _TABLES[first.table.path.name][0]
    labels = {_LABEL_OF[row["pathology"]] for row in one.abnormalities}
    return SourceRecord(
        record_id=one.case,
        patient_id=patient,
        labels=(max(labels, key=CLASSES.index),),
        source=f"{first.where} ({one.case}{f', {one.image.name}' if one.image else ''})",
        # A missing file must surface when it is read, so that it is quarantined and counted.
        read_image=functools.partial(read_mammogram, one.image)
        if one.image
        else functools.partial(
            refuse,
            f"Expected the mammogram {one.case} that {first.where} names, found none in CBIS-DDSM/ "
            "or jpeg/. Fetch it again, or delete its rows.",
        ),
        read_mask=functools.partial(read_outlines, one.outlines, STRUCTURES.index(kind) + 1)
        if all(one.outlines)
        else None,
        split=side,
        columns={
            "breast": first["left or right breast"],
            "view": first["image view"],
            "density": next((first[name] for name in _DENSITY if name in first.table.header), ""),
            "abnormality": kind,
            "assessment": max(row["assessment"] for row in one.abnormalities),
            "subtlety": min(row["subtlety"] for row in one.abnormalities),
        },
    )
