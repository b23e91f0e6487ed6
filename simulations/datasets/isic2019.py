"""ISIC 2019: dermatoscopic images of eight kinds of skin lesion, at FLamby's six centres.

    ISIC_2019_Training_GroundTruth.csv      image, MEL ... UNK: 1.0 for the class of the image
    ISIC_2019_Training_Metadata.csv         image, age_approx, anatom_site_general, lesion_id, sex
    ISIC_2019_Training_Input/<image>.jpg    a part of the names ends in _downsampled
    HAM10000_metadata                       optional, of HAM10000: tells its four clinics apart
    train_test_split                        optional, of FLamby: centre and fold of 22272 images

There are no patients, only lesions, several images each: the lesion is the patient key; an image
without one counts as its own. The centre is column `center`, the natural sites, as in FLamby
(https://arxiv.org/abs/2210.04620): empty for images without a lesion, "HAM" for those of HAM10000
if neither optional file is there. FLamby's folds have images of one lesion on both sides; such
lesions are train here. The challenge itself has no split of the training data, and its test data
name no lesions and no centres: they are not read.
"""

import functools
import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfed.client.data.records import SourceDataset, SourceRecord, Split
from medfed.common.errors import DataError
from medfed.simulations.datasets.digests import dataset_digest, file_digest
from medfed.simulations.datasets.folders import find_root
from medfed.simulations.datasets.patients import join_patients, keep_patients_whole
from medfed.simulations.datasets.pictures import list_pictures, read_picture, refuse
from medfed.simulations.datasets.tables import Table, line_of_key, read_table

logger = logging.getLogger(__name__)

CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
# In the order of FLamby's numbers.
CENTERS = (
    "BCN",
    "HAM_vidir_molemax",
    "HAM_vidir_modern",
    "HAM_rosendahl",
    "MSK",
    "HAM_vienna_dias",
)

HOW_TO_GET = (
    "Download ISIC_2019_Training_Input.zip, ISIC_2019_Training_GroundTruth.csv and "
    "ISIC_2019_Training_Metadata.csv from https://challenge.isic-archive.com/data/#2019, unpack "
    "the images and name the folder that holds the three with --data. For FLamby's centres place "
    "HAM10000_metadata (https://doi.org/10.7910/DVN/DBW86T) beside them, for its folds too "
    "flamby/datasets/fed_isic2019/dataset_creation_scripts/train_test_split of "
    "https://github.com/owkin/FLamby."
)

_TRUTH = "ISIC_2019_Training_GroundTruth.csv"
_METADATA = "ISIC_2019_Training_Metadata.csv"
_IMAGES = "ISIC_2019_Training_Input"
_FOLDS = ("train_test_split", "train_test_split.csv", "fed_isic2019_train_test_split.csv")
_CLINICS = ("HAM10000_metadata", "HAM10000_metadata.csv", "HAM10000_metadata.tab")
_DOWNSAMPLED = "_downsampled"

_UNKNOWN = "UNK"
_COLUMNS = ("age_approx", "anatom_site_general", "sex")
_SIDES: Mapping[str, Split] = {"train": "train", "test": "test"}

# Part of the digest: raise it when this module turns the same files into other records.
_LOADER = "isic2019 loader 1"


@dataclass(frozen=True, kw_only=True)
class _Files:
    """The tables and pictures, as far as they are there."""

    truth: Table
    metadata: Table
    folds: Table | None
    clinics: Table | None
    images: Mapping[str, Path]

    def image(self, name: str) -> Path | None:
        """The file of an image. Copies exist with the ending of the names cut off."""
        other = name.removesuffix(_DOWNSAMPLED)
        other = other if other != name else name + _DOWNSAMPLED
        return self.images.get(name) or self.images.get(other)


def load_isic2019(folder: Path) -> SourceDataset:
    """Read the training data of ISIC 2019 from `folder` in their official layout.

    An image that a row names and that is missing or damaged is a record whose `read_image` raises.
    One that is there twice, as published and downsampled, is one patient. Labels are the column
    with 1.0; UNK, which no training image has, is checked by the store.

    Raises:
        DataError: Folder, table or images missing, a table that cannot be read as such, an image
            named twice, or a row without exactly one class. Says file, line and column.
    """
    files = _read_files(folder)
    line_of = line_of_key(files.truth, "image")
    facts_of = _by_image(files.metadata, "image")
    lesions = {name: facts_of.get(name, {}).get("lesion_id", "") for name in sorted(line_of)}
    patients = join_patients(
        {
            name: [key for key in (lesion, name.removesuffix(_DOWNSAMPLED)) if key]
            for name, lesion in lesions.items()
        }
    )
    centers, published = _centers_and_sides(files, lesions)
    sides = keep_patients_whole(published, patients, both="train", name="FLamby's ISIC 2019")
    _warn(files, line_of, facts_of, lesions)
    return SourceDataset(
        name="ISIC 2019",
        licence="CC BY-NC 4.0",
        citation=(
            "Tschandl P et al. Sci Data 5:180161 (2018); Codella NCF et al. arXiv:1710.05006 "
            "(2017); Combalia M et al. BCN20000. arXiv:1908.02288 (2019). Centres: Ogier du "
            "Terrail J et al. FLamby. NeurIPS (2022)."
        ),
        classes=CLASSES,
        records=tuple(
            SourceRecord(
                record_id=name,
                patient_id=patients[name],
                labels=(_label(files.truth, line_of[name]),),
                source=f"{_TRUTH} line {line_of[name]} ({name}.jpg)",
                read_image=_reader(files.image(name), name),
                split=sides[name],
                columns={
                    "center": centers[name],
                    **{column: facts_of.get(name, {}).get(column, "") for column in _COLUMNS},
                },
            )
            for name in lesions
        ),
        digest=_digest(files, lesions),
    )


