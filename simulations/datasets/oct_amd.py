"""OCT2017 (Kermany, Zhang, Goldbaum): OCT sections of the macula, for macular degeneration.

    OCT2017/train/<class>/<class>-<patient>-<number>.jpeg     class: CNV, DME, DRUSEN or NORMAL
    OCT2017/test/<class>/<class>-<patient>-<number>.jpeg      and val/ in Kaggle's copy

Drusen are the early, choroidal neovascularisation (CNV) the late, wet form of age-related macular
degeneration; diabetic macular oedema (DME) and healthy eyes are what it must be told from. Chosen
among the open sets as the one with a clear licence, patient numbers in the file names and an
official test part: ADAM needs an agreement and names no patients, and ODIR's labels are those of
a patient rather than of an eye.

Patients in the published train part are in the test part too. They are test here, so the test part
stays whole (and grows) and nobody is trained and tested on. Files with the very same content are
one patient, whatever their numbers.
"""

import functools
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medfed.client.data.records import SourceDataset, SourceRecord, Split
from medfed.simulations.datasets.digests import dataset_digest, file_digest
from medfed.simulations.datasets.folders import find_root
from medfed.simulations.datasets.patients import join_patients, keep_patients_whole
from medfed.simulations.datasets.pictures import list_pictures, read_picture

logger = logging.getLogger(__name__)

CLASSES = ("CNV", "DME", "DRUSEN", "NORMAL")

HOW_TO_GET = (
    "Download ZhangLabData.zip (version 3; CellData/OCT) or OCT2017.tar.gz (version 2) from "
    "https://data.mendeley.com/datasets/rscbjbr9sj, unpack it and name the folder that holds "
    "train/ and test/ with --data."
)

# Kaggle's copy ends the folder's name with a blank.
_ROOTS = (
    "OCT2017",
    "OCT2017 ",
    "OCT",
    "CellData/OCT",
    "ZhangLabData/CellData/OCT",
    "oct2017/OCT2017 ",
)
_PARTS: Mapping[str, Split] = {"train": "train", "val": "train", "test": "test"}
_FILE = re.compile(r"(?P<label>[A-Z]+)-(?P<patient>\d+)-(?P<number>\d+)")
_DIGEST_LENGTH = 64

# Part of the digest: raise it when this module turns the same files into other records.
_LOADER = "oct_amd loader 1"


@dataclass(frozen=True, kw_only=True)
class _Scan:
    """One file."""

    name: str
    label: str
    patient: str
    side: Split
    path: Path


def load_oct_amd(folder: Path) -> SourceDataset:
    """Read OCT2017 from `folder`, which is OCT2017 or holds it.

    The label is the folder; files that are not named after it are not loaded, with a warning.
    Kaggle's val part is train. Without a test part there is no split. Images are grey; a part of
    them has a white border where the section was turned, as published.

    Raises:
        DataError: No such folder.
    """
    root = find_root(
        folder,
        _ROOTS,
        lambda root: any((root / part / label).is_dir() for part in _PARTS for label in CLASSES),
        name="OCT2017",
        expected="train/ and test/ with CNV/, DME/, DRUSEN/ and NORMAL/",
        how_to_get=HOW_TO_GET,
    )
    scans = _find_scans(root)
    digests = {name: file_digest(scan.path) for name, scan in scans.items()}
    patients = join_patients({name: _keys(scans[name], digests[name]) for name in scans})
    tested = any(scan.side == "test" for scan in scans.values())
    sides = keep_patients_whole(
        {name: scan.side if tested else None for name, scan in scans.items()},
        patients,
        both="test",
        name="OCT2017",
    )
    return SourceDataset(
        name="OCT2017",
        licence="CC BY 4.0",
        citation=(
            "Kermany DS et al. Identifying medical diagnoses and treatable diseases by "
            "image-based deep learning. Cell 172:1122 (2018). Mendeley Data "
            "doi:10.17632/rscbjbr9sj.3."
        ),
        classes=CLASSES,
        records=tuple(
            SourceRecord(
                record_id=name,
                patient_id=patients[name],
                labels=(scan.label,),
                source=name + scan.path.suffix,
                read_image=functools.partial(read_picture, scan.path, "L"),
                split=sides[name],
            )
            for name, scan in scans.items()
        ),
        digest=dataset_digest(_LOADER, digests.items()),
    )


def _find_scans(root: Path) -> dict[str, _Scan]:
    """The scans by part, class and file name, as numbers in their order."""
    found: list[_Scan] = []
    num_others = 0
    for part, side in _PARTS.items():
        for label in CLASSES:
            folder = root / part / label
            for path in list_pictures(folder) if folder.is_dir() else ():
                match = _FILE.fullmatch(path.stem)
                if match is None or match["label"] != label:
                    num_others += 1
                    continue
                name = f"{part}/{label}/{path.stem}"
                found.append(
                    _Scan(name=name, label=label, patient=match["patient"], side=side, path=path)
                )
    if num_others:
        logger.warning(
            "%d picture(s) are not named after their folder's class, patient and number and are "
            "not used.",
            num_others,
        )
    return {scan.name: scan for scan in found}


def _keys(scan: _Scan, digest: str) -> tuple[str, ...]:
    # A file that cannot be read has no content to compare.
    return (scan.patient, digest) if len(digest) == _DIGEST_LENGTH else (scan.patient,)
