"""HAM10000: dermatoscopic images of pigmented skin lesions in their published layout.

    HAM10000_metadata                           CSV; also .csv (Kaggle) and .tab
    images/                                     or HAM10000_images_part_1/ and _part_2/
    masks/                                      or HAM10000_segmentations_lesion_tschandl/

The metadata has no patients, only lesions, several images each: the lesion is the patient key.
There is no official split. The clinic is column `dataset`, the natural sites; a few lesions have
images from two of them.
"""

import csv
import functools
import hashlib
import io
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.common.errors import DataError, UnreadableImageError

logger = logging.getLogger(__name__)

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")

HOW_TO_GET = (
    "Download HAM10000_metadata, HAM10000_images_part_1.zip, HAM10000_images_part_2.zip and (for "
    "masks) HAM10000_segmentations_lesion_tschandl.zip from Harvard Dataverse, "
    "https://doi.org/10.7910/DVN/DBW86T, unpack them into one folder and name it with --data."
)

_METADATA_FILES = ("HAM10000_metadata", "HAM10000_metadata.csv", "HAM10000_metadata.tab")
_IMAGE_FOLDERS = ("images", "HAM10000_images_part_1", "HAM10000_images_part_2")
_MASK_FOLDERS = ("masks", "HAM10000_segmentations_lesion_tschandl")
_MASK_ENDING = "_segmentation"
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})

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
    content = metadata.read_bytes()
    rows = _read_rows(metadata, content)
    _warn_about_files(rows, images, masks)
    records = tuple(
        _record(folder, metadata, line, row, images, masks or {})
        for line, row in sorted(rows.items(), key=lambda item: item[1]["image_id"])
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
        digest=_digest(content, [record.record_id for record in records], images, masks or {}),
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
        for path in sorted(subfolder.iterdir()):
            if path.suffix.lower() in _SUFFIXES and not path.name.startswith("."):
                files.setdefault(path.stem, path)
    return files if found else None


def _read_rows(metadata: Path, content: bytes) -> dict[int, dict[str, str]]:
    """Return the rows by line number of the file."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{metadata}: expected UTF-8 text, got {error}. {HOW_TO_GET}") from None
    header = text.partition("\n")[0]
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter="\t" if "\t" in header else ",", strict=True
    )
    rows: dict[int, dict[str, str]] = {}
    line_of: dict[str, int] = {}
    try:
        _check_header(metadata, reader.fieldnames or ())
        for row in reader:
            _check_row(metadata, reader.line_num, row, len(reader.fieldnames or ()))
            first = line_of.setdefault(row["image_id"], reader.line_num)
            if first != reader.line_num:
                _refuse_second(metadata, reader.line_num, first, row, rows[first])
            rows[reader.line_num] = row
    except csv.Error as error:
        raise DataError(
            f"{metadata}, after line {reader.line_num}: not valid CSV ({error}). Mend it, or fetch "
            "the file again."
        ) from None
    return rows


def _check_header(metadata: Path, header: Iterable[str]) -> None:
    names = list(header)
    missing = [name for name in (*_KEYS, *_COLUMNS) if name not in names]
    if missing == ["dataset"]:
        logger.warning(
            "%s has no column dataset, as in older copies: there are no clinics to partition by.",
            metadata.name,
        )
    elif missing or len(set(names)) != len(names):
        raise DataError(
            f"{metadata} line 1: expected the columns {', '.join((*_KEYS, *_COLUMNS))}, each once, "
            + f"got {', '.join(names) or 'nothing'}"
            + (f" (missing: {', '.join(missing)})" if missing else "")
            + ". Restore the published header."
        )


def _check_row(
    metadata: Path, line: int, row: Mapping[str | None, object], num_columns: int
) -> None:
    if None in row or None in row.values():
        raise DataError(
            f"{metadata} line {line}: expected {num_columns} values, got "
            + ("more" if None in row else "fewer")
            + ". Mend that line."
        )
    for name in _KEYS:
        if not row[name]:
            raise DataError(
                f"{metadata} line {line}: column {name} is empty. Fill it in, or delete the line."
            )


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
    rows: Mapping[int, Mapping[str, str]],
    images: Mapping[str, Path],
    masks: Mapping[str, Path] | None,
) -> None:
    named = {row["image_id"] for row in rows.values()}
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
        read_image=functools.partial(_read_image, path)
        if path
        else functools.partial(_refuse_missing, image_id, folder),
        read_mask=functools.partial(_read_mask, mask) if mask else None,
        columns={name: row[name] for name in _COLUMNS if name in row},
    )


def _read_image(path: Path) -> npt.NDArray[np.generic]:
    return _decode(path, "RGB")


def _refuse_missing(image_id: str, folder: Path) -> npt.NDArray[np.generic]:
    raise UnreadableImageError(
        f"Expected the image {image_id}.jpg that the metadata names, found none in "
        f"{', '.join(f'{name}/' for name in _IMAGE_FOLDERS)} of {folder}. Place it there, or "
        "delete its row."
    )


def _read_mask(path: Path) -> npt.NDArray[np.uint8]:
    # Through the palette: some masks have one that turns stored 0 into white, which is lesion.
    return (_decode(path, "L") > 127).astype(np.uint8)


def _decode(path: Path, mode: str) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert(mode), dtype=np.uint8)
    # Pillow reports damage with all of these, depending on the format and on where it is.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(
            f"{path} cannot be decoded ({error}). Fetch it again, or delete its row."
        ) from None


def _digest(
    metadata: bytes, image_ids: Iterable[str], images: Mapping[str, Path], masks: Mapping[str, Path]
) -> str:
    """Return the SHA-256 over the metadata and every file that a record reads."""
    whole = hashlib.sha256(f"{_LOADER}\n{hashlib.sha256(metadata).hexdigest()}\n".encode())
    for image_id in image_ids:
        parts = (
            _file_digest(images.get(image_id)),
            _file_digest(masks.get(image_id + _MASK_ENDING)),
        )
        whole.update(f"{image_id}\x1f{parts[0]}\x1f{parts[1]}\n".encode())
    return whole.hexdigest()


def _file_digest(path: Path | None) -> str:
    if path is None:
        return "missing"
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        # Reading it as an image names the file and the reason.
        return "unreadable"
