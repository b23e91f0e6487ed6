"""Finds the slices of Duke-Breast-Cancer-MRI: which file of the download is which slice.

The mapping names each file three times: as Duke had it (DICOM_Images/Breast_MRI_001/post_1/
Breast_MRI_001_post_1_001.dcm: patient, sequence, number of the slice), and where TCIA's two forms
of the download have it (classic_path: folders named by UIDs; descriptive_path: by dates and
descriptions). Its paths have flaws: doubled slashes, BreastMRI001 for Breast_MRI_001, and more
zeros in names (1-001.dcm) than the files have (1-01.dcm).
"""

import csv
import functools
import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medfed.common.errors import DataError

# The first one is what the boxes were drawn on: without it a slice is not used.
VIEWS = ("post_1", "pre", "post_2")
MAPPING = "Breast-Cancer-MRI-filepath_filename-mapping.csv"

Slices = Mapping[int, Mapping[str, Path]]
"""Files by view by number of the slice, in order."""

_COLUMNS = ("original_path_and_filename", "classic_path", "descriptive_path")
_COLLECTION = "Duke-Breast-Cancer-MRI"
_ORIGINAL = re.compile(
    r"(?:.*/)?(?P<patient>Breast_MRI_\d{3})/(?P<view>\w+)/[^/]*?(?P<number>\d+)\.dcm"
)
_PHASE = re.compile(r"post_?(\d)")
_PATIENT = re.compile(r"Breast_?MRI_?(?P<number>\d{3})")
_FILE = re.compile(r"\d+-(?P<number>\d+)\.dcm")


@dataclass(frozen=True)
class Found:
    """Slices by patient, and the SHA-256 of the mapping."""

    of_patient: Mapping[str, Slices]
    digest: str


def find_slices(root: Path, patients: Collection[str], *, how_to_get: str) -> Found:
    """Return the slices of `patients` whose post_1 is below `root`.

    The mapping has some 770,000 rows: it is read line by line, and a folder is listed once.

    Args:
        root: Holds the mapping and the download.
        patients: Whose boxes are known.
        how_to_get: For the error.

    Raises:
        DataError: No mapping, or one that cannot be read as such; no image at all.
    """
    path = root / MAPPING
    if not path.is_file():
        raise DataError(f"Expected {MAPPING} in {root}, got none. {how_to_get}")
    base = _base(root)
    slices = _collect(path, base, patients)
    used = {
        patient: {
            number: {view: own[view] for view in VIEWS if view in own}
            for number, own in sorted(numbers.items())
            if VIEWS[0] in own
        }
        for patient, numbers in slices.items()
    }
    used = {patient: numbers for patient, numbers in used.items() if numbers}
    if not used:
        raise DataError(
            f"Expected the images that {MAPPING} names below {base}, got none. {how_to_get}"
        )
    with path.open("rb") as file_:
        return Found(used, hashlib.file_digest(file_, "sha256").hexdigest())


def _collect(
    path: Path, base: Path, patients: Collection[str]
) -> Mapping[str, Mapping[int, Mapping[str, Path]]]:
    """The files that are there, by view, number and patient."""
    slices: dict[str, dict[int, dict[str, Path]]] = defaultdict(lambda: defaultdict(dict))

    # Each folder is looked for and listed once, not once a slice.
    @functools.cache
    def files_in(folder: str) -> Mapping[int, Path]:
        place = _below_patients(folder)
        return _numbered_files(base / place) if place else {}

    for patient, view, number, texts in _rows(path):
        if patient not in patients or view not in VIEWS:
            continue
        for folder, _, name in (_with_slashes(text).rpartition("/") for text in texts):
            file = files_in(folder).get(_number(name))
            if file is not None:
                slices[patient][number][view] = file
                break
    return slices


def _base(root: Path) -> Path:
    """The folder that holds a folder a patient."""
    for base in (root / _COLLECTION, *sorted(root.glob(f"manifest-*/{_COLLECTION}"))):
        if base.is_dir():
            return base
    return root


def _rows(path: Path) -> Iterator[tuple[str, str, int, list[str]]]:
    """Patient, sequence, number and the two places, a row each."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        try:
            header = next(reader, [])
            if missing := [name for name in _COLUMNS if name not in header]:
                raise DataError(
                    f"{path} line 1: expected the columns {', '.join(_COLUMNS)}, got "
                    f"{', '.join(header) or 'nothing'} (missing: {', '.join(missing)}). Save the "
                    "published .xlsx as CSV, with commas."
                )
            original, *others = (header.index(name) for name in _COLUMNS)
            for row in reader:
                match = _ORIGINAL.fullmatch(row[original]) if len(row) >= len(header) else None
                if match is None:
                    raise DataError(
                        f"{path} line {reader.line_num}, column {_COLUMNS[0]}: expected "
                        "DICOM_Images/Breast_MRI_001/post_1/Breast_MRI_001_post_1_001.dcm or the "
                        f"like, got {row}. Restore the published row."
                    )
                view = _PHASE.sub(r"post_\1", match["view"])
                yield match["patient"], view, int(match["number"]), [row[i] for i in others]
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(
                f"{path}, after line {reader.line_num}: not valid CSV in UTF-8 ({error}). Save the "
                "published .xlsx as CSV again."
            ) from None


def _with_slashes(text: str) -> str:
    return text.strip().replace("\\", "/")


def _below_patients(folder: str) -> PurePosixPath | None:
    # Doubled slashes vanish with the parts.
    parts = PurePosixPath(folder).parts
    for position, part in enumerate(parts):
        match = _PATIENT.fullmatch(part)
        if match is not None and ".." not in parts:
            return PurePosixPath(f"Breast_MRI_{match['number']}", *parts[position + 1 :])
    return None


def _number(name: str) -> int:
    match = _FILE.fullmatch(name)
    return int(match["number"]) if match else -1


def _numbered_files(folder: Path) -> Mapping[int, Path]:
    if not folder.is_dir():
        return {}
    return {_number(file.name): file for file in folder.iterdir() if _FILE.fullmatch(file.name)}
