"""Single values of DICOM headers, read again where the inventory does not keep them."""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from pydicom.tag import Tag

from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.problems import FileProblem, limit_exceeded
from medfed.client.data.archive.sniffing import FileKind, read_head, sniff
from medfed.client.data.dicom.elements import text_of
from medfed.client.data.dicom.opening import Opened, open_dataset, parsing
from medfed.client.data.labels.text_files import open_plain


def open_header(path: Path, keywords: Sequence[str], limits: ReadLimits) -> Opened:
    """Parse `keywords` of the DICOM file at `path`; no pixels.

    Raises:
        FileProblem: It cannot be read as DICOM.
    """
    with open_plain(path) as file:
        return open_plain_header(file, keywords, limits)


def open_plain_header(file: BinaryIO, keywords: Sequence[str], limits: ReadLimits) -> Opened:
    """As `open_header`, of an open file, whose place is then anywhere."""
    size = file.seek(0, 2)
    file.seek(0)
    refused = limits.against_size(size)
    if refused:
        raise limit_exceeded(refused)
    kind = sniff(read_head(file)).kind
    if kind not in (FileKind.DICOM, FileKind.BARE_DICOM):
        raise FileProblem(f"Expected a DICOM file, got another ({kind}). Leave it out.")
    return open_dataset(file, limits, tags=[Tag(keyword) for keyword in keywords])


def header_text(path: Path, keyword: str, limits: ReadLimits) -> str:
    """Return one attribute as text; empty if it is absent or the file cannot be read."""
    try:
        opened = open_header(path, (keyword, "SpecificCharacterSet"), limits)
        with parsing():
            return text_of(opened.dataset, keyword)
    except FileProblem:
        return ""