def _read_files(folder: Path) -> _Files:
    root = find_root(
        folder,
        ("ISIC_2019", "ISIC2019", "isic2019"),
        lambda root: (root / _TRUTH).is_file() and (root / _IMAGES).is_dir(),
        name="ISIC 2019",
        expected=f"{_TRUTH} and {_IMAGES}/",
        how_to_get=HOW_TO_GET,
    )
    if not (root / _METADATA).is_file():
        raise DataError(f"Expected {_METADATA} in {root}, got none. {HOW_TO_GET}")
    # Kaggle's copy holds a folder of the same name in the folder.
    nested = root / _IMAGES / _IMAGES
    pictures = list_pictures(nested if nested.is_dir() else root / _IMAGES)
    return _Files(
        truth=_table(root / _TRUTH, ("image", *CLASSES, _UNKNOWN), ("image",), (_UNKNOWN,)),
        metadata=_table(root / _METADATA, ("image", "lesion_id", *_COLUMNS), ("image",)),
        folds=_optional(root, _FOLDS, ("image", "center", "fold")),
        clinics=_optional(root, _CLINICS, ("image_id", "dataset")),
        images={path.stem: path for path in pictures},
    )


def _table(
    path: Path, columns: tuple[str, ...], keys: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Table:
    return read_table(path, columns=columns, keys=keys, optional=optional, how_to_get=HOW_TO_GET)


def _optional(root: Path, names: tuple[str, ...], columns: tuple[str, ...]) -> Table | None:
    found = next((root / name for name in names if (root / name).is_file()), None)
    return _table(found, columns, columns) if found else None


def _by_image(table: Table | None, column: str) -> dict[str, Mapping[str, str]]:
    if table is None:
        return {}
    return {image: table.rows[line] for image, line in line_of_key(table, column).items()}


def _centers_and_sides(
    files: _Files, lesions: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, Split | None]]:
    """The centre and FLamby's side of each image, "" and None where unknown."""
    folds = _by_image(files.folds, "image")
    clinics = _by_image(files.clinics, "image_id")
    if files.folds is not None:
        _check_folds(files.folds)
    centers, sides = {}, {}
    for name, lesion in lesions.items():
        fold = folds.get(name, {})
        clinic = clinics.get(name, {}).get("dataset", "")
        # MSK4_0011169, HAM_0000118, BCN_0003634
        source = lesion.partition("_")[0].rstrip("0123456789")
        origin = f"HAM_{clinic}" if source == "HAM" and clinic else source
        centers[name] = CENTERS[int(fold["center"])] if fold else origin
        sides[name] = _SIDES.get(fold.get("fold", ""))
    return centers, sides


def _check_folds(table: Table) -> None:
    numbers = {str(number) for number in range(len(CENTERS))}
    for line, row in table.rows.items():
        if row["center"] not in numbers or row["fold"] not in _SIDES:
            raise DataError(
                f"{table.path} line {line}: expected center 0 to {len(CENTERS) - 1} and fold train "
                f"or test, got {row['center']!r} and {row['fold']!r}. Fetch FLamby's file again."
            )


def _label(table: Table, line: int) -> str:
    row = table.rows[line]
    names = [name for name in (*CLASSES, _UNKNOWN) if name in row]
    try:
        chosen = [name for name in names if float(row[name]) == 1]
        others = [name for name in names if float(row[name]) not in (0, 1)]
    except ValueError:
        chosen, others = [], names
    if len(chosen) != 1 or others:
        raise DataError(
            f"{table.path} line {line}: expected 1.0 for exactly one of {', '.join(names)} and 0.0 "
            f"for the others, got {', '.join(row[name] for name in names)}. Mend that line."
        )
    return chosen[0]


def _warn(
    files: _Files,
    line_of: Mapping[str, int],
    facts_of: Mapping[str, Mapping[str, str]],
    lesions: Mapping[str, str],
) -> None:
    named = {path for path in map(files.image, line_of) if path is not None}
    counts = {
        "%d image(s) have no row in the ground truth and are not used.": len(files.images)
        - len(named),
        "%d image(s) have no row in the metadata.": len(line_of.keys() - facts_of.keys()),
        "%d image(s) have no lesion: each counts as a patient, and none has a centre.": sum(
            not lesion for lesion in lesions.values()
        ),
    }
    for message, count in counts.items():
        if count:
            logger.warning(message, count)


def _reader(path: Path | None, name: str) -> Callable[[], npt.NDArray[np.generic]]:
    # A missing file must surface when it is read, so that it is quarantined and counted.
    if path is not None:
        return functools.partial(read_picture, path, "RGB")
    return functools.partial(
        refuse,
        f"Expected {name}.jpg that {_TRUTH} names, found none in {_IMAGES}/. Place it there, or "
        "delete its row.",
    )


def _digest(files: _Files, names: Mapping[str, str]) -> str:
    tables = (files.truth, files.metadata, files.folds, files.clinics)
    contents = [hashlib.sha256(t.content).hexdigest() if t else "missing" for t in tables]
    rows = ((name, file_digest(files.image(name))) for name in names)
    return dataset_digest(_LOADER, [contents, *rows])
