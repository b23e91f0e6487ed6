"""What a scan found. Patients' raw identities are held in memory only, never written."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["dicom", "nifti", "picture"]
# "not_an_image": sound, but holds no picture to learn from (a report, a plan, a README).
Category = Literal["unreadable", "refused", "duplicate", "not_an_image"]


@dataclass(frozen=True)
class Unusable:
    """A file that gives no image.

    Attributes:
        path: The file, fit to print.
        reason: One sentence with the way out.
        category: "unreadable" (damaged or unknown), "refused" (limits, links), "duplicate", or
            "not_an_image" (a report, plan, mask, README: nothing is wrong with it).
        what: A few words that are the same for all files with this trouble.
    """

    path: str
    reason: str
    category: Category = "unreadable"
    what: str = "damaged"


@dataclass(frozen=True, kw_only=True)
class Series:
    """Images that belong together: a stack of slices, some radiographs, one volume.

    Attributes:
        kind: What reads it.
        key: Unique in the inventory: the series' UID, with a number where it was split; or the
            file's path below the folder.
        patient: Raw identity, or empty if the file names no patient. Keep it in memory only.
        study: The study's UID, or empty.
        modality: DICOM's code, e.g. CT; or "NIfTI", "PNG", "JPEG", "TIFF".
        files: In geometric order where there is geometry. A NIfTI pair is header, then image.
        shape: As stored: rows, columns[, samples], with the number of slices or frames first
            where there are several; x, y, z[, channels] of a NIfTI volume.
        spacing_mm: Of slices, rows and columns (or of rows and columns alone; x, y, z of NIfTI),
            None if the files do not say.
        scanner: Manufacturer and model, or empty.
        notes: What is unusual, a sentence each: gaps, duplicates, mixed sizes.
        num_images: Slices, frames or pictures; one for a NIfTI volume.
        is_stack: Whether files or frames lie evenly enough in space to be one volume.
    """

    kind: Kind
    key: str
    patient: str
    study: str
    modality: str
    files: tuple[Path, ...]
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None = None
    scanner: str = ""
    notes: tuple[str, ...] = ()
    num_images: int = 1
    is_stack: bool = False


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """All that a scan found.

    Attributes:
        series: By patient, study and series.
        unusable: By path, what gives no image, each with its reason.
        num_files: All that was found: files of series plus `unusable`, always.
    """

    series: tuple[Series, ...]
    unusable: tuple[Unusable, ...]
    num_files: int

    def counts(self) -> dict[str, int]:
        """Return totals; patients are those that files name."""
        categories = Counter(one.category for one in self.unusable)
        return {
            "files": self.num_files,
            "patients": len({one.patient for one in self.series if one.patient}),
            "studies": len({(one.patient, one.study) for one in self.series if one.study}),
            "series": len(self.series),
            "images": sum(one.num_images for one in self.series),
            "usable_files": sum(len(one.files) for one in self.series),
            "not_an_image": categories["not_an_image"],
            "duplicate": categories["duplicate"],
            "refused": categories["refused"],
            "unreadable": categories["unreadable"],
        }

    def to_json(
        self, *, with_paths: bool = True, labelled: Mapping[str, int] | None = None
    ) -> dict[str, Any]:
        """Return a table for programs at this hospital, without patients' identities or UIDs.

        Args:
            with_paths: Whether files are named. Paths may hold names: for local use only.
            labelled: As in `groups_of`.
        """
        table: dict[str, Any] = {
            "counts": self.counts(),
            "groups": [group.as_table() for group in groups_of(self.series, labelled)],
            "unusable": [
                {"what": what, "category": category, "files": number}
                for (category, what), number in unusable_kinds(self.unusable)
            ],
        }
        if with_paths:
            table["series"] = [
                _series_table(number, one) for number, one in enumerate(self.series, start=1)
            ]
            table["unusable_files"] = [
                {"path": one.path, "category": one.category, "reason": one.reason}
                for one in self.unusable
            ]
        return table


@dataclass(frozen=True)
class Group:
    """Series of one modality, size and scanner: a row of the scan's table."""

    modality: str
    size: str
    scanner: str
    patients: int
    studies: int
    series: int
    images: int
    noted: int
    labelled: int | None = None

    def as_table(self) -> dict[str, Any]:
        """Return the row for JSON."""
        return {name: value for name, value in vars(self).items() if value is not None}


def groups_of(series: Iterable[Series], labelled: Mapping[str, int] | None = None) -> list[Group]:
    """Return one row a modality, size and scanner; the most images first.

    Args:
        series: Of an inventory.
        labelled: How many images of each series have a label, by key; None where nobody looked.
    """
    found: dict[tuple[str, str, str], list[Series]] = {}
    for one in series:
        size = _size(one)
        found.setdefault((one.modality, size, one.scanner), []).append(one)
    rows = [
        Group(
            *key,
            patients=len({one.patient for one in members if one.patient}),
            studies=len({(one.patient, one.study) for one in members if one.study}),
            series=len(members),
            images=sum(one.num_images for one in members),
            noted=sum(bool(one.notes) for one in members),
            labelled=None if labelled is None else sum(labelled.get(m.key, 0) for m in members),
        )
        for key, members in found.items()
    ]
    return sorted(rows, key=lambda row: (-row.images, row.modality, row.size, row.scanner))


def unusable_kinds(
    unusable: Iterable[Unusable],
) -> list[tuple[tuple[Category, str], int]]:
    """Return how many files have which trouble, the most frequent first."""
    counts = Counter((one.category, one.what) for one in unusable)
    return sorted(counts.items(), key=lambda item: (item[0][0], -item[1], item[0][1]))


def _size(series: Series) -> str:
    plane = series.shape[1:] if series.num_images > 1 else series.shape
    return " x ".join(str(side) for side in plane)


def _series_table(number: int, series: Series) -> dict[str, Any]:
    return {
        # No key: it is a UID, which names a patient's examination wherever it is known.
        "number": number,
        "kind": series.kind,
        "modality": series.modality,
        "scanner": series.scanner,
        "shape": list(series.shape),
        "spacing_mm": None if series.spacing_mm is None else list(series.spacing_mm),
        "images": series.num_images,
        "files": [printable(path) for path in series.files],
        "notes": list(series.notes),
        "is_stack": series.is_stack,
    }


def printable(path: Path | str) -> str:
    """Return a path as text that any terminal and any JSON reader takes."""
    text = str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)
