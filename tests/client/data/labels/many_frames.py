"""Segmentations of several hundred frames, written frame by frame."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from archives import FRAME_OF_REFERENCE, write_slice
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder
from pydicom.uid import UID, ExplicitVRLittleEndian, RLELossless, SegmentationStorage
from slices import item

SLICES, SEGMENTS = 12, 30
# Odd: frames of single bits begin within bytes.
SIDE = 411


def write_source(folder: Path) -> None:
    """The series: blank slices."""
    for at in range(SLICES):
        write_slice(
            folder / f"{at}.dcm",
            np.zeros((SIDE, SIDE), np.int16),
            PatientID="P1",
            StudyInstanceUID="1.2.70",
            SeriesInstanceUID="1.2.71",
            SOPInstanceUID=f"1.2.71.{at + 1}",
            FrameOfReferenceUID=FRAME_OF_REFERENCE,
            SliceThickness=1.0,
            ImagePositionPatient=[0.0, 0.0, float(at)],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelSpacing=[1.0, 1.0],
        )


def is_inside(segment: int, at: int) -> npt.NDArray[np.bool_]:
    """Where segment 1, 2, ... is in a slice: a bar of its own, longer from slice to slice."""
    inside = np.zeros((SIDE, SIDE), np.bool_)
    top = (segment - 1) * 13
    inside[top : top + 11, 5 : 200 + 7 * at + segment] = True
    return inside


def truth() -> npt.NDArray[np.uint8]:
    mask = np.zeros((SLICES, SIDE, SIDE), np.uint8)
    for segment in range(1, SEGMENTS + 1):
        for at in range(SLICES):
            mask[at][is_inside(segment, at)] = segment
    return mask


def write_many(path: Path, kind: str, syntax: UID = ExplicitVRLittleEndian) -> Dataset:
    """SEGMENTS x SLICES frames: BINARY of one bit a pixel, FRACTIONAL of bytes."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = SegmentationStorage
    meta.MediaStorageSOPInstanceUID = "1.2.80.1"
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = SegmentationStorage, "1.2.80.1"
    dataset.Modality, dataset.SegmentationType, dataset.PatientID = "SEG", kind, "P1"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.70", "1.2.80"
    dataset.FrameOfReferenceUID, dataset.MaximumFractionalValue = FRAME_OF_REFERENCE, 200
    dataset.ReferencedSeriesSequence = [item(SeriesInstanceUID="1.2.71")]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows = dataset.Columns = SIDE
    bits = 1 if kind == "BINARY" else 8
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit, dataset.PixelRepresentation = bits - 1, 0
    segments = range(1, SEGMENTS + 1)
    dataset.SegmentSequence = [item(SegmentNumber=n, SegmentLabel=f"part {n:02}") for n in segments]
    measures = item(PixelSpacing=[1.0, 1.0], SliceThickness=1.0)
    orientation = item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    shared = item(PixelMeasuresSequence=[measures], PlaneOrientationSequence=[orientation])
    dataset.SharedFunctionalGroupsSequence = [shared]
    places = [(n, at) for n in segments for at in range(SLICES)]
    dataset.NumberOfFrames = len(places)
    dataset.PerFrameFunctionalGroupsSequence = [
        item(
            SegmentIdentificationSequence=[item(ReferencedSegmentNumber=n)],
            PlanePositionSequence=[item(ImagePositionPatient=[0.0, 0.0, float(at)])],
        )
        for n, at in places
    ]
    dataset.PixelData = _pixels(places, kind, dataset, syntax)
    dataset["PixelData"].VR = "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path)
    return dataset


def _pixels(places: list[tuple[int, int]], kind: str, dataset: Dataset, syntax: UID) -> bytes:
    if kind == "BINARY":
        bits = np.concatenate([is_inside(*place).reshape(-1) for place in places])
        packed = np.packbits(bits, bitorder="little").tobytes()
        return packed + b"\0" * (len(packed) % 2)
    frames = (is_inside(*place).astype(np.uint8) * 120 for place in places)
    if not syntax.is_encapsulated:
        native = b"".join(frame.tobytes() for frame in frames)
        return native + b"\0" * (len(native) % 2)
    facts = {
        "rows": SIDE, "columns": SIDE, "samples_per_pixel": 1, "number_of_frames": 1,
        "bits_allocated": 8, "bits_stored": 8, "pixel_representation": 0,
        "photometric_interpretation": "MONOCHROME2",
    }  # fmt: skip
    encoder = get_encoder(syntax)
    # GDCM, which would be tried first, aborts the process on these frames.
    plugin = "pydicom" if syntax == RLELossless else "pyjpegls"
    return encapsulate([encoder.encode(frame, encoding_plugin=plugin, **facts) for frame in frames])


@contextmanager
def traced() -> Iterator[list[int]]:
    """The most bytes that were allocated meanwhile, in a list of one."""
    most = [0]
    tracemalloc.start()
    try:
        yield most
        most[0] = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
