"""Duke-Breast-Cancer-MRI: slices of dynamic breast MRI with and without the annotated tumour.

    Annotation_Boxes.xlsx               Patient ID, Start Row, End Row, ..., End Slice
    Breast-Cancer-MRI-filepath_filename-mapping.csv     the publisher's .xlsx, saved as CSV
    Duke-Breast-Cancer-MRI/Breast_MRI_001/<study>/<series>/1-001.dcm
    metadata.csv                        optional, of the NBIA Data Retriever: column `manufacturer`

All 922 patients have cancer, and a box marks the largest tumour of each. A record is an axial
slice: eight evenly through the box (tumour) and eight evenly outside, five slices or more away
(no tumour), as Duke's own tutorial has it. A slice without the box may hold another tumour. Masks
are the boxes: nobody drew outlines here. There is no official split.

A slice has views: post_1 (after contrast, the one that the boxes were drawn on), pre, post_2.
"""

import functools
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.common.errors import DataError, UnreadableImageError
from medfed.simulations.datasets.dicoms import read_grey
from medfed.simulations.datasets.digests import dataset_digest
from medfed.simulations.datasets.duke_breast_mri_files import MAPPING, VIEWS, Slices, find_slices
from medfed.simulations.datasets.folders import find_root
from medfed.simulations.datasets.known_digests import known_digests
from medfed.simulations.datasets.nbia import read_nbia_metadata
from medfed.simulations.datasets.spreadsheet import read_xlsx
from medfed.simulations.datasets.tables import Table, line_of_key

logger = logging.getLogger(__name__)

CLASSES = ("no tumour", "tumour")
STRUCTURES = ("tumour box",)

HOW_TO_GET = (
    "Download Annotation_Boxes.xlsx, Breast-Cancer-MRI-filepath_filename-mapping.xlsx and, with "
    "the NBIA Data Retriever, the images (370 GB) from https://doi.org/10.7937/TCIA.e3sv-re93. "
    "Open the mapping in a spreadsheet program and save it as CSV (it is too large to be read as "
    ".xlsx). Name the folder that holds the three with --data."
)

_BOXES = "Annotation_Boxes.xlsx"
_PATIENT = "Patient ID"
_SIDES = ("Start Row", "End Row", "Start Column", "End Column", "Start Slice", "End Slice")

_SLICES_OF_A_KIND = 8
_DISTANCE = 5
_PERCENTILES = (0.5, 99.5)

# Part of the digest: raise it when this module or duke_breast_mri_files turns the same files into
# other records.
_LOADER = "duke_breast_mri loader 1"


