"""Reads an encoded frame's own size, which decoders allocate by, whatever the header says.

Sources: ITU-T T.81 B.2.2 (JPEG frame header), T.87 C.2.2 (JPEG-LS), T.800 A.5.1 (JPEG 2000 SIZ).
"""

import struct
from typing import NamedTuple

# Markers without a length: TEM, RST0 to RST7, SOI.
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
# Frame headers: all SOFs but DHT (C4), JPG (C8) and DAC (CC); and JPEG-LS' F7.
_FRAMES = (frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {0xF7}
_START_OF_SCAN = 0xDA


class FrameSize(NamedTuple):
    """What a codestream says of itself."""

    rows: int
    columns: int
    samples: int
    bits: int


def frame_size(frame: bytes) -> FrameSize | None:
    """Return the size that a JPEG, JPEG-LS or JPEG 2000 codestream declares; None for others."""
    if frame[:4] == b"\xff\x4f\xff\x51":
        return _siz(frame, 4)
    if frame[:8] == b"\0\0\0\x0cjP  ":
        start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
        return _siz(frame, start + 4) if start >= 0 else None
    if frame[:2] == b"\xff\xd8":
        return _sof(frame)
    return None


def _siz(frame: bytes, offset: int) -> FrameSize | None:
    if len(frame) < offset + 39:
        return None
    _, _, right, bottom, left, top = struct.unpack_from(">HHIIII", frame, offset)
    (components,) = struct.unpack_from(">H", frame, offset + 36)
    return FrameSize(bottom - top, right - left, components, (frame[offset + 38] & 0x7F) + 1)


def _sof(frame: bytes) -> FrameSize | None:
    offset = 2
    while offset + 4 <= len(frame):
        if frame[offset] != 0xFF:
            return None
        marker = frame[offset + 1]
        if marker == 0xFF or marker in _BARE:
            offset += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", frame, offset + 2)
        if marker in _FRAMES and offset + 10 <= len(frame):
            bits, rows, columns, components = struct.unpack_from(">BHHB", frame, offset + 4)
            return FrameSize(rows, columns, components, bits)
        if marker == _START_OF_SCAN:
            return None
        offset += 2 + length
    return None
