"""Decodes a DICOM file's pixels, after its header has been held to the limits.

Shapes: F frames, H rows, W columns.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder
from pydicom.tag import Tag

from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.problems import FileProblem, limit_exceeded
from medfed.client.data.archive.sniffing import FileKind, read_head, sniff
from medfed.client.data.dicom.codestream import frame_size
from medfed.client.data.dicom.elements import number_of, text_of
from medfed.client.data.dicom.object_kinds import why_no_image, without_pixels
from medfed.client.data.dicom.opening import Opened, open_dataset, parsing
from medfed.client.data.dicom.pixel_size import PixelSize, check_limits, pixel_size
from medfed.client.data.dicom.syntaxes import can_decode, check_precision, undecodable

# What decoding, grey, colour and geometry need: reading more would cost as much as decoding.
_KEYWORDS = (
    *("SpecificCharacterSet", "SOPClassUID", "Modality", "DirectoryRecordSequence"),
    *("SliceThickness", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames"),
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "FloatPixelPaddingValue"),
    *("DoubleFloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
    *("DoubleFloatPixelPaddingRangeLimit", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("RescaleIntercept", "RescaleSlope", "RescaleType", "ModalityLUTSequence"),
    *("VOILUTSequence", "DoseGridScaling", "PixelDataProviderURL"),
    *("RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor"),
    *("BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData"),
    *("GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData"),
    *("AlphaPaletteColorLookupTableDescriptor", "AlphaPaletteColorLookupTableData"),
    *("SegmentedRedPaletteColorLookupTableData", "SegmentedGreenPaletteColorLookupTableData"),
    *("SegmentedBluePaletteColorLookupTableData", "SegmentedAlphaPaletteColorLookupTableData"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
_TAGS = [Tag(keyword) for keyword in _KEYWORDS]
_WHOLE_NUMBERS = {
    "bits_stored": "BitsStored",
    "pixel_representation": "PixelRepresentation",
    "planar_configuration": "PlanarConfiguration",
}


@dataclass(frozen=True)
class Pixels:
    """Decoded pixels, before anything makes them grey.

    Attributes:
        values: [F, H, W] or [F, H, W, 3]: stored values as the header types them, unused bits
            cleared; colour is RGB, except for palettes, whose indices are [F, H, W].
        photometric: PhotometricInterpretation of `values`: YBR has become RGB.
        header: What the file says that decoding, display and geometry need; no pixels.
        notes: What was unusual.
    """

    values: npt.NDArray[np.generic]
    photometric: str
    header: Dataset
    notes: tuple[str, ...]

    @property
    def is_colour(self) -> bool:
        """Whether a pixel has three values."""
        return self.values.ndim == 4

    @property
    def is_float(self) -> bool:
        """Whether values are floating point (PS3.3 C.7.6.24 and 25)."""
        return self.values.dtype.kind == "f"


def read_pixels(path: Path, limits: ReadLimits) -> Pixels:
    """Return the pixels of the DICOM file at `path`.

    Raises:
        UnreadableImageError: Damaged, cut off, changed meanwhile, of a kind that cannot be decoded,
            or beyond the limits: then no memory was taken for it.
    """
    try:
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            refused = limits.against_size(before.st_size)
            if refused:
                raise limit_exceeded(refused)
            kind = sniff(read_head(file)).kind
            if kind not in (FileKind.DICOM, FileKind.BARE_DICOM):
                raise FileProblem(f"Expected a DICOM file, got another ({kind}). Leave it out.")
            opened = open_dataset(file, limits, tags=_TAGS, pixels=True)
            pixels = _decode(opened, limits)
            after = os.fstat(file.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise FileProblem(
                "It changed while it was read. Run this again when nothing writes there.", "changed"
            )
    except FileProblem as problem:
        raise problem.of(path) from problem.__cause__
    except OSError as error:
        raise FileProblem(
            f"It cannot be read: {error.strerror or error}. Fetch it again, or let this user read "
            "it.",
            "cannot be opened",
        ).of(path) from None
    return pixels


def _decode(opened: Opened, limits: ReadLimits) -> Pixels:
    dataset, syntax = opened.dataset, opened.syntax
    with parsing() as complaints:
        if not opened.pixel_tag:
            raise why_no_image(dataset) or without_pixels(dataset)
        if not can_decode(syntax):
            raise undecodable(syntax)
        size = pixel_size(dataset, opened.pixel_tag)
        data = dataset.get_item(opened.pixel_tag).value or b""
        if syntax.is_encapsulated:
            check_limits(size, len(data), limits)
            _check_frames(opened, size, data)
        else:
            check_limits(size, 0, limits)
            if len(data) < size.native_bytes:
                raise FileProblem(
                    f"Expected {size.native_bytes:,} bytes of pixels, got {len(data):,}: the file "
                    "is cut off. Fetch it again.",
                    "cut off",
                )
        values, photometric = _decoded(opened, size, data)
    del dataset[opened.pixel_tag]
    return Pixels(values, photometric, dataset, (*opened.notes, *complaints))


def _decoded(opened: Opened, size: PixelSize, data: bytes) -> tuple[npt.NDArray[np.generic], str]:
    try:
        values, facts = get_decoder(opened.syntax).as_array(data, **decoder_options(opened, size))
    # Each decoder has errors of its own.
    except Exception as error:
        why = " ".join(str(error).split())[:240].rstrip(".:") or type(error).__name__
        raise FileProblem(
            f"Expected pixels of {opened.syntax.name} that can be decoded, got none: {why}. Export "
            "the file again, uncompressed.",
            f"pixels of {opened.syntax.name}",
        ) from error
    samples = (size.samples,) if size.samples > 1 else ()
    expected = (size.frames, size.rows, size.columns, *samples)
    if values.size != np.prod(expected):
        raise FileProblem(
            f"Expected pixels of shape {list(expected)}, got {list(values.shape)}. Export it again."
        )
    return values.reshape(expected), str(facts["photometric_interpretation"])


def decoder_options(opened: Opened, size: PixelSize) -> dict[str, Any]:
    """Return what a decoder is to know, so that it need not turn the whole header into objects."""
    dataset = opened.dataset
    # Not there if only the header was parsed.
    element = dataset.get_item(opened.pixel_tag)
    options: dict[str, Any] = {
        "allow_excess_frames": False,
        "rows": size.rows,
        "columns": size.columns,
        "samples_per_pixel": size.samples,
        "number_of_frames": size.frames,
        "photometric_interpretation": text_of(dataset, "PhotometricInterpretation"),
        "pixel_keyword": keyword_for_tag(opened.pixel_tag),
        # Big-endian words are swapped only if they are words.
        "pixel_vr": (element.VR if element else None) or "OW",
        "bits_allocated": size.bits,
    }
    for option, keyword in _WHOLE_NUMBERS.items():
        number = number_of(dataset, keyword)
        if number is not None:
            options[option] = int(number)
    if "ExtendedOffsetTable" in dataset and "ExtendedOffsetTableLengths" in dataset:
        options["extended_offsets"] = (
            dataset.ExtendedOffsetTable,
            dataset.ExtendedOffsetTableLengths,
        )
    return options


def _check_frames(opened: Opened, size: PixelSize, data: bytes) -> None:
    for number, frame in enumerate(generate_frames(data, number_of_frames=size.frames), start=1):
        check_frame(opened, size, frame, number)


def check_frame(opened: Opened, size: PixelSize, frame: bytes, number: int) -> None:
    """Hold what a frame says of itself to what the header says: decoders go by the frame.

    Args:
        opened: The file.
        size: What its header says.
        frame: Encoded.
        number: From 1.

    Raises:
        FileProblem: They disagree, or nothing decodes the frame's precision.
    """
    own = frame_size(frame)
    if own is None:
        return
    if (own.rows, own.columns) != (size.rows, size.columns) or own.samples != size.samples:
        raise FileProblem(
            f"Expected a picture of {size.rows} x {size.columns} and {size.samples} sample(s) "
            f"a pixel, as the header says; frame {number} holds one of {own.rows} x "
            f"{own.columns} and {own.samples}. Export the file again.",
            "header and pixels disagree",
        )
    check_precision(opened.syntax, own)
