"""LGG: brain MR slices of lower-grade gliomas with lesion masks, in their Kaggle layout.

    kaggle_3m/TCGA_<institution>_<patient>_<date>/
        TCGA_<institution>_<patient>_<date>_<slice>.tif         RGB
        TCGA_<institution>_<patient>_<date>_<slice>_mask.tif    0 or 255: FLAIR abnormality
    kaggle_3m/data.csv                                          clinical and genomic codes

Red is the pre-contrast sequence, green FLAIR, blue post-contrast.

Where a sequence is missing, the publishers put FLAIR in its channel; nothing in the files tells.
The institution is column `institution`, the natural sites: CS, DU, EZ, FG, HT. There is no official
split.
"""

import functools
import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.common.errors import UnreadableImageError
from medfed.simulations.datasets.digests import dataset_digest, file_digest
from medfed.simulations.datasets.folders import find_root
from medfed.simulations.datasets.pictures import list_pictures, read_mask, read_picture, refuse
from medfed.simulations.datasets.tables import Table, line_of_key, read_table

logger = logging.getLogger(__name__)

CLASSES = ("no lesion", "lesion")
STRUCTURES = ("lesion",)

HOW_TO_GET = (
    "Download the archive (account needed) from "
    "https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation, unpack it and name the "
    "folder that holds kaggle_3m/ with --data."
)

_PATIENT = "Patient"
_COLUMNS = (
    "RNASeqCluster",
    "MethylationCluster",
    "miRNACluster",
    "CNCluster",
    "RPPACluster",
    "OncosignCluster",
    "COCCluster",
    "histological_type",
    "neoplasm_histologic_grade",
    "tumor_tissue_site",
    "laterality",
    "tumor_location",
    "gender",
    "age_at_initial_pathologic",
    "race",
    "ethnicity",
    "death01",
)

# TCGA_<institution>_<patient>_<date>
_CASE = re.compile(r"TCGA_[A-Z0-9]{2}_[A-Z0-9]{4}_\d{8}")
_FILE = re.compile(r"(?P<case>.+)_(?P<number>\d+)(?P<mask>_mask)?")

# Part of the digest: raise it when this module turns the same files into other records.
_LOADER = "lgg loader 1"


@dataclass
class _Slice:
    """The two files of one slice, as far as they are there."""

    case: str
    number: int
    image: Path | None = None
    mask: Path | None = None

    @property
    def name(self) -> str:
        return f"{self.case}_{self.number}"


def load_lgg(folder: Path) -> SourceDataset:
    """Read the LGG set from `folder`, which is kaggle_3m or holds it.

    A slice's label, lesion or no lesion, says whether its mask is empty: half of them are, and are
    kept. A slice without image or readable mask is a record whose `read_image` raises. Columns are
    `institution`, `slice` (numbers have gaps) and those of data.csv, codes as published, empty
    where unknown. Every mask is decoded here, for the labels.

    Raises:
        DataError: No such folder, or a data.csv that is not the published table.
    """
    root = find_root(
        folder,
        ("kaggle_3m", "lgg-mri-segmentation/kaggle_3m"),
        lambda root: any(_CASE.fullmatch(path.name) for path in root.iterdir()),
        name="LGG",
        expected="kaggle_3m/ with folders TCGA_<institution>_<patient>_<date>/",
        how_to_get=HOW_TO_GET,
    )
    table = _read_clinical(root)
    lines = line_of_key(table, _PATIENT) if table else {}
    clinical = {patient: table.rows[line] for patient, line in lines.items()} if table else {}
    slices = _find_slices(root)
    _warn_about_patients(slices, clinical)
    return SourceDataset(
        name="LGG MRI segmentation",
        licence="CC BY-NC-SA 4.0",
        citation=(
            "Buda M, Saha A, Mazurowski MA. Association of genomic subtypes of lower-grade "
            "gliomas with shape features automatically extracted by a deep learning algorithm. "
            "Comput Biol Med 109:218 (2019)."
        ),
        classes=CLASSES,
        records=tuple(_record(one, clinical) for one in slices),
        digest=_digest(table, slices),
        structures=STRUCTURES,
    )


def _read_clinical(root: Path) -> Table | None:
    path = root / "data.csv"
    if not path.is_file():
        logger.warning("There is no data.csv beside the patients: their columns are empty.")
        return None
    return read_table(path, columns=(_PATIENT, *_COLUMNS), keys=(_PATIENT,), how_to_get=HOW_TO_GET)


def _find_slices(root: Path) -> list[_Slice]:
    """The slices by case and, as numbers, by slice."""
    slices: dict[tuple[str, int], _Slice] = {}
    num_others = 0
    for folder in sorted(path for path in root.iterdir() if _CASE.fullmatch(path.name)):
        for path in list_pictures(folder):
            match = _FILE.fullmatch(path.stem)
            if match is None or match["case"] != folder.name:
                num_others += 1
                continue
            key = (folder.name, int(match["number"]))
            one = slices.setdefault(key, _Slice(*key))
            if match["mask"]:
                one.mask = path
            else:
                one.image = path
    if num_others:
        logger.warning(
            "%d picture(s) are not named as slices of their folder's patient and are not used.",
            num_others,
        )
    return [slices[key] for key in sorted(slices)]


def _warn_about_patients(slices: list[_Slice], clinical: Mapping[str, Mapping[str, str]]) -> None:
    without = {_patient(one.case) for one in slices} - clinical.keys()
    if clinical and without:
        logger.warning("%d patient(s) have no row in data.csv.", len(without))


def _patient(case: str) -> str:
    # Folder names carry a date that data.csv leaves out.
    return case.rpartition("_")[0]


def _record(one: _Slice, clinical: Mapping[str, Mapping[str, str]]) -> SourceRecord:
    patient = _patient(one.case)
    row = clinical.get(patient, {})
    label, problem = _label(one)
    return SourceRecord(
        record_id=one.name,
        patient_id=patient,
        labels=(label,),
        source=f"{one.case}/{one.name}.tif",
        # A problem must surface when the image is read, so that it is quarantined and counted.
        read_image=functools.partial(refuse, problem)
        if problem or not one.image
        else functools.partial(read_picture, one.image, "RGB"),
        read_mask=functools.partial(read_mask, one.mask) if one.mask else None,
        columns={
            "institution": one.case.split("_")[1],
            "slice": str(one.number),
            **{name: row.get(name, "") for name in _COLUMNS},
        },
    )


def _label(one: _Slice) -> tuple[str, str]:
    """The label by the mask, and why the slice cannot be used (empty: it can)."""
    if one.image is None:
        problem = f"Expected {one.name}.tif beside its mask in {one.case}/, found none."
    elif one.mask is None:
        problem = (
            f"Expected {one.name}_mask.tif in {one.case}/, found none: an image without a mask "
            "is not an image without a lesion."
        )
    else:
        try:
            return CLASSES[int(read_mask(one.mask).any())], ""
        except UnreadableImageError as error:
            problem = str(error)
    return CLASSES[0], f"{problem} Fetch the file again, or delete its slice."


def _digest(table: Table | None, slices: list[_Slice]) -> str:
    rows = [(one.name, file_digest(one.image), file_digest(one.mask)) for one in slices]
    clinical = hashlib.sha256(table.content).hexdigest() if table else "missing"
    return dataset_digest(_LOADER, [(clinical,), *rows])
