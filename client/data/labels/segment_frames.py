"""The pixels of a DICOM segmentation, one frame at a time.

A segmentation of a hundred structures on hundreds of slices decodes to far more than an image may,
though most of it is empty and each frame is small: what is held to `max_megapixels` is a frame.

Shapes: H rows, W columns.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import ExplicitVRBigEndian

from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.problems import FileProblem, limit_exceeded
from medfed.client.data.dicom.decoding import check_frame, decoder_options, read_pixels
from medfed.client.data.dicom.opening import Opened, parsing
from medfed.client.data.dicom.pixel_size import PixelSize, check_limits, pixel_size
from medfed.client.data.dicom.syntaxes import can_decode, undecodable
from medfed.client.data.labels.headers import open_plain_header
from medfed.client.data.labels.text_files import open_plain

Frame = npt.NDArray[np.generic]

FRAME_KEYWORDS = (
    *("SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
)
_PIXEL_DATA = 0x7FE00010
_UNDEFINED = 0xFFFFFFFF


def check_frames(opened: Opened, limits: ReadLimits) -> PixelSize:
    """Return what a header, parsed for `FRAME_KEYWORDS`, promises, if its file can hold that.

    Raises:
        FileProblem: It cannot, or asks for more than the limits allow.
    """
    size = pixel_size(opened.dataset, opened.pixel_tag)
    if not can_decode(opened.syntax):
        raise undecodable(opened.syntax)
    if opened.pixel_tag != _PIXEL_DATA or size.samples != 1:
        raise FileProblem(
            f"Expected a segmentation of one whole number a pixel, got {size.samples} samples of "
            f"{size.bits} bits. Export it again."
        )
    if _is_read_whole(opened):
        check_limits(size, 0, limits)
        return size
    encoded = (opened.pixel_bytes or 0) if opened.syntax.is_encapsulated else 0
    # What all frames decode to is never in memory; what they are decoded from still tells a bomb.
    refused = limits.against_pixels(
        size.rows * size.columns, size.frames, size.decoded_bytes, encoded
    )
    if refused:
        raise limit_exceeded(refused)
    if not opened.syntax.is_encapsulated:
        left = (opened.pixel_bytes or 0) - _head_bytes(opened)
        if left < size.native_bytes:
            raise _cut_off(size, left)
    return size


def read_frames(path: Path, limits: ReadLimits) -> Iterator[Frame]:
    """Yield the pixels of each frame, [H, W], in the file's order.

    Raises:
        FileProblem: Damaged, cut off, changed meanwhile, with more or fewer frames than its header
            says, of a kind that cannot be decoded, or beyond the limits.
    """
    with open_plain(path) as file:
        before = os.fstat(file.fileno())
        opened = open_plain_header(file, FRAME_KEYWORDS, limits)
        with parsing():
            size = check_frames(opened, limits)
        if _is_read_whole(opened):
            yield from read_pixels(path, limits).values
        elif opened.syntax.is_encapsulated:
            yield from _encapsulated(file, opened, size)
        else:
            yield from _native(file, opened, size)
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise FileProblem(
            "It changed while it was read. Run this again when nothing writes there.", "changed"
        )


def _is_read_whole(opened: Opened) -> bool:
    """Deflated as a whole, or of an encoding that was retired before there were segmentations."""
    return opened.pixel_offset is None or opened.syntax == ExplicitVRBigEndian


def _head_bytes(opened: Opened) -> int:
    """Bytes of tag, representation and length before the pixels (PS3.5 7.1)."""
    return 8 if opened.dataset.original_encoding[0] else 12


def _go_to_pixels(file: BinaryIO, opened: Opened) -> int:
    """Go to the first byte of the pixels; return the length that they have."""
    assert opened.pixel_offset is not None
    file.seek(opened.pixel_offset)
    return int.from_bytes(file.read(_head_bytes(opened))[-4:], "little")


def _native(file: BinaryIO, opened: Opened, size: PixelSize) -> Iterator[Frame]:
    stated = _go_to_pixels(file, opened)
    _check_length(stated, size)
    start = file.tell()
    bits = size.rows * size.columns * size.bits
    for at in range(size.frames):
        # Frames of single bits follow one another without a gap (PS3.5 8.1.1).
        first, last = at * bits // 8, ((at + 1) * bits + 7) // 8
        file.seek(start + first)
        data = file.read(last - first)
        if len(data) < last - first:
            raise _cut_off(size, first + len(data))
        if size.bits > 1:
            yield _decoded(data, opened, size, at)
            continue
        flat = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        begin = at * bits % 8
        yield flat[begin : begin + bits].reshape(size.rows, size.columns)


def _check_length(stated: int, size: PixelSize) -> None:
    """Refuse pixels that are not those of the header's frames: all others would be displaced."""
    if stated < size.native_bytes:
        raise _cut_off(size, stated)
    of_a_frame = size.rows * size.columns * size.bits / 8
    # One byte pads to an even length. A whole byte for the rest of each frame's bits is wrong.
    padding = 1 if of_a_frame % 1 else max(1.0, of_a_frame - 1)
    if stated != _UNDEFINED and stated > size.native_bytes + padding:
        raise FileProblem(
            f"Expected {size.native_bytes:,} bytes of pixels for {size.frames:,} frames, as the "
            f"header says, got {stated:,}. Export it again.",
            "header and pixels disagree",
        )


def _encapsulated(file: BinaryIO, opened: Opened, size: PixelSize) -> Iterator[Frame]:
    options = decoder_options(opened, size)
    _go_to_pixels(file, opened)
    frames = generate_frames(
        file,
        number_of_frames=size.frames,
        extended_offsets=options.get("extended_offsets"),
    )
    at = 0
    while (encoded := _next(frames)) is not None:
        if at == size.frames:
            raise _other_count(size, f"more than {at:,}")
        with parsing():
            check_frame(opened, size, encoded, at + 1)
        # It is a reader of its own that goes on from here: what decodes does not move the file.
        yield _decoded(encapsulate([encoded], has_bot=False), opened, size, at)
        at += 1
    if at < size.frames:
        raise _other_count(size, f"{at:,}")


def _next(frames: Iterator[bytes]) -> bytes | None:
    with parsing():
        return next(frames, None)


def _decoded(data: bytes, opened: Opened, size: PixelSize, at: int) -> Frame:
    options = decoder_options(opened, size._replace(frames=1))
    options.pop("extended_offsets", None)
    try:
        with parsing():
            values, _ = get_decoder(opened.syntax).as_array(data, **options)
            return np.asarray(values).reshape(size.rows, size.columns)
    except FileProblem as problem:
        raise FileProblem(
            f"Expected frames of {opened.syntax.name} that can be decoded; frame {at + 1} is none: "
            f"{problem.__cause__ or problem}. Export the file again, uncompressed.",
            f"pixels of {opened.syntax.name}",
        ) from problem


def _cut_off(size: PixelSize, found: int) -> FileProblem:
    return FileProblem(
        f"Expected {size.native_bytes:,} bytes of pixels, got {max(0, found):,}: the file is cut "
        "off. Fetch it again.",
        "cut off",
    )


def _other_count(size: PixelSize, found: str) -> FileProblem:
    return FileProblem(
        f"Expected {size.frames:,} frames, as the header says, got {found}. Fetch it again.",
        "header and pixels disagree",
    )