@dataclass(frozen=True)
class _Box:
    """Rows, columns and slices of a tumour: the first and the last one, counted from 1."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    slices: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class _Slice:
    """A slice that was chosen; files by view."""

    patient: str
    number: int
    box: _Box
    files: Mapping[str, Path]
    manufacturer: str

    @property
    def is_tumour(self) -> bool:
        return self.box.slices[0] <= self.number <= self.box.slices[1]


def load_duke_breast_mri(folder: Path) -> SourceDataset:
    """Read slices of Duke-Breast-Cancer-MRI from `folder`, which holds tables and images.

    Intensities of all views of a slice are mapped to 0..255 by the 0.5th and 99.5th percentile of
    post_1, so that what takes up contrast is brighter after it. Patients whose post_1 is not here
    are left out, with a warning; a view that is missing is left out. Columns are `manufacturer`
    and `slice`.

    Raises:
        DataError: Folder, tables or images missing, a table that cannot be read as such, a box
            that is none. Says file, line and column.
    """
    root = find_root(
        folder,
        ("Duke-Breast-Cancer-MRI",),
        lambda root: (root / _BOXES).is_file(),
        name="Duke-Breast-Cancer-MRI",
        expected=f"{_BOXES} and {MAPPING}",
        how_to_get=HOW_TO_GET,
    )
    table = read_xlsx(root / _BOXES, columns=(_PATIENT, *_SIDES), how_to_get=HOW_TO_GET)
    boxes = {patient: _box(table, line) for patient, line in line_of_key(table, _PATIENT).items()}
    series, metadata = read_nbia_metadata(root, how_to_get=HOW_TO_GET)
    makers = {one.subject: one.manufacturer for one in series.values() if one.manufacturer}
    found = find_slices(root, boxes, how_to_get=HOW_TO_GET)
    without = len(boxes.keys() - found.of_patient.keys())
    if without:
        logger.warning("%d patient(s) with a box have no images here and are not used.", without)
    slices = [
        one
        for patient in sorted(found.of_patient)
        for one in _choose(patient, boxes[patient], found.of_patient[patient], makers)
    ]
    return SourceDataset(
        name="Duke-Breast-Cancer-MRI",
        licence="CC BY-NC 4.0",
        citation=(
            "Saha A et al. A machine learning approach to radiogenomics of breast cancer: a study "
            "of 922 subjects and 529 DCE-MRI features. Br J Cancer 119:508 (2018)."
        ),
        classes=CLASSES,
        records=tuple(map(_record, slices)),
        digest=_digest(root, (table.content, metadata), found.digest, slices),
        structures=STRUCTURES,
    )


def _box(table: Table, line: int) -> _Box:
    numbers = []
    for name in _SIDES:
        text = table.rows[line][name].removesuffix(".0")
        if not text.isdecimal():
            raise DataError(
                f"{table.path} line {line}, column {name}: expected a number, got {text!r}. "
                "Restore the published row."
            )
        numbers.append(int(text))
    top, bottom, left, right, first, last = numbers
    if not (1 <= top <= bottom and 1 <= left <= right and 1 <= first <= last):
        raise DataError(
            f"{table.path} line {line}: expected starts before ends, counted from 1, got "
            f"{', '.join(map(str, numbers))}. Restore the published row."
        )
    return _Box((top, bottom), (left, right), (first, last))


def _choose(patient: str, box: _Box, slices: Slices, makers: Mapping[str, str]) -> list[_Slice]:
    first, last = box.slices
    inside = [number for number in slices if first <= number <= last]
    outside = [
        number for number in slices if number <= first - _DISTANCE or number >= last + _DISTANCE
    ]
    return [
        _Slice(
            patient=patient,
            number=number,
            box=box,
            files=slices[number],
            manufacturer=makers.get(patient, ""),
        )
        for number in sorted((*_evenly(inside), *_evenly(outside)))
    ]


def _evenly(numbers: Sequence[int]) -> list[int]:
    """At most eight of `numbers`, from the middle of each eighth."""
    count = min(_SLICES_OF_A_KIND, len(numbers))
    return [numbers[(2 * i + 1) * len(numbers) // (2 * count)] for i in range(count)]


def _record(one: _Slice) -> SourceRecord:
    readers = {
        view: functools.partial(_read, one.files[view], one.files[VIEWS[0]])
        for view in VIEWS
        if view in one.files
    }
    return SourceRecord(
        record_id=f"{one.patient}-{one.number:03d}",
        patient_id=one.patient,
        labels=(CLASSES[one.is_tumour],),
        source=f"{one.patient} slice {one.number} ({one.files[VIEWS[0]].name})",
        read_image=readers[VIEWS[0]],
        read_mask=functools.partial(_read_box, one),
        columns={"manufacturer": one.manufacturer, "slice": str(one.number)},
        views=readers,
    )


def _read(path: Path, reference: Path) -> npt.NDArray[np.float32]:
    values = read_grey(path).values
    scale = values if path == reference else read_grey(reference).values
    if values.shape != scale.shape:
        raise UnreadableImageError(
            f"{path}: expected {list(scale.shape)} pixels as {reference.name} of post_1 has, got "
            f"{list(values.shape)}. Fetch the series again, or leave it out."
        )
    low, high = (float(value) for value in np.percentile(scale, _PERCENTILES))
    if low == high:
        raise UnreadableImageError(f"{reference}: expected an image, got one grey value only.")
    scaled = np.clip((values.astype(np.float64) - low) * (255 / (high - low)), 0, 255)
    return scaled.astype(np.float32)


def _read_box(one: _Slice) -> npt.NDArray[np.uint8]:
    path = one.files[VIEWS[0]]
    shape = read_grey(path).values.shape
    (top, bottom), (left, right) = one.box.rows, one.box.columns
    if bottom > shape[0] or right > shape[1]:
        raise UnreadableImageError(
            f"{path}: the box of {one.patient} ends at row {bottom}, column {right}, the image at "
            f"{shape[0]}, {shape[1]}. Is the image, or the row of {_BOXES}, another patient's?"
        )
    mask = np.zeros(shape, dtype=np.uint8)
    if one.is_tumour:
        mask[top - 1 : bottom, left - 1 : right] = 1
    return mask


def _digest(root: Path, contents: Sequence[bytes], mapping: str, slices: Sequence[_Slice]) -> str:
    with known_digests(root) as digest:
        rows = [
            (one.patient, str(one.number), *(digest(path) for path in one.files.values()))
            for one in slices
        ]
    tables = [*(hashlib.sha256(content).hexdigest() for content in contents), mapping]
    return dataset_digest(_LOADER, [tables, *rows])
