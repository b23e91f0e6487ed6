"""The images that a prediction is about: their headers, in the order of their geometry."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.archive.scan import scan_folder
from medfed.client.data.dicom.elements import numbers_of, tag_of, text_of
from medfed.client.data.dicom.frames import frame_headers
from medfed.client.data.dicom.geometry import Floats, Plane, normal_of, volume_affine
from medfed.client.data.dicom.opening import parsing
from medfed.common.errors import DataError, reason

# Patient (PS3.3 C.7.1.1) and study (C.7.2.1): what a result has in common with its images.
_IDENTITY = ("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
             "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
             "ReferringPhysicianName", "StudyDescription")  # fmt: skip
_TYPE_2 = frozenset(_IDENTITY) - {"IssuerOfPatientID", "StudyDescription", "StudyInstanceUID"}
_DATE = re.compile(r"[0-9]{4}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])")
_FORMS = {
    "PatientBirthDate": _DATE,
    "StudyDate": _DATE,
    "StudyTime": re.compile(r"([01][0-9]|2[0-3])([0-5][0-9]([0-5][0-9](\.[0-9]{1,6})?)?)?"),
    "PatientSex": re.compile(r"[MFO]"),
}


@dataclass(frozen=True)
class Sources:
    """One image, one series of slices, or one multi-frame image.

    Attributes:
        headers: Without pixels, by geometry.
        shape: Frames or slices, rows, columns; rows and columns alone of a single image.
    """

    headers: tuple[Dataset, ...]
    shape: tuple[int, ...]

    @property
    def first(self) -> Dataset:
        """The header that stands for all where they agree."""
        return self.headers[0]

    def planes(self) -> list[Plane]:
        """Return where each slice is; none if the headers do not say."""
        frames = self.shape[0] if len(self.headers) == 1 and len(self.shape) == 3 else 1
        planes = [
            Plane(
                one.numbers("ImagePositionPatient", 3),
                one.numbers("ImageOrientationPatient", 6),
                one.numbers("PixelSpacing", 2),
            )
            for header in self.headers
            for one in frame_headers(header, frames)
        ]
        placed = all(
            one.position and one.spacing and normal_of(one.orientation) is not None
            for one in planes
        )
        return planes if placed and len(planes) == int(np.prod(self.shape[:-2])) else []

    def affine(self) -> Floats:
        """Return the affine from (slice, row, column) to mm, right, anterior, superior.

        Raises:
            DataError: The headers do not say where the slices are.
        """
        planes = self.planes()
        if not planes:
            raise DataError(
                "Expected source images that say where they are (position, orientation, pixel "
                "spacing), got others. Give the mask by slices, rows and columns."
            )
        thickness = numbers_of(self.first, "SliceThickness")
        return volume_affine(planes, thickness[0] if thickness and thickness[0] > 0 else 1.0)


def read_sources(path: Path) -> Sources:
    """Read the headers of one image, or of the one series in a folder.

    Raises:
        DataError: Unreadable, no image, or several series.
    """
    if path.is_dir():
        found = scan_folder(path, ReadLimits())
        series = [one for one in found.series if one.kind == "dicom"]
        if len(series) != 1:
            raise DataError(
                f"Expected the images of one series in {path}, found {len(series)} series. Name "
                "the folder of one, or one file."
            )
        files = series[0].files
    else:
        files = (path,)
    return as_sources([_header(file) for file in files], str(path))


def as_sources(headers: list[Dataset], origin: str) -> Sources:
    """Return headers as sources; `origin` is what errors call them.

    Raises:
        DataError: They are no images, or differ in size, study or patient.
    """
    facts = {
        (
            numbers_of(one, "Rows")[:1],
            numbers_of(one, "Columns")[:1],
            text_of(one, "StudyInstanceUID"),
            text_of(one, "PatientID"),
        )
        for one in headers
    }
    if len(facts) != 1:
        raise DataError(f"Expected images of one size and study in {origin}, got several.")
    rows, columns, study, _ = facts.pop()
    if not (rows and columns and study and text_of(headers[0], "SOPInstanceUID")):
        raise DataError(f"Expected DICOM images with rows, columns and UIDs in {origin}.")
    frames = int((numbers_of(headers[0], "NumberOfFrames") or (1,))[0])
    if frames > 1 and len(headers) > 1:
        raise DataError(f"Expected one multi-frame image or single frames in {origin}, got both.")
    number = max(frames, len(headers))
    plane = (int(rows[0]), int(columns[0]))
    return Sources(tuple(headers), (number, *plane) if number > 1 else plane)


def take_over_identity(result: Dataset, source: Dataset) -> None:
    """Give `result` the patient and study of `source`, as they are written there, in UTF-8."""
    with parsing():
        for keyword in _IDENTITY:
            if keyword in source:
                # A new element: highdicom lets results share those of their sources.
                tag = tag_of(keyword)
                result[tag] = DataElement(tag, dictionary_VR(tag), _words(source, keyword))
        result.SpecificCharacterSet = "ISO_IR 192"


def _words(source: Dataset, keyword: str) -> str:
    value = source.get(keyword)
    return "" if value is None else str(value)


def _header(path: Path) -> Dataset:
    """A header that says of patient and study at least that it does not know."""
    try:
        with path.open("rb") as file, parsing():
            header = dcmread(file, stop_before_pixels=True, force=True)
            for keyword in _IDENTITY:
                if isinstance(header.get(keyword), MultiValue):
                    setattr(header, keyword, str(header.get(keyword)[0]))  # there is to be one
                form = _FORMS.get(keyword)
                said = _words(header, keyword)
                # What is no date, time or sex is left out: the result would be invalid too.
                if (form and not form.fullmatch(said)) or (keyword in _TYPE_2 and not said):
                    setattr(header, keyword, None)
    except FileProblem as problem:
        raise problem.of(path) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}") from None
    return header
