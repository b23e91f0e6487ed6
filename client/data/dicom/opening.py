"""Parses a DICOM file without trusting it: bounded inflating, no preamble, no transfer syntax.

pydicom inflates a deflated data set whole before it looks at anything, so that is done here, with
a limit. Its warnings are facts about the file and are returned as such.
"""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO

from pydicom import config
from pydicom.dataset import FileDataset
from pydicom.filereader import read_dataset, read_partial
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.dicom.elements import uid_of
from medfed.client.data.dicom.pixel_size import check_limits, pixel_size

PIXEL_TAGS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
# Every header that is not an attack ends long before.
_MAX_META_BYTES = 1 << 20
_INFLATE_FIRST = 64 << 20
# Most headers are shorter.
_HEADER_BYTES = 64 << 10
_LONG_VRS = frozenset(b"OB OD OF OL OW OV SQ SV UC UN UR UT UV".split())


@dataclass(frozen=True)
class Opened:
    """A parsed file.

    Attributes:
        dataset: What was asked for of it.
        syntax: How it is encoded; guessed where the file does not say.
        pixel_tag: Tag of the pixel data, 0 if there are none.
        pixel_offset: Where they begin; None if that is not known.
        pixel_bytes: How many bytes of pixel data are there, at most; None if that is not known.
        notes: What the parser complained about.
    """

    dataset: FileDataset
    syntax: UID
    pixel_tag: int
    pixel_offset: int | None
    pixel_bytes: int | None
    notes: tuple[str, ...]


def open_dataset(
    file: BinaryIO, limits: ReadLimits, *, tags: Sequence[int], pixels: bool = False
) -> Opened:
    """Parse `file`, from its start, up to its pixels or with them.

    Args:
        file: Opened for reading.
        limits: What a deflated data set is held to.
        tags: Only these are read.
        pixels: Whether to read the pixel data too.

    Raises:
        FileProblem: It cannot be parsed, or decodes to more than the limits allow.
    """
    size = os.fstat(file.fileno()).st_size
    opened = None
    if size > _HEADER_BYTES:
        # From memory: pydicom asks for its place at every element, which is slow on files.
        with suppress(FileProblem):
            opened = _open(io.BytesIO(file.read(_HEADER_BYTES)), size, limits, tags)
    if opened is None or not opened.pixel_tag:
        file.seek(0)
        source = file if size > _HEADER_BYTES else io.BytesIO(file.read())
        opened = _open(source, size, limits, tags, pixels=pixels)
    if pixels and opened.pixel_offset is not None:
        _add_pixels(opened, file)
    return opened


def _open(
    source: BinaryIO,
    size: int,
    limits: ReadLimits,
    tags: Sequence[int],
    *,
    pixels: bool = False,
) -> Opened:
    """Parse up to the pixels, or with them if the data set is deflated."""
    seen: list[int] = []
    with parsing() as notes:
        syntax = transfer_syntax_of(source)
        source.seek(0)
        is_deflated = syntax == DeflatedExplicitVRLittleEndian

        def at_pixels(tag: int, vr: str | None, length: int) -> bool:
            if tag not in PIXEL_TAGS:
                return False
            seen.append(int(tag))
            return not (pixels and is_deflated)

        offset = None
        if is_deflated:
            dataset = _open_deflated(source, limits, at_pixels, [*tags, *PIXEL_TAGS])
        else:
            dataset = read_partial(source, at_pixels, force=True, specific_tags=list(tags))
            offset = source.tell() if seen else None
    known = uid_of(syntax) if syntax else _guessed(dataset)
    said = () if syntax else ("no transfer syntax is stated; it was told from the bytes",)
    left = None if offset is None else size - offset
    return Opened(dataset, known, seen[0] if seen else 0, offset, left, (*notes, *said))


def _add_pixels(opened: Opened, file: BinaryIO) -> None:
    """Read the pixel data element, and nothing behind it."""
    assert opened.pixel_offset is not None
    file.seek(opened.pixel_offset)
    is_implicit, is_little = opened.dataset.original_encoding
    with parsing():
        found = read_dataset(
            file,
            bool(is_implicit),
            bool(is_little),
            stop_when=lambda tag, vr, length: tag not in PIXEL_TAGS,
        )
        opened.dataset[opened.pixel_tag] = found.get_item(opened.pixel_tag)


@contextmanager
def parsing() -> Iterator[list[str]]:
    """Turn what pydicom raises into FileProblem, and what it warns of into a list."""
    notes: list[str] = []
    try:
        with warnings.catch_warnings(record=True) as caught, config.disable_value_validation():
            warnings.simplefilter("always")
            yield notes
        notes += dict.fromkeys(str(one.message).split("\n")[0] for one in caught)
    except FileProblem:
        raise
    # A parser of damaged files raises whatever comes first, AttributeError to ZeroDivisionError.
    except Exception as error:
        # What pydicom then advises is for programmers.
        said = str(error).partition(" Use force=")[0]
        reason = " ".join(said.split()).rstrip(".")[:200] or type(error).__name__
        raise FileProblem(
            f"Expected a sound DICOM data set, got a damaged one ({reason}). Export it again."
        ) from error


def transfer_syntax_of(file: BinaryIO) -> str:
    """Return the transfer syntax of the file meta information, or "" if it states none.

    Read by hand, because a deflated data set must not be handed to a parser.
    """
    head = file.read(4096)
    start = 132 if head[128:132] == b"DICM" else 0
    while True:
        found = _syntax_in(head, start)
        if found is not None:
            return found
        more = file.read(len(head))
        head += more
        if not more:
            return ""
        if len(head) > _MAX_META_BYTES:
            raise FileProblem(
                "Expected file meta information of some hundred bytes, got over 1 MB. The file is "
                "damaged: export it again."
            )


def _syntax_in(head: bytes, offset: int) -> str | None:
    """The syntax that `head` states, "" if none, None if more of the file is needed."""
    while offset + 12 <= len(head):
        group, element = struct.unpack_from("<HH", head, offset)
        if group != 0x0002:
            return ""
        vr = head[offset + 4 : offset + 6]
        if not (vr.isalpha() and vr.isupper()):
            (length,) = struct.unpack_from("<I", head, offset + 4)
            offset += 8
        elif vr in _LONG_VRS:
            (length,) = struct.unpack_from("<I", head, offset + 8)
            offset += 12
        else:
            (length,) = struct.unpack_from("<H", head, offset + 6)
            offset += 8
        if element == 0x0010 and offset + length <= len(head):
            return head[offset : offset + length].decode("ascii", "replace").strip(" \0")
        offset += length
    return None


def _guessed(dataset: FileDataset) -> UID:
    is_implicit, is_little = dataset.original_encoding
    if is_implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian


def _open_deflated(
    file: BinaryIO,
    limits: ReadLimits,
    at_pixels: Callable[[int, str | None, int], bool],
    tags: Sequence[int],
) -> FileDataset:
    """Parse a data set that is deflated as a whole (PS3.5 A.5)."""
    encoded = file.read()
    # Nothing is left of it but the file meta information, which is not deflated.
    start = _end_of_meta(encoded)
    meta = read_partial(io.BytesIO(encoded[:start]), force=True)
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    data = stream.decompress(encoded[start:], _INFLATE_FIRST)
    if stream.unconsumed_tail:
        data += _inflate_rest(stream, data, len(encoded) - start, limits)
    if not stream.eof:
        raise FileProblem(
            "Expected a whole data set, got one that is cut off. Export it again.",
            "cut off",
        )
    body = read_dataset(
        io.BytesIO(data),
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=at_pixels,
        specific_tags=list(tags),
    )
    dataset = FileDataset(
        "",
        body,
        file_meta=meta.file_meta,
        is_implicit_VR=False,
        is_little_endian=True,
    )
    dataset.set_original_encoding(False, True, body._character_set)
    return dataset


def _inflate_rest(
    stream: "zlib._Decompress", begun: bytes, encoded: int, limits: ReadLimits
) -> bytes:
    """Inflate what the header, which `begun` holds, promises; refuse what goes on after that."""
    found: list[int] = []

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        if tag in PIXEL_TAGS:
            found.append(int(tag))
        return bool(found)

    header = read_dataset(
        io.BytesIO(begun), is_implicit_VR=False, is_little_endian=True, stop_when=at_pixels
    )
    promised = 0
    if found:
        size = pixel_size(header, found[0])
        check_limits(size, encoded, limits)
        promised = size.native_bytes
    rest = stream.decompress(stream.unconsumed_tail, promised + _INFLATE_FIRST)
    if stream.unconsumed_tail:
        raise FileProblem(
            f"Expected {promised:,} bytes of pixels, got a data set that inflates to far more: it "
            "is damaged or an attack. Export it again.",
            "beyond the limits",
            "refused",
        )
    return rest


def _end_of_meta(encoded: bytes) -> int:
    offset = 132 if encoded[128:132] == b"DICM" else 0
    while encoded[offset : offset + 2] == b"\x02\0":
        long = encoded[offset + 4 : offset + 6] in _LONG_VRS
        form, place, skip = ("<I", 8, 12) if long else ("<H", 6, 8)
        (length,) = struct.unpack_from(form, encoded, offset + place)
        offset += skip + length
    return offset
