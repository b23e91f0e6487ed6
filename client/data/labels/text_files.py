"""Text of unknown encoding: which one it is, told by what decodes, and where it does not.

What is named in a data set file may lie anywhere; nothing but an ordinary file within the limits is
opened.
"""

import codecs
import io
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from medfed.client.data.archive.inventory import printable
from medfed.client.data.archive.limits import MEGA, ReadLimits
from medfed.client.data.archive.problems import FileProblem, limit_exceeded
from medfed.client.data.archive.sniffing import read_head

_CHUNK = 1 << 20
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_WITHOUT_MARK = ("utf-8", "cp1252")
_SPREADSHEETS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
_GZIP = b"\x1f\x8b"
# A report is some pages; what is longer is none.
_MAX_REPORT_BYTES = 4 * MEGA


class OpenedText(NamedTuple):
    """A text file that decodes.

    Attributes:
        stream: Its text, line ends as they are.
        encoding: What it is read as.
        note: What to know of that; empty if it is certain.
    """

    stream: io.TextIOWrapper
    encoding: str
    note: str


def open_text(path: Path, encoding: str, limits: ReadLimits) -> OpenedText:
    """Open the text at `path`; close the stream when done.

    Args:
        path: An ordinary file, no link.
        encoding: Its name, or "auto".
        limits: What its size is held to.

    Raises:
        FileProblem: Not there, no ordinary file, too large, a spreadsheet or another binary, or not
            of this encoding (of any that are tried): says the line.
    """
    file = open_plain(path)
    try:
        _check_kind(file, limits)
        chosen, note = _encoding_of(file, encoding)
        file.seek(0)
        return OpenedText(io.TextIOWrapper(file, encoding=chosen, newline=""), chosen, note)
    except BaseException:
        file.close()
        raise


def read_report(path: Path, encoding: str, limits: ReadLimits) -> str:
    """Return a report's text.

    Raises:
        FileProblem: As `open_text`; or more than 4 MB.
    """
    with suppress(OSError):
        size = path.lstat().st_size
        if size > _MAX_REPORT_BYTES:
            raise limit_exceeded(
                f"Expected a report of at most {_MAX_REPORT_BYTES // MEGA} MB, got "
                f"{size / MEGA:.0f} MB. Leave it out."
            )
    opened = open_text(path, encoding, limits)
    with opened.stream as stream:
        return stream.read().replace("\r\n", "\n").replace("\r", "\n")


def open_plain(path: Path) -> BinaryIO:
    """Open an ordinary file; no link, pipe or device.

    Raises:
        FileProblem: It is none, or cannot be opened.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FileProblem("Expected a file, found none. Mend its path.", "not there") from None
    except OSError as error:
        if path.is_symlink():
            raise FileProblem(
                "Expected a file, got a link. Name what it leads to.", "link", "refused"
            ) from None
        raise FileProblem(
            f"It cannot be opened: {error.strerror}. Let this user read it.", "cannot be opened"
        ) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise FileProblem("Expected a file, got a folder or a device. Mend its path.", "no file")
    return os.fdopen(handle, "rb")


def _check_kind(file: BinaryIO, limits: ReadLimits) -> None:
    refused = limits.against_size(os.fstat(file.fileno()).st_size)
    if refused:
        raise limit_exceeded(refused)
    head = read_head(file)
    # Never opened: what a spreadsheet unpacks to is not known before.
    if head.startswith(_SPREADSHEETS):
        raise FileProblem(
            "Expected text, got a spreadsheet or ZIP file. Export it as CSV (UTF-8), with ids as "
            "text.",
            "spreadsheet",
        )
    if head.startswith(_GZIP):
        raise FileProblem("Expected text, got a gzip archive. Unpack it.", "gzip archive")


def _encoding_of(file: BinaryIO, encoding: str) -> tuple[str, str]:
    """The encoding, and what to know of it."""
    head = file.read(4)
    if encoding != "auto":
        why = _why_not(file, encoding)
        if why:
            raise FileProblem(
                f"Expected text in {encoding}, got {why}. Correct `encoding`, or leave it out.",
                "wrong encoding",
            )
        return encoding, ""
    marked = next((name for mark, name in _MARKS if head.startswith(mark)), "")
    tried: list[str] = []
    for name in (marked,) if marked else _WITHOUT_MARK:
        why = _why_not(file, name)
        if not why:
            if not tried:
                return name, ""
            return name, (
                f"it is no UTF-8 ({tried[0]}) and is read as Windows-1252: look at its accents"
            )
        tried.append(why)
    raise FileProblem(
        f"Expected text in UTF-8, UTF-16 or Windows-1252, got {tried[0]}. Save it as UTF-8, or "
        'name its encoding, e.g. encoding = "shift_jis", "cp850" or "utf-16-le".',
        "unknown encoding",
    )


def _why_not(file: BinaryIO, encoding: str) -> str:
    """Why the file is not of this encoding, with the line; empty if it is."""
    file.seek(0)
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    lines, ended = 1, False
    while not ended:
        chunk = file.read(_CHUNK)
        ended = not chunk
        before = decoder.getstate()
        try:
            text = decoder.decode(chunk, final=ended)
        except UnicodeDecodeError as error:
            # Decode what is sound again, to count its lines.
            decoder.setstate(before)
            sound = decoder.decode(error.object[len(before[0]) : error.start])
            what = error.object[error.start : error.start + 1].hex()
            return f"the byte {what} in line {lines + _num_lines(sound)}"
        if "\0" in text:
            lines += _num_lines(text[: text.index("\0")])
            return f"a zero character in line {lines} (UTF-16 without its mark has them)"
        lines += _num_lines(text)
    return ""


def _num_lines(text: str) -> int:
    return text.count("\n") or text.count("\r")


def name_of(path: Path, folder: Path) -> str:
    """Return a label file's name as messages have it: below the data set's folder if it is."""
    return printable(path.relative_to(folder) if path.is_relative_to(folder) else path)
