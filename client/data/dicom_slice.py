"""Reads one grey DICOM image in the scale of its file, for public sets whose scale is known.

What a hospital's own archive holds is read through `medfed.client.data.archive`, which knows more
kinds of images than a published collection has.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.errors import InvalidDicomError

from medfed.common.errors import UnreadableImageError

# What pydicom raises on a damaged file, depending on where the damage is.
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    IndexError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    InvalidDicomError,
)
_MAX_PIXELS = 512_000_000


@dataclass(frozen=True, kw_only=True)
class GreyImage:
    """An image.

    Attributes:
        values: As stored, integers [H, W]; bright is high (MONOCHROME1 is turned over).
        bits: Bits of a value that are used.
    """

    values: npt.NDArray[np.integer]
    bits: int


def read_grey(path: Path) -> GreyImage:
    """Return the image at `path`.

    Raises:
        UnreadableImageError: No DICOM file, a damaged one, colour, or several frames.
    """
    try:
        # What pydicom warns of (odd values of tags, padding) changes no pixel here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path)
            if int(dataset.Rows) * int(dataset.Columns) > _MAX_PIXELS:
                raise ValueError(f"{dataset.Rows} x {dataset.Columns} pixels")
            values = dataset.pixel_array
            bits, photometric = int(dataset.BitsStored), str(dataset.PhotometricInterpretation)
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise UnreadableImageError(
            f"{path} cannot be read as DICOM ({reason}). Fetch it again, or leave it out."
        ) from None
    if values.ndim != 2 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise UnreadableImageError(
            f"{path}: expected one grey image, got {photometric} of shape {list(values.shape)}. "
            "Leave it out."
        )
    if photometric == "MONOCHROME1":
        values = values.max() - values
    return GreyImage(values=values, bits=bits)
