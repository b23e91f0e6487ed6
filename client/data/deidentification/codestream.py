"""Comments inside compressed pixels: JPEG COM and APPn segments (Exif), JPEG 2000 COM.

A decoder skips them, so they are blanked in place: no length and no pixel changes.

References: ITU-T T.81 B.1.1.4 (markers), T.800 A.9.2 (COM).
"""

from collections.abc import Callable

_COM, _SOS = 0xFE, 0xDA
# JFIF, SPIFF (JPEG-LS) and Adobe segments say how colours are coded.
_KEPT_APPLICATIONS = frozenset({0xE0, 0xE8, 0xEE})
_J2K_COM, _J2K_SOT = 0x64, 0x90


def blanked_comments(frame: bytes) -> bytes:
    """Return one compressed frame with its comments as spaces; other streams as they are."""
    if frame[:3] == b"\xff\xd8\xff":
        return _blank(frame, 2, _is_jpeg_comment, _SOS, 2)
    start = frame.find(b"\xff\x4f\xff\x51")
    if 0 <= start < 200:
        return _blank(frame, start + 2, lambda marker: marker == _J2K_COM, _J2K_SOT, 4)
    return frame


def _is_jpeg_comment(marker: int) -> bool:
    return marker == _COM or (0xE0 <= marker <= 0xEF and marker not in _KEPT_APPLICATIONS)


def _blank(
    frame: bytes, position: int, is_comment: Callable[[int], bool], last: int, skip: int
) -> bytes:
    """Blank the comments of a main header that begins at `position` and ends before `last`.

    `skip` bytes after a comment's marker say its length and its kind.
    """
    blanked = bytearray(frame)
    while position + 4 <= len(frame) and frame[position] == 0xFF:
        marker = frame[position + 1]
        if marker == last:
            break
        length = int.from_bytes(frame[position + 2 : position + 4], "big")
        if is_comment(marker):
            start, end = position + 2 + skip, min(position + 2 + length, len(frame))
            blanked[start:end] = b" " * max(end - start, 0)
        position += 2 + max(length, 2)
    return bytes(blanked)


def blanked_fragments(value: bytes) -> bytes:
    """Return encapsulated pixel data (PS3.5 A.4) with the comments of every fragment blanked."""
    blanked = bytearray(value)
    position = 0
    while position + 8 <= len(value) and value[position : position + 4] == b"\xfe\xff\x00\xe0":
        length = int.from_bytes(value[position + 4 : position + 8], "little")
        start, end = position + 8, position + 8 + length
        blanked[start:end] = blanked_comments(value[start:end])
        position = end
    return bytes(blanked)
