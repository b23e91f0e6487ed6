"""Write one grey image as a DICOM file: the phantom's way into the path real archives take.

References: DICOM PS3.3 A.2 (Computed Radiography IOD), A.3 (CT IOD), C.7.6.3 (Image Pixel).
"""

import uuid
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, CTImageStorage, ExplicitVRLittleEndian

from medfed.common.errors import DataError

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:medfed:dicom-writer")


@dataclass(frozen=True, kw_only=True)
class DicomHeader:
    """What the file says besides its pixels. Invented by the caller; never a real person's.

    Attributes:
        uid_source: Text that study, series and instance UIDs derive from; unique to the image.
        patient_name: In DICOM form, `Family^Given`.
        patient_id: The hospital's identifier.
        birth_date: Date of birth.
        sex: `F`, `M` or `O`.
        study_date: Day the image was taken.
        modality: `CR` (radiograph) or `CT` (one slice).
        institution: Hospital's name.
        station: Scanner's name.
        field_of_view_mm: Width of the whole image in the patient's plane.
    """

    uid_source: str
    patient_name: str
    patient_id: str
    birth_date: date
    sex: str
    study_date: date
    modality: Literal["CR", "CT"]
    institution: str
    station: str
    field_of_view_mm: float = 400.0


def write_dicom_image(path: Path, pixels: npt.NDArray[np.generic], header: DicomHeader) -> None:
    """Write `pixels`, uint8 [H, W], to `path` in Explicit VR Little Endian, uncompressed.

    The same pixels and header give the same bytes.

    Raises:
        DataError: If `pixels` is not uint8 of two dimensions.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 2:
        raise DataError(
            f"Expected a uint8 image of shape [H, W], got {pixels.dtype} of shape "
            f"{pixels.shape}. Scale it to 0..255 and drop its colour channels."
        )
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = (
        CTImageStorage if header.modality == "CT" else ComputedRadiographyImageStorage
    )
    meta.MediaStorageSOPInstanceUID = _uid(header, "instance")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    _set_identity(dataset, header)
    _set_pixels(dataset, pixels, header)
    if header.modality == "CT":
        _set_ct(dataset, header)
    else:
        dataset.BodyPartExamined, dataset.ViewPosition = "CHEST", "PA"
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def _uid(header: DicomHeader, level: str) -> str:
    """Return a UID under 2.25, the arc for UUIDs (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, f'{level}/{header.uid_source}').int}"


def _set_identity(dataset: FileDataset, header: DicomHeader) -> None:
    """Set patient, study, series and equipment."""
    age = header.study_date.year - header.birth_date.year
    if (header.study_date.month, header.study_date.day) < (
        header.birth_date.month,
        header.birth_date.day,
    ):
        age -= 1
    day = header.study_date.strftime("%Y%m%d")
    dataset.PatientName = header.patient_name
    dataset.PatientID = header.patient_id
    dataset.PatientBirthDate = header.birth_date.strftime("%Y%m%d")
    dataset.PatientSex = header.sex
    dataset.PatientAge = f"{age:03d}Y"
    dataset.StudyInstanceUID = _uid(header, "study")
    dataset.SeriesInstanceUID = _uid(header, "series")
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = day
    dataset.StudyTime = dataset.ContentTime = "120000"
    dataset.StudyID, dataset.AccessionNumber, dataset.ReferringPhysicianName = "1", "", ""
    dataset.SeriesNumber = dataset.InstanceNumber = dataset.AcquisitionNumber = 1
    dataset.Modality = header.modality
    dataset.Manufacturer = "medfed phantom"
    dataset.InstitutionName, dataset.StationName = header.institution, header.station


def _set_pixels(dataset: FileDataset, pixels: npt.NDArray[np.generic], header: DicomHeader) -> None:
    # A CT image has 16 bits allocated (PS3.3 C.8.2.1.1); a radiograph may have 8.
    bits = 16 if header.modality == "CT" else 8
    stored = pixels.astype("<u2" if bits == 16 else np.uint8)
    spacing = [round(header.field_of_view_mm / pixels.shape[1], 6)] * 2
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = bits
    dataset.BitsStored, dataset.HighBit = (12, 11) if bits == 16 else (8, 7)
    dataset.PixelRepresentation = 0
    dataset.WindowCenter, dataset.WindowWidth = 128, 256
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "00"
    if header.modality == "CT":
        dataset.PixelSpacing = spacing
    else:
        dataset.ImagerPixelSpacing = spacing
    data = stored.tobytes()
    dataset.add_new("PixelData", "OW" if bits == 16 else "OB", data + b"\0" * (len(data) % 2))


def _set_ct(dataset: FileDataset, header: DicomHeader) -> None:
    """Set geometry and rescaling; values are grey levels, so the type is US, not HU."""
    dataset.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    dataset.BodyPartExamined = "CHEST"
    dataset.FrameOfReferenceUID = _uid(header, "frame")
    dataset.PositionReferenceIndicator = ""
    dataset.PatientPosition = "HFS"
    corner_mm = -header.field_of_view_mm / 2
    dataset.ImagePositionPatient = [corner_mm, corner_mm, 0]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.SliceThickness = 5
    dataset.KVP = 120
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "US"
