"""The few facts of a DICOM header that an inventory keeps, small enough for millions of files."""

import hashlib
from typing import BinaryIO, NamedTuple

from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import JPEGExtended12Bit

from medfed.client.data.archive.inventory import printable
from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.deidentification.identity import patient_identity
from medfed.client.data.dicom.codestream import frame_size
from medfed.client.data.dicom.elements import number_of, text_of
from medfed.client.data.dicom.frames import FrameHeader, frame_headers
from medfed.client.data.dicom.geometry import normal_of, stack_slices
from medfed.client.data.dicom.object_kinds import why_no_image, without_pixels
from medfed.client.data.dicom.opening import Opened, open_dataset, parsing
from medfed.client.data.dicom.pixel_size import PixelSize, check_limits, pixel_size
from medfed.client.data.dicom.syntaxes import can_decode, check_precision, undecodable

_KEYWORDS = [
    "SpecificCharacterSet",
    "DirectoryRecordSequence",
    "ImageType",
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "Manufacturer",
    "ManufacturerModelName",
    "PatientID",
    "IssuerOfPatientID",
    "SliceThickness",
    "EchoTime",
    "TriggerTime",
    "ImagerPixelSpacing",
    "DiffusionBValue",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "AcquisitionNumber",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "TemporalPositionIdentifier",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
_TAGS = [Tag(keyword) for keyword in _KEYWORDS]

# What tells repetitions of a position apart, in the order in which it is tried.
VARYING = (
    "EchoTime",
    "TemporalPositionIdentifier",
    "DiffusionBValue",
    "AcquisitionNumber",
    "TriggerTime",
    "ImageType",
)
_UID_BYTES = 12
_FRAME_HEAD_BYTES = 1 << 16


class Kin(NamedTuple):
    """What slices of one stack have in common; slices that differ in it are of different stacks."""

    patient: str
    study: str
    series: str
    modality: str
    scanner: str
    shape: tuple[int, ...]
    num_frames: int
    pixel_type: str
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]


class SliceFacts(NamedTuple):
    """One file.

    Attributes:
        path: Where it is.
        kin: What it shares with its stack.
        uid: Digest of its SOP instance UID; empty if it has none.
        position: Of its first pixel, mm; empty if it does not say.
        number: InstanceNumber, for want of positions.
        varying: Values of `VARYING`, as text.
        step_mm: Distance of frames, or thickness of a single slice; 0 if it does not say.
        is_stack: Whether its frames fill space evenly.
        notes: What is unusual.
    """

    path: str
    kin: Kin
    uid: bytes
    position: tuple[float, ...]
    number: int
    varying: tuple[str, ...]
    step_mm: float
    is_stack: bool
    notes: tuple[str, ...]


def read_slice_facts(
    path: str, file: BinaryIO, limits: ReadLimits, *, issuer: bool = False
) -> SliceFacts:
    """Return what the header of `file` says; its pixels are not read.

    Args:
        path: Where it is.
        file: Opened for reading.
        limits: What it is held to.
        issuer: Whether the issuer of the patient id is part of the identity.

    Raises:
        FileProblem: A sound object that is no picture; damaged, without pixels, cut off, beyond the
            limits, or of a transfer syntax that nothing here decodes.
    """
    opened = open_dataset(file, limits, tags=_TAGS)
    if opened.syntax == JPEGExtended12Bit and opened.pixel_offset is not None:
        file.seek(opened.pixel_offset)
        begun = file.read(_FRAME_HEAD_BYTES)
        check_precision(opened.syntax, frame_size(begun[max(0, begun.find(b"\xff\xd8\xff")) :]))
    with parsing() as complaints:
        patient = patient_identity(opened.dataset, issuer=issuer)
        facts = _facts(path, opened, limits, patient)
    return facts._replace(notes=(*opened.notes, *complaints, *facts.notes))


