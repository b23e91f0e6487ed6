"""Reads one grey DICOM image in the scale of its file, for public sets whose scale is known.

`medfed.client.data.dicom.display` shows an image as a radiologist sees it; here phases of one
examination keep the scale that they share, and film the range that it was digitised to.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.dicom.decoding import read_pixels
from medfed.common.errors import UnreadableImageError


@dataclass(frozen=True, kw_only=True)
class GreyImage:
    """An image.

    Attributes:
        values: [H, W], after slope and intercept of the file; bright is high.
        bits: Bits of a stored value that are used.
    """

    values: npt.NDArray[np.float32]
    bits: int


def read_grey(path: Path) -> GreyImage:
    """Return the image at `path`.

    Raises:
        UnreadableImageError: No DICOM file, a damaged one, colour, or several frames.
    """
    pixels = read_pixels(path, ReadLimits())
    if pixels.values.shape[0] != 1 or pixels.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise UnreadableImageError(
            f"{path}: expected one grey image, got {pixels.photometric} of shape "
            f"{list(pixels.values.shape)}. Leave it out."
        )
    header = pixels.header
    try:
        bits = int(header.get("BitsStored"))
        slope = float(header.get("RescaleSlope") or 1)
        intercept = float(header.get("RescaleIntercept") or 0)
    except (TypeError, ValueError) as error:
        raise UnreadableImageError(
            f"{path}: expected numbers as BitsStored, RescaleSlope and RescaleIntercept, got "
            f"others ({error}). Fetch it again, or leave it out."
        ) from None
    values = pixels.values[0].astype(np.float32)
    if pixels.photometric == "MONOCHROME1":
        values = np.float32(2**bits - 1) - values
    return GreyImage(values=values * np.float32(slope) + np.float32(intercept), bits=bits)
