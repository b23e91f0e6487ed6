"""NIfTI volumes of an archive: held to the limits by their header before nibabel takes memory."""

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medfed.client.data.archive.limits import MEGA, ReadLimits
from medfed.client.data.archive.problems import FileProblem, limit_exceeded
from medfed.client.data.archive.sniffing import HEAD_BYTES, FileKind, inflated_head, sniff
from medfed.client.data.nifti import read_geometry, read_volume

_GZIP = b"\x1f\x8b"
# Header extensions end before the voxels; what is longer than this is no header.
_MAX_OFFSET = 64 << 20


class VolumeHeader(NamedTuple):
    """What a NIfTI header promises.

    Attributes:
        shape: Sides, without those of 1 behind the third.
        bits: Of a voxel.
        offset: Where the voxels begin.
    """

    shape: tuple[int, ...]
    bits: int
    offset: int

    @property
    def num_bytes(self) -> int:
        """What the voxels take."""
        return int(np.prod(self.shape, dtype=object)) * self.bits // 8


def volume_facts(
    path: Path, kind: FileKind, head: bytes, size: int, limits: ReadLimits
) -> tuple[tuple[int, ...], tuple[float, ...], tuple[str, ...]]:
    """Return shape and spacing after turning (x, y, z), and notes, from the header alone.

    Args:
        path: The file; of a pair, its header.
        kind: What its first bytes say.
        head: They.
        size: Bytes of the file; of a pair, of the file with the voxels.
        limits: The limits.

    Raises:
        UnreadableImageError: No volume that can be read, or one beyond the limits.
    """
    _refuse_others(kind)
    header = _checked(head, size, limits, is_pair=kind is FileKind.NIFTI_HEADER)
    geometry = read_geometry(path)
    more = tuple(side for side in header.shape[3:] if side > 1)
    notes = (f"it holds {more[0]} volumes",) if more else ()
    return (*geometry.shape, *more), geometry.spacing_mm, notes


def open_volume(path: Path, limits: ReadLimits) -> npt.NDArray[np.float32]:
    """Return the values of a NIfTI file, [D, H, W] or [D, H, W, C], turned to x, y, z (RAS).

    Raises:
        UnreadableImageError: No volume that can be read, or one beyond the limits.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        kind = sniff(head).kind
    if kind is not FileKind.NIFTI and kind is not FileKind.NIFTI_HEADER:
        _refuse_others(kind)
        raise FileProblem(f"Expected a NIfTI volume, got {kind}. Scan the folder again.")
    is_pair = kind is FileKind.NIFTI_HEADER
    voxels = image_of_pair(path) if is_pair else path
    if voxels is None:
        raise header_alone()
    _checked(head, voxels.stat().st_size, limits, is_pair=is_pair)
    return read_volume(path)


def image_of_pair(header: Path) -> Path | None:
    """Return the file with the voxels of `header`, x.img of x.hdr, None if it is not there."""
    names = [".img", ".img.gz", ".IMG"]
    stem = header.name.removesuffix(".gz")
    stem = stem[: -len(".hdr")] if stem.lower().endswith(".hdr") else stem
    found = (header.with_name(stem + name) for name in names)
    return next((path for path in found if path.is_file() and not path.is_symlink()), None)


def header_alone() -> FileProblem:
    """Return the problem of a header whose image is missing."""
    return FileProblem(
        "Expected a file with the voxels (.img) beside this header, found none. Place it there.",
        "NIfTI header without its .img",
    )


def _refuse_others(kind: FileKind) -> None:
    if kind is FileKind.ANALYZE:
        raise FileProblem(
            "Expected NIfTI, got Analyze 7.5, which does not say what is left and right. Convert "
            "it to .nii.gz with the software that made it.",
            "Analyze 7.5 volume",
        )
    if kind is FileKind.MGH:
        raise FileProblem(
            "Expected NIfTI, got a FreeSurfer volume. Convert it with mri_convert to .nii.gz.",
            "MGH volume",
        )


def _checked(head: bytes, size: int, limits: ReadLimits, *, is_pair: bool) -> VolumeHeader:
    """The header, if the voxels are within the limits and there."""
    is_gzip = head.startswith(_GZIP)
    header = _parse(inflated_head(head) if is_gzip else head)
    refused = limits.against_pixels(
        int(np.prod(header.shape, dtype=object)), 1, header.num_bytes, size
    )
    if refused:
        raise limit_exceeded(refused)
    if header.offset > _MAX_OFFSET:
        raise limit_exceeded(
            f"Expected voxels within the first {_MAX_OFFSET // MEGA} MB, got them at byte "
            f"{header.offset:,}. The header is damaged: export the file again."
        )
    # Of a pair it is the image, whose compression is not known here, that is too short.
    if not is_gzip and not is_pair and size < header.offset + header.num_bytes:
        raise FileProblem(
            f"Expected {header.num_bytes:,} bytes of voxels, got "
            f"{max(0, size - header.offset):,}: the file is cut off. Fetch it again.",
            "cut off",
        )
    return header


def _parse(head: bytes) -> VolumeHeader:
    order = "<" if struct.unpack_from("<i", head)[0] in (348, 540) else ">"
    if struct.unpack_from(f"{order}i", head)[0] == 348:
        sides = struct.unpack_from(f"{order}8h", head, 40)
        (bits,) = struct.unpack_from(f"{order}h", head, 72)
        (offset,) = struct.unpack_from(f"{order}f", head, 108)
    else:
        sides = struct.unpack_from(f"{order}8q", head, 16)
        (bits,) = struct.unpack_from(f"{order}h", head, 14)
        (offset,) = struct.unpack_from(f"{order}q", head, 168)
    number, *shape = sides
    if not 1 <= number <= 7 or min(shape[:number]) < 1 or not 0 < bits <= 256:
        raise FileProblem(
            f"Expected a volume of 3 axes, or 4 with channels, got {number} of sides "
            f"{list(shape)}. Export the file again."
        )
    shape = shape[:number]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if not -1 < offset < float("inf"):
        raise FileProblem("Expected a place of the voxels in the header, got none.")
    return VolumeHeader(tuple(shape), bits, int(offset))
