"""Small DICOM files that say exactly what a test wants them to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    generate_uid,
)

AXIAL = [1, 0, 0, 0, 1, 0]


def slice_dataset(values: npt.NDArray[Any], **elements: Any) -> FileDataset:
    """A CT slice of `values`, [H, W], [F, H, W] or, with SamplesPerPixel=3, [H, W, 3]."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    samples = elements.get("SamplesPerPixel", 1)
    plane = values.shape[-3:-1] if samples > 1 else values.shape[-2:]
    bits = 8 * values.dtype.itemsize
    said: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": generate_uid(),
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4",
        "PatientID": "P1",
        "Modality": "CT",
        "Rows": plane[0],
        "Columns": plane[1],
        "SamplesPerPixel": samples,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "PixelRepresentation": int(values.dtype.kind == "i"),
    } | elements
    said.setdefault("HighBit", said["BitsStored"] - 1)
    for keyword, value in said.items():
        if value is not None:
            setattr(dataset, keyword, value)
    data = values.tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    meta.MediaStorageSOPClassUID = UID(dataset.get("SOPClassUID", CTImageStorage))
    meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "1.2.3.4.5")
    return dataset


def write_slice(path: Path, values: npt.NDArray[Any], **elements: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, slice_dataset(values, **elements), enforce_file_format=True)
    return path


def placed(position: Sequence[float], orientation: Sequence[float] = AXIAL) -> dict[str, Any]:
    return {
        "ImagePositionPatient": list(position),
        "ImageOrientationPatient": list(orientation),
        "PixelSpacing": [0.5, 0.75],
    }


def write_stack(folder: Path, heights_mm: Sequence[float], **elements: Any) -> list[Path]:
    """Axial slices at the heights given, in files whose names tell nothing of it.

    A slice's values are all 100 times its height, save for one pixel in a corner.
    """
    paths = []
    for number, height in enumerate(heights_mm):
        values = np.full((4, 6), 100 * height, np.int16)
        values[0, 0] = 7
        said = placed((10, 20, height)) | {"InstanceNumber": 99 - number} | elements
        paths.append(write_slice(folder / f"{number:03d}.dcm", values, **said))
    return paths


def item(**elements: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset
