"""Tells what a file is by its first bytes, never by its name.

Sources: DICOM PS3.10 7.1 (preamble, DICM), PS3.5 7.1 (data elements); nifti1.h, nifti2.h; PNG 5.2;
JPEG (ITU-T T.81) B.1; TIFF 6.0 section 2.
"""

import struct
import zlib
from enum import StrEnum
from typing import BinaryIO, NamedTuple

HEAD_BYTES = 4096
UNKNOWN = "file of unknown kind"
NO_ADVICE = ("Nothing to do.", "Leave it out.")
_NIFTI_1, _NIFTI_2 = 348, 540
# Value representations that may start a data set (PS3.5 6.2): all are two capital letters.
_VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OW PN SH SL SQ SS ST TM UC UI UL UN US UT".split()
)
# Groups that a data set without file meta information may start with.
_FIRST_GROUPS = frozenset({0x0002, 0x0004, 0x0008, 0x0010})
_MAX_FIRST_LENGTH = 1 << 16


class FileKind(StrEnum):
    """What the bytes say."""

    DICOM = "dicom"
    BARE_DICOM = "bare dicom"
    NIFTI = "nifti"
    NIFTI_HEADER = "nifti header"
    ANALYZE = "analyze"
    MGH = "mgh"
    PNG = "PNG"
    JPEG = "JPEG"
    TIFF = "TIFF"
    EMPTY = "empty"
    OTHER = "other"


class Sniffed(NamedTuple):
    """What a file is, and in words what it is if it is nothing that can be read."""

    kind: FileKind
    what: str = ""
    advice: str = ""


_OTHERS = (
    (b"PK\x03\x04", "ZIP archive", "Unpack it."),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip archive", "Unpack it."),
    (b"Rar!", "RAR archive", "Unpack it."),
    (b"BZh", "bzip2 archive", "Unpack it."),
    (b"\xfd7zXZ\0", "xz archive", "Unpack it."),
    (b"\x28\xb5\x2f\xfd", "zstd archive", "Unpack it."),
    (b"%PDF", "PDF document", NO_ADVICE[1]),
    (b"NRRD", "NRRD volume", "Convert it to .nii.gz."),
    (b"ObjectType", "MetaImage header", "Convert it to .nii.gz."),
    (b"\x89HDF", "HDF5 or MINC file", "Convert it to .nii.gz."),
    (b"\0\0\0\x0cjP  ", "JPEG 2000 picture", "Convert it to PNG."),
    (b"\xff\x4f\xff\x51", "JPEG 2000 codestream", "Convert it to PNG."),
    (b"BM", "bitmap", "Convert it to PNG."),
    (b"GIF8", "GIF picture", "Convert it to PNG."),
    (b"\x93NUMPY", "NumPy array", "Convert it to PNG or .nii.gz."),
)


def sniff(head: bytes) -> Sniffed:
    """Return what a file is that starts with `head`, its first `HEAD_BYTES` bytes or all of it.

    A picture in a DICOM file's preamble (whole slide images) is a DICOM file.
    """
    if not head:
        return Sniffed(FileKind.EMPTY)
    if head[128:132] == b"DICM":
        return Sniffed(FileKind.DICOM)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return Sniffed(FileKind.PNG)
    if head.startswith(b"\xff\xd8\xff"):
        return Sniffed(FileKind.JPEG)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return Sniffed(FileKind.TIFF)
    if head.startswith(b"\x1f\x8b"):
        kind = _volume_kind(inflated_head(head))
        return Sniffed(kind) if kind else Sniffed(FileKind.OTHER, "gzip archive", "Unpack it.")
    kind = _volume_kind(head)
    if kind:
        return Sniffed(kind)
    if _is_bare_dicom(head):
        return Sniffed(FileKind.BARE_DICOM)
    return _other(head)


def read_head(file: BinaryIO) -> bytes:
    """Return the first bytes of a file, for `sniff`, and go back to its start."""
    head = file.read(HEAD_BYTES)
    file.seek(0)
    return head


def inflated_head(head: bytes, most: int = 1024) -> bytes:
    """Return the first bytes that a gzip file decodes to, whatever the size of the rest."""
    try:
        return zlib.decompressobj(31).decompress(head, most)
    except zlib.error:
        return b""


def _volume_kind(head: bytes) -> FileKind | None:
    if len(head) < _NIFTI_1:
        # An MGH volume has a header of 284 bytes and data besides: longer than this.
        return None
    for order in "<>":
        (size,) = struct.unpack_from(f"{order}i", head)
        if size == _NIFTI_1:
            magic = head[344:348]
            if magic == b"n+1\0":
                return FileKind.NIFTI
            return FileKind.NIFTI_HEADER if magic == b"ni1\0" else FileKind.ANALYZE
        if size == _NIFTI_2 and head[8:12] == b"\r\n\x1a\n":
            return {b"n+2\0": FileKind.NIFTI, b"ni2\0": FileKind.NIFTI_HEADER}.get(head[4:8])
    version, *sides, _, dtype = struct.unpack_from(">7i", head)
    if version == 1 and all(0 < side < 1 << 16 for side in sides[:3]) and dtype in range(11):
        return FileKind.MGH
    return None


def _is_bare_dicom(head: bytes) -> bool:
    """Whether a data set may start here: a low group, then a VR or a short length."""
    if len(head) < 16:
        return False
    little, big = struct.unpack_from("<H", head)[0], struct.unpack_from(">H", head)[0]
    if head[4:6] in _VRS:
        return little in _FIRST_GROUPS or big in _FIRST_GROUPS
    (element, length) = struct.unpack_from("<HI", head, 2)
    return little in _FIRST_GROUPS and element < 0x2000 and length < _MAX_FIRST_LENGTH


def _other(head: bytes) -> Sniffed:
    for magic, what, advice in _OTHERS:
        if head.startswith(magic):
            return Sniffed(FileKind.OTHER, what, advice)
    if b"\0" not in head and _is_text(head):
        return Sniffed(FileKind.OTHER, "text file", NO_ADVICE[0])
    return Sniffed(FileKind.OTHER, UNKNOWN, "Convert it to DICOM, NIfTI or PNG.")


def _is_text(head: bytes) -> bool:
    try:
        # The last character may be cut in half.
        text = head.decode("utf-8", errors="strict" if len(head) < HEAD_BYTES else "ignore")
    except UnicodeDecodeError:
        return False
    return sum(sign.isprintable() or sign.isspace() for sign in text) > 0.95 * len(text)
