"""Small archives with labels, invented for the tests."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom.dataset import Dataset

sys.path.insert(0, str(Path(__file__).parents[1] / "dicom"))

from slices import item, write_slice

from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.scan import scan_folder
from medfed.client.data.labels.joined import LabelJoin
from medfed.client.data.labels.joining import join_labels
from medfed.client.data.labels.section import LabelSection

KEY = bytes(range(32))
LIMITS = ReadLimits()
REAL_DATA = Path(
    os.environ.get("MEDFED_TEST_DATA", Path(__file__).resolve().parents[4] / "../shared/data")
)


def join(folder: Path, section: dict[str, Any], **options: Any) -> LabelJoin:
    """Labels of all that lies in folder/archive; paths of the section are below folder."""
    archive = folder / "archive"
    return join_labels(
        LabelSection.model_validate(section),
        scan_folder(archive, LIMITS),
        folder,
        LIMITS,
        pseudonym_key=KEY,
        archive_folders=(archive,),
        **options,
    )


def write_picture(path: Path, values: npt.NDArray[Any] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4) if values is None else values
    Image.fromarray(pixels).save(path)
    return path


def write_radiograph(folder: Path, patient: str, number: int = 1, **elements: Any) -> Path:
    """One image of a patient, alone in its study and series."""
    name = f"{patient.strip() or 'nobody'}-{number}.dcm"
    uid = f"1.2.{abs(hash_of(patient))}.{number}"
    said = {
        "PatientID": patient,
        "StudyInstanceUID": f"{uid}.1",
        "SeriesInstanceUID": f"{uid}.2",
        "SOPInstanceUID": f"{uid}.3",
        "Modality": "CR",
    } | elements
    return write_slice(folder / name, np.full((4, 6), 100, np.int16), **said)


def hash_of(text: str) -> int:
    return sum(ord(sign) * 31**place for place, sign in enumerate(text)) % 10**9


# A phantom whose structures are bright, on slices that are written in no order.
SHAPE = (5, 12, 16)
SPACING = (0.8, 0.5)
STEP = 2.0
FRAME_OF_REFERENCE = "1.2.77"
AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
CORONAL = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0))
OBLIQUE = ((0.8, 0.6, 0.0), (0.0, 0.0, -1.0))
Directions = tuple[tuple[float, float, float], tuple[float, float, float]]


def bright_boxes() -> npt.NDArray[np.uint8]:
    """Two structures, 1 and 2, [F, H, W], in order along the normal; unlike their mirror images."""
    boxes = np.zeros(SHAPE, np.uint8)
    boxes[1:4, 2:7, 3:9] = 1
    boxes[3:5, 8:11, 10:15] = 2
    return boxes


def position_of(at: int, directions: Directions = AXIAL) -> npt.NDArray[np.float64]:
    normal = np.cross(*directions)
    return np.array([-20.0, 10.0, 5.0]) + normal * STEP * at


def write_phantom(folder: Path, directions: Directions = AXIAL) -> list[Path]:
    """A CT whose values are 1000 in structure 1, 2000 in structure 2, else 0."""
    boxes = bright_boxes()
    paths = []
    for number, at in enumerate((3, 0, 4, 2, 1)):
        paths.append(
            write_slice(
                folder / f"{number}.dcm",
                boxes[at].astype(np.int16) * 1000,
                PatientID="P1",
                StudyInstanceUID="1.2.70",
                SeriesInstanceUID="1.2.71",
                SOPInstanceUID=f"1.2.71.{at + 1}",
                FrameOfReferenceUID=FRAME_OF_REFERENCE,
                InstanceNumber=number + 1,
                PatientName="Test^One",
                PatientBirthDate="19700101",
                PatientSex="O",
                StudyDate="20260101",
                StudyTime="120000",
                StudyID="1",
                AccessionNumber="A1",
                ReferringPhysicianName="",
                SliceThickness=STEP,
                ImagePositionPatient=position_of(at, directions).tolist(),
                ImageOrientationPatient=[*directions[0], *directions[1]],
                PixelSpacing=list(SPACING),
            )
        )
    return paths


def outline(
    rows: Sequence[float], columns: Sequence[float], at: float, directions: Directions = AXIAL
) -> list[float]:
    """A closed outline through corners given as rows and columns of slice `at`."""
    start = np.array([-20.0, 10.0, 5.0]) + np.cross(*directions) * STEP * at
    row, column = np.asarray(directions[0]), np.asarray(directions[1])
    points = [
        start + column * SPACING[0] * i + row * SPACING[1] * j
        for i, j in zip(rows, columns, strict=True)
    ]
    return [float(f"{number:.6f}") for point in points for number in point]


def box_outline(
    top: float, bottom: float, left: float, right: float, at: float, directions: Directions = AXIAL
) -> list[float]:
    """Around whole pixels: half a pixel beyond the centres of the outermost."""
    rows = (top - 0.5, top - 0.5, bottom + 0.5, bottom + 0.5)
    columns = (left - 0.5, right + 0.5, right + 0.5, left - 0.5)
    return outline(rows, columns, at, directions)


def write_structure_set(
    path: Path,
    rois: dict[str, list[tuple[str, list[float]]]],
    *,
    frame_of_reference: str = FRAME_OF_REFERENCE,
    series: str = "1.2.71",
) -> Path:
    """An RTSTRUCT of named ROIs, each a list of (geometric type, coordinates)."""
    from pydicom.uid import RTStructureSetStorage

    referenced = item(
        FrameOfReferenceUID=frame_of_reference,
        RTReferencedStudySequence=[
            item(
                ReferencedSOPInstanceUID="1.2.70",
                RTReferencedSeriesSequence=[item(SeriesInstanceUID=series)],
            )
        ],
    )
    contours = [
        item(
            ReferencedROINumber=number,
            ContourSequence=[
                item(ContourGeometricType=kind, NumberOfContourPoints=len(data) // 3,
                     ContourData=data)
                for kind, data in found
            ],
        )
        for number, found in enumerate(rois.values(), start=1)
    ]  # fmt: skip
    names = [item(ROINumber=number, ROIName=name) for number, name in enumerate(rois, start=1)]
    return write_object(
        path, RTStructureSetStorage, "RTSTRUCT", SOPInstanceUID=f"1.2.{hash_of(path.name)}",
        PatientID="P1", StudyInstanceUID="1.2.70", SeriesInstanceUID="1.2.99",
        ReferencedFrameOfReferenceSequence=[referenced],
        StructureSetROISequence=names, ROIContourSequence=contours,
    )  # fmt: skip


def write_object(path: Path, sop_class: str, modality: str, **elements: Any) -> Path:
    """A DICOM object without pixels."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UID(sop_class)
    meta.MediaStorageSOPInstanceUID = elements["SOPInstanceUID"]
    dataset: Dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = UID(sop_class)
    dataset.Modality = modality
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path
