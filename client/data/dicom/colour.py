"""Colour as it is on the screen: 8 bits a channel, RGB.

YBR variants have become RGB while decoding. Sources: DICOM PS3.3 C.7.6.3.1.2 (photometric
interpretation), C.7.9 (palettes).
"""

import numpy as np
import numpy.typing as npt
from pydicom.pixels import apply_color_lut

from medfed.client.data.dicom.decoding import Pixels
from medfed.client.data.dicom.elements import number_of
from medfed.client.data.dicom.opening import parsing

Picture = npt.NDArray[np.uint8]


def is_coloured(pixels: Pixels) -> bool:
    """Whether the pixels are shown in colour."""
    return pixels.is_colour or pixels.photometric == "PALETTE COLOR"


def to_rgb(pixels: Pixels) -> Picture:
    """Return uint8 [F, H, W, 3]; a fourth channel is left out.

    Raises:
        FileProblem: A palette that cannot be applied.
    """
    values = pixels.values
    if pixels.is_colour:
        with parsing():
            stated = (number_of(pixels.header, name) for name in ("BitsStored", "BitsAllocated"))
            bits = int(next(filter(None, stated), 8))
        return _to_8_bits(values[..., :3], bits)
    with parsing():
        coloured = apply_color_lut(values, pixels.header)
        descriptor = pixels.header.RedPaletteColorLookupTableDescriptor
        bits = 8 * coloured.dtype.itemsize
        # Entries of 8 bits may be stated, and stored, as 16 with the value in the low byte.
        if bits == 16 and int(descriptor[2]) <= 8:
            bits = 8 if coloured.max(initial=0) <= 0xFF else 16
    return _to_8_bits(coloured[..., :3], bits)


def _to_8_bits(values: npt.NDArray[np.generic], bits: int) -> Picture:
    if bits == 8 and values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    scaled = values.astype(np.float64) * (255 / ((1 << bits) - 1))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
