"""How many pixels a header promises, before any of them is read (DICOM PS3.3 C.7.6.3)."""

import math
from typing import NamedTuple

from pydicom.dataset import Dataset

from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.problems import FileProblem, limit_exceeded
from medfed.client.data.dicom.elements import number_of, text_of

_FLOAT_BITS = {0x7FE00008: 32, 0x7FE00009: 64}
_BITS = frozenset({1, 8, 16, 32, 64})


class PixelSize(NamedTuple):
    """Pixels as the header declares them."""

    rows: int
    columns: int
    samples: int
    frames: int
    bits: int
    subsampled: bool

    @property
    def values(self) -> int:
        """How many values they decode to."""
        return self.rows * self.columns * self.samples * self.frames

    @property
    def decoded_bytes(self) -> int:
        """What they take in memory."""
        return self.values * max(1, self.bits // 8)

    @property
    def native_bytes(self) -> int:
        """What they take in a file without compression."""
        if self.subsampled:
            # Two luma values share a pair of chroma values (PS3.3 C.7.6.3.1.2).
            return self.values * self.bits // 8 // 3 * 2
        return (self.values * self.bits + 7) // 8


def pixel_size(dataset: Dataset, pixel_tag: int) -> PixelSize:
    """Return what `dataset` says of its pixels.

    Args:
        dataset: A parsed header.
        pixel_tag: Which of the three pixel data elements it holds.

    Raises:
        FileProblem: An element is missing or impossible.
    """
    bits = _FLOAT_BITS.get(pixel_tag) or _number(dataset, "BitsAllocated")
    if bits not in _BITS:
        raise FileProblem(
            f"Expected BitsAllocated of 1, 8, 16, 32 or 64, got {bits}. Export the file again."
        )
    size = PixelSize(
        _number(dataset, "Rows"),
        _number(dataset, "Columns"),
        _number(dataset, "SamplesPerPixel", default=1),
        # Some write 0 for a single frame.
        max(1, _number(dataset, "NumberOfFrames", default=1)),
        bits,
        text_of(dataset, "PhotometricInterpretation") == "YBR_FULL_422",
    )
    if min(size) < 0 or size.values == 0 or size.samples not in (1, 3, 4):
        raise FileProblem(
            f"Expected pixels, got {size.rows} x {size.columns} of {size.samples} samples in "
            f"{size.frames} frames. Export the file again."
        )
    return size


def check_limits(size: PixelSize, encoded: int, limits: ReadLimits) -> None:
    """Refuse pixels beyond the limits.

    Args:
        size: What the header promises.
        encoded: Bytes that they are decoded from; 0 if that is not known.
        limits: The limits.

    Raises:
        FileProblem: They are exceeded.
    """
    refused = limits.against_pixels(size.values, size.frames, size.decoded_bytes, encoded)
    if refused:
        raise limit_exceeded(refused)


def _number(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    number = number_of(dataset, keyword)
    if number is not None and math.isfinite(number):
        return int(number)
    written = text_of(dataset, keyword)
    if written:
        raise FileProblem(
            f"Expected a whole number as {keyword}, got {written[:40]!r}. Export the file again."
        )
    if default is None:
        raise FileProblem(f"Expected {keyword} in the header, found none. Export the file again.")
    return default
