"""What of an archive is the data set: files by name and modality, and whose each of them is."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from itertools import count
from pathlib import Path

from medfed.client.data.archive.dataset_file import ArchiveSection, DatasetFile
from medfed.client.data.archive.inventory import Inventory, Series, Unusable
from medfed.client.data.archive.scan import Progress, scan_folder
from medfed.client.data.deidentification.identity import normalised


@dataclass(frozen=True)
class Chosen:
    """The files of a data set.

    Attributes:
        inventory: Of all folders, without what was not chosen.
        left_out: Files that were not chosen, by the key of dataset.toml that says so.
    """

    inventory: Inventory
    left_out: Mapping[str, int]


def scan_archive(
    file: DatasetFile, *, workers: int = 1, progress: Progress | None = None
) -> Chosen:
    """Scan all folders of a data set and choose its series.

    Args:
        file: The hospital's `dataset.toml`.
        workers: Processes that read headers.
        progress: Called with (done, total), for each folder anew.

    Raises:
        DataError: A folder is missing.
    """
    chosen: list[Series] = []
    unusable: list[Unusable] = []
    left_out: Counter[str] = Counter()
    keys: set[str] = set()
    for folder in file.archive.folders:
        found = scan_folder(
            file.path(folder),
            file.limits,
            issuer=file.deidentify.issuer_of_patient_id,
            workers=workers,
            progress=progress,
        )
        unusable += found.unusable
        for series in found.series:
            below = [path.relative_to(file.path(folder)).as_posix() for path in series.files]
            why = _left_out(file.archive, series, below)
            if why:
                left_out[why] += len(series.files)
                continue
            key = _free_key(series, folder, keys)
            keys.add(key)
            patient = _patient(file.archive, series, below[0])
            chosen.append(replace(series, key=key, patient=patient))
    num_files = len(unusable) + sum(len(series.files) for series in chosen)
    inventory = Inventory(series=tuple(chosen), unusable=tuple(unusable), num_files=num_files)
    return Chosen(inventory, dict(left_out))


def _free_key(series: Series, folder: str, taken: set[str]) -> str:
    """The series' key; another where two folders hold files of one name or parts of one series."""
    if series.key not in taken:
        return series.key
    if series.kind != "dicom":
        return f"{folder}/{series.key}"
    return next(key for n in count(2) if (key := f"{series.key}/{n}") not in taken)


def _left_out(section: ArchiveSection, series: Series, below: list[str]) -> str:
    """The key that leaves a series out; empty if none does."""
    if section.modalities and series.modality not in section.modalities:
        return "archive.modalities"
    if any(fnmatch(path, pattern) for path in below for pattern in section.exclude):
        return "archive.exclude"
    return ""


def _patient(section: ArchiveSection, series: Series, below: str) -> str:
    """Whose a series is; empty if that is not known."""
    if section.patient == "folder":
        return normalised(Path(below).parts[0]) if "/" in below else ""
    if section.patient == "name":
        found = re.search(section.patient_pattern, below)
        return normalised(found.group(1) or "") if found else ""
    return series.patient
