"""HAM10000: dermatoscopic images of pigmented skin lesions in their published layout.

    HAM10000_metadata                           CSV; also .csv (Kaggle) and .tab
    images/                                     or HAM10000_images_part_1/ and _part_2/
    masks/                                      or HAM10000_segmentations_lesion_tschandl/

The metadata has no patients, only lesions, several images each: the lesion is the patient key.
There is no official split. The clinic is column `dataset`, the natural sites; a few lesions have
images from two of them.
"""

import functools
import hashlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.common.errors import DataError
from medfed.simulations.datasets.digests import dataset_digest, file_digest
from medfed.simulations.datasets.pictures import list_pictures, read_mask, read_picture, refuse
from medfed.simulations.datasets.tables import Table, read_table

logger = logging.getLogger(__name__)

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
STRUCTURES = ("lesion",)

HOW_TO_GET = (
    "Download HAM10000_metadata, HAM10000_images_part_1.zip, HAM10000_images_part_2.zip and (for "
    "masks) HAM10000_segmentations_lesion_tschandl.zip from Harvard Dataverse, "
    "https://doi.org/10.7910/DVN/DBW86T, unpack them into one folder and name it with --data."
)

_METADATA_FILES = ("HAM10000_metadata", "HAM10000_metadata.csv", "HAM10000_metadata.tab")
_IMAGE_FOLDERS = ("images", "HAM10000_images_part_1", "HAM10000_images_part_2")
_MASK_FOLDERS = ("masks", "HAM10000_segmentations_lesion_tschandl")
_MASK_ENDING = "_segmentation"

_KEYS = ("image_id", "lesion_id", "dx")
_COLUMNS = ("dataset", "sex", "age", "localization", "dx_type")

# Part of the digest: raise it when this module turns the same files into other records.
_LOADER = "ham10000 loader 1"


def load_ham10000(folder: Path) -> SourceDataset:
    """Read HAM10000 from `folder` in its official layout.

    An image that a row names and that is missing or damaged is still a record, whose `read_image`
    raises. Images without a row are not loaded; a warning is logged with their number. Masks are
    0 background, 1 lesion, in the size of the mask's file; the published masks are larger than
    resampled images. Labels are `dx` as written, checked by the store.

    Raises:
        DataError: Folder, metadata or images missing; metadata that cannot be read as such, a
            column missing, an empty key, or an image named twice. Says file, line and column.
    """
    metadata = _find_metadata(folder)
    images = _list_files(folder, _IMAGE_FOLDERS)
    if images is None:
        raise DataError(
            f"Expected one of {', '.join(f'{name}/' for name in _IMAGE_FOLDERS)} in {folder}, got "
            f"none. {HOW_TO_GET}"
        )
    masks = _list_files(folder, _MASK_FOLDERS)
    table = read_table(
        metadata,
        columns=(*_KEYS, *_COLUMNS),
        keys=_KEYS,
        optional=("dataset",),
        how_to_get=HOW_TO_GET,
    )
    _check_images_once(table)
    _warn_about_files(table, images, masks)
    records = tuple(
        _record(folder, metadata, line, row, images, masks or {})
        for line, row in sorted(table.rows.items(), key=lambda item: item[1]["image_id"])
    )
    return SourceDataset(
        name="HAM10000",
        licence="CC BY-NC 4.0",
        citation=(
            "Tschandl P, Rosendahl C, Kittler H. The HAM10000 dataset. Sci Data 5:180161 (2018). "
            "Masks: Tschandl P et al. Nat Med 26:1229 (2020)."
        ),
        classes=CLASSES,
        records=records,
        digest=_digest(table, [record.record_id for record in records], images, masks or {}),
        structures=STRUCTURES,
    )


def _find_metadata(folder: Path) -> Path:
    if not folder.is_dir():
        raise DataError(f"Expected the folder of HAM10000 at {folder}, found none. {HOW_TO_GET}")
    for name in _METADATA_FILES:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"Expected HAM10000_metadata (or .csv) in {folder}, got none. {HOW_TO_GET}")


def _list_files(folder: Path, names: Iterable[str]) -> dict[str, Path] | None:
    """Return pictures by file name without ending, or None if no folder of these names exists."""
    # Some copies have the same folders in other cases.
    wanted = {name.lower() for name in names}
    found = [f for f in sorted(folder.iterdir()) if f.name.lower() in wanted and f.is_dir()]
    files: dict[str, Path] = {}
    for subfolder in found:
        for path in list_pictures(subfolder):
            files.setdefault(path.stem, path)
    return files if found else None


def _check_images_once(table: Table) -> None:
    line_of: dict[str, int] = {}
    for line, row in table.rows.items():
        first = line_of.setdefault(row["image_id"], line)
        if first != line:
            _refuse_second(table.path, line, first, row, table.rows[first])


def _refuse_second(
    metadata: Path, line: int, first: int, row: Mapping[str, str], other: Mapping[str, str]
) -> None:
    image = row["image_id"]
    if row["lesion_id"] != other["lesion_id"]:
        raise DataError(
            f"{metadata} line {line}, column lesion_id: image {image} belongs to "
            f"{row['lesion_id']} here and to {other['lesion_id']} in line {first}. One image "
            "cannot be of two lesions: delete the wrong line."
        )
    raise DataError(
        f"{metadata} line {line}, column image_id: image {image} is also in line {first}. "
        "Delete one of the two lines."
    )


def _warn_about_files(
    table: Table,
    images: Mapping[str, Path],
    masks: Mapping[str, Path] | None,
) -> None:
    if "dataset" not in table.header:
        logger.warning(
            "%s has no column dataset, as in older copies: there are no clinics to partition by.",
            table.path.name,
        )
    named = {row["image_id"] for row in table.rows.values()}
    extra = len(images.keys() - named)
    if extra:
        logger.warning("%d image(s) have no row in the metadata and are not used.", extra)
    if masks is not None:
        without = sum(image + _MASK_ENDING not in masks for image in named)
        if without:
            logger.warning("%d image(s) have no mask.", without)


def _record(
    folder: Path,
    metadata: Path,
    line: int,
    row: Mapping[str, str],
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
) -> SourceRecord:
    image_id = row["image_id"]
    path = images.get(image_id)
    mask = masks.get(image_id + _MASK_ENDING)
    return SourceRecord(
        record_id=image_id,
        patient_id=row["lesion_id"],
        labels=(row["dx"],),
        source=f"{metadata.name} line {line} ({path.name if path else image_id})",
        # A missing file must surface when it is read, so that it is quarantined and counted.
        read_image=functools.partial(read_picture, path, "RGB")
        if path
        else functools.partial(refuse, _missing(image_id, folder)),
        read_mask=functools.partial(read_mask, mask) if mask else None,
        columns={name: row[name] for name in _COLUMNS if name in row},
    )


def _missing(image_id: str, folder: Path) -> str:
    return (
        f"Expected the image {image_id}.jpg that the metadata names, found none in "
        f"{', '.join(f'{name}/' for name in _IMAGE_FOLDERS)} of {folder}. Place it there, or "
        "delete its row."
    )


def _digest(
    table: Table, image_ids: Iterable[str], images: Mapping[str, Path], masks: Mapping[str, Path]
) -> str:
    files = (
        (name, file_digest(images.get(name)), file_digest(masks.get(name + _MASK_ENDING)))
        for name in image_ids
    )
    return dataset_digest(_LOADER, [(hashlib.sha256(table.content).hexdigest(),), *files])
