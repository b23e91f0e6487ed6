"""Looks at one file: facts for the inventory, or why it gives no image."""

import os
import stat
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from medfed.client.data.archive.inventory import Category, Unusable, printable
from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.picture_files import picture_facts
from medfed.client.data.archive.problems import FileProblem, limit_exceeded
from medfed.client.data.archive.sniffing import NO_ADVICE, UNKNOWN, FileKind, read_head, sniff
from medfed.client.data.archive.volume_files import (
    header_alone,
    image_of_pair,
    volume_facts,
)
from medfed.client.data.dicom.header_facts import SliceFacts, read_slice_facts
from medfed.common.errors import UnreadableImageError


class OtherFacts(NamedTuple):
    """A NIfTI volume or a picture.

    Attributes:
        path: Where it is.
        kind: What reads it.
        modality: The format.
        shape: As `Series.shape`.
        spacing_mm: None if the file does not say.
        notes: What is unusual.
        voxels: The other file of a NIfTI pair, or empty.
    """

    path: str
    kind: Literal["nifti", "picture"]
    modality: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None
    notes: tuple[str, ...]
    voxels: str = ""


Facts = SliceFacts | OtherFacts | Unusable

_VOLUMES = (FileKind.NIFTI, FileKind.NIFTI_HEADER, FileKind.ANALYZE, FileKind.MGH)
_PICTURES = (FileKind.PNG, FileKind.JPEG, FileKind.TIFF)


def look_at(path: str, limits: ReadLimits, *, issuer: bool = False) -> Facts:
    """Return what a file is. Nothing that it holds, or does meanwhile, makes this raise.

    Args:
        path: The file.
        limits: What it is held to.
        issuer: Whether the issuer of a patient id is part of the identity.
    """
    try:
        with os.fdopen(_open(path), "rb") as file:
            return _look(path, file, limits, issuer=issuer)
    except FileProblem as problem:
        return problem.as_unusable(path)
    except UnreadableImageError as error:
        # Says by itself which file it is about.
        return Unusable(printable(path), str(error), "unreadable", "volume that cannot be used")
    except FileNotFoundError:
        return _vanished(path)
    except OSError as error:
        name = printable(path)
        reason = f"{name} cannot be read: {error.strerror or error}. Let this user read it."
        return Unusable(name, reason, "unreadable", "cannot be opened")


def _open(path: str) -> int:
    # What was a file when the folder was listed may have been exchanged for a link or a pipe.
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _look(path: str, file: BinaryIO, limits: ReadLimits, *, issuer: bool) -> Facts:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise FileProblem("It is no ordinary file any more. Run this again.", "changed")
    refused = limits.against_size(status.st_size)
    if refused:
        raise limit_exceeded(refused)
    head = read_head(file)
    kind, what, advice = sniff(head)
    if kind in (FileKind.DICOM, FileKind.BARE_DICOM):
        return _dicom(path, file, kind, limits, issuer=issuer)
    if kind in _VOLUMES:
        return _volume(path, kind, head, status.st_size, limits)
    if kind in _PICTURES:
        shape, notes = picture_facts(Path(path), limits)
        return OtherFacts(path, "picture", str(kind), shape, None, notes)
    if kind is FileKind.EMPTY:
        raise FileProblem("Expected an image, got an empty file. Fetch it again.", "empty file")
    # An archive or a picture of another format may well hold what is looked for.
    category: Category = "not_an_image" if advice in NO_ADVICE else "unreadable"
    raise FileProblem(f"Expected an image, got a {what}. {advice}", what, category)


def _dicom(
    path: str, file: BinaryIO, kind: FileKind, limits: ReadLimits, *, issuer: bool
) -> SliceFacts:
    try:
        facts = read_slice_facts(path, file, limits, issuer=issuer)
    except FileProblem as problem:
        if kind is FileKind.BARE_DICOM and problem.what == "damaged":
            raise FileProblem(
                f"It is of no known kind; read as DICOM without preamble it is damaged: {problem}",
                UNKNOWN,
            ) from None
        raise
    if kind is FileKind.BARE_DICOM:
        return facts._replace(notes=("it has no DICOM preamble", *facts.notes))
    return facts


def _volume(path: str, kind: FileKind, head: bytes, size: int, limits: ReadLimits) -> OtherFacts:
    voxels = ""
    if kind is FileKind.NIFTI_HEADER:
        image = image_of_pair(Path(path))
        if image is None:
            raise header_alone()
        voxels, size = str(image), image.stat().st_size
    shape, spacing, notes = volume_facts(Path(path), kind, head, size, limits)
    return OtherFacts(path, "nifti", "NIfTI", shape, spacing, notes, voxels)


def _vanished(path: str) -> Unusable:
    name = printable(path)
    reason = f"{name} vanished while the folder was read. Run this again when nothing writes there."
    return Unusable(name, reason, "unreadable", "vanished")