def _facts(path: str, opened: Opened, limits: ReadLimits, patient: str) -> SliceFacts:
    dataset = opened.dataset
    other = why_no_image(dataset)
    if other is not None:
        raise other
    if not opened.pixel_tag:
        raise without_pixels(dataset)
    size = pixel_size(dataset, opened.pixel_tag)
    _check_pixels_are_there(opened, size, limits)
    frame = FrameHeader(dataset)
    orientation = frame.numbers("ImageOrientationPatient", 6)
    step_mm, is_stack, notes = _frame_stack(dataset, size, orientation)
    uid = text_of(dataset, "SOPInstanceUID")
    return SliceFacts(
        path=path,
        kin=_kin(dataset, frame, size, orientation, patient),
        uid=hashlib.blake2b(uid.encode(), digest_size=_UID_BYTES).digest() if uid else b"",
        position=frame.numbers("ImagePositionPatient", 3),
        number=int(number_of(dataset, "InstanceNumber") or 0),
        varying=tuple(text_of(dataset, keyword) for keyword in VARYING),
        step_mm=step_mm,
        is_stack=is_stack,
        notes=notes,
    )


def _kin(
    dataset: Dataset,
    frame: FrameHeader,
    size: PixelSize,
    orientation: tuple[float, ...],
    patient: str,
) -> Kin:
    maker = f"{text_of(dataset, 'Manufacturer')} {text_of(dataset, 'ManufacturerModelName')}"
    stored = text_of(dataset, "BitsStored") or str(size.bits)
    sign = "signed" if text_of(dataset, "PixelRepresentation") == "1" else "unsigned"
    photometric = text_of(dataset, "PhotometricInterpretation")
    spacing = frame.numbers("PixelSpacing", 2) or frame.numbers("ImagerPixelSpacing", 2)
    return Kin(
        patient=patient,
        study=text_of(dataset, "StudyInstanceUID"),
        series=text_of(dataset, "SeriesInstanceUID"),
        modality=printable(text_of(dataset, "Modality")),
        scanner=printable(" ".join(maker.split())),
        shape=(size.rows, size.columns, *((size.samples,) if size.samples > 1 else ())),
        num_frames=size.frames,
        pixel_type=f"{stored} bits {sign} {'colour' if size.samples > 1 else photometric}",
        # Rounded: what scanners write differs in the last digits within a series.
        orientation=tuple(round(number, 3) + 0.0 for number in orientation),
        spacing=tuple(round(number, 4) for number in spacing),
    )


def _frame_stack(
    dataset: Dataset, size: PixelSize, orientation: tuple[float, ...]
) -> tuple[float, bool, tuple[str, ...]]:
    """Distance of frames or thickness; whether frames are a stack; what is wrong with it."""
    if size.frames == 1:
        thickness = FrameHeader(dataset).numbers("SliceThickness", 1)
        return (thickness[0] if thickness else 0.0), True, ()
    normal = normal_of(orientation)
    headers = list(frame_headers(dataset, size.frames))
    positions = [header.numbers("ImagePositionPatient", 3) for header in headers]
    if normal is None or len(positions) != size.frames or not all(positions):
        return 0.0, False, ()
    turned = {header.numbers("ImageOrientationPatient", 6) for header in headers}
    if max(abs(a - b) for one in turned for a, b in zip(one, orientation, strict=True)) > 1e-3:
        return 0.0, False, ("its frames are of several orientations",)
    stack = stack_slices(positions, normal)
    return stack.step_mm, stack.is_even, (stack.problem,) if stack.problem else ()


def _check_pixels_are_there(opened: Opened, size: PixelSize, limits: ReadLimits) -> None:
    left = opened.pixel_bytes
    if not can_decode(opened.syntax):
        raise undecodable(opened.syntax)
    if opened.syntax.is_encapsulated:
        check_limits(size, left or 0, limits)
        return
    check_limits(size, 0, limits)
    # Until now nothing is known of a deflated data set's length.
    before = 8 if opened.dataset.original_encoding[0] else 12
    if left is not None and left < size.native_bytes + before:
        raise FileProblem(
            f"Expected {size.native_bytes:,} bytes of pixels, got {max(0, left - before):,}: the "
            "file is cut off. Fetch it again.",
            "cut off",
        )
