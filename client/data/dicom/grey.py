"""What turns stored values into grey: rescaling, lookup tables, windows, padding, inversion.

`GreyFacts` holds it as plain values, so that files with the same facts share one table of greys.

Sources: DICOM PS3.3 C.7.6.3 (pixels), C.7.5.1.1.2 (padding), C.11.1 (modality LUT), C.11.2 (VOI).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from medfed.client.data.dicom.elements import number_of, text_of
from medfed.client.data.dicom.frames import FrameHeader

Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]
Values = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


class VoiWindow(NamedTuple):
    """One window of a file, in the unit of the modality's values."""

    centre: float
    width: float
    function: Function


class Lut(NamedTuple):
    """A lookup table.

    Attributes:
        first: Value that the first entry is for.
        bits: Of an entry.
        entries: uint16, little endian, as bytes: hashable.
    """

    first: int
    bits: int
    entries: bytes

    def __call__(self, values: Values) -> Floats:
        """Return the entries for `values`; beyond the table, the first or last one."""
        table = np.frombuffer(self.entries, dtype="<u2").astype(np.float32)
        place = np.clip(np.rint(values).astype(np.int64) - self.first, 0, len(table) - 1)
        return table[place]


@dataclass(frozen=True)
class GreyFacts:
    """How the values of a frame become grey.

    Attributes:
        bits: In use of a stored value; 0 for floating point.
        is_signed: Of a stored value.
        is_inverted: Whether low values are bright (MONOCHROME1).
        slope: Of rescaling.
        intercept: Of rescaling.
        is_rescaled: Whether the file states the two.
        modality_lut: Instead of rescaling.
        padding: Lowest and highest stored value that is no image; None if there is none.
        windows: The file's windows; the first is the one to use.
        voi_lut: The file's VOI LUT, which goes before windows.
        unit: RescaleType, e.g. HU or US (unspecified), or empty.
    """

    bits: int
    is_signed: bool
    is_inverted: bool
    slope: float = 1.0
    intercept: float = 0.0
    is_rescaled: bool = False
    modality_lut: Lut | None = None
    padding: tuple[float, float] | None = None
    windows: tuple[VoiWindow, ...] = ()
    voi_lut: Lut | None = None
    unit: str = ""

    def modality_values(self, stored: Values) -> Floats:
        """Return values in the modality's unit, e.g. Hounsfield."""
        if self.modality_lut is not None:
            return self.modality_lut(stored)
        values = stored.astype(np.float32)
        if self.slope != 1.0 or self.intercept != 0.0:
            values = values * np.float32(self.slope) + np.float32(self.intercept)
        return values

    def is_padding(self, stored: Values) -> npt.NDArray[np.bool_]:
        """Return where there is no image."""
        if self.padding is None:
            return np.zeros(stored.shape, np.bool_)
        low, high = self.padding
        found: npt.NDArray[np.bool_] = (stored >= low) & (stored <= high)
        return found


def grey_facts(dataset: Dataset, frame: int, *, is_float: bool) -> GreyFacts:
    """Return what `dataset` says of how one frame becomes grey."""
    header = FrameHeader(dataset, frame)
    signed = not is_float and number_of(dataset, "PixelRepresentation") == 1
    bits = 0 if is_float else int(number_of(dataset, "BitsStored") or _allocated(dataset))
    slope, intercept = header.numbers("RescaleSlope", 1), header.numbers("RescaleIntercept", 1)
    if text_of(dataset, "Modality") == "RTDOSE" and "DoseGridScaling" in dataset:
        slope, intercept = header.numbers("DoseGridScaling", 1), (0.0,)
    # A slope of 0 would make every value the same: no scanner means it.
    rescaled = bool(slope and slope[0])
    lowest = -(1 << (bits - 1)) if signed else 0
    modality_lut = _lut(dataset, "ModalityLUTSequence", goes_below=signed)
    lowest_value = lowest * slope[0] + (intercept[0] if intercept else 0) if rescaled else lowest
    return GreyFacts(
        bits=bits,
        is_signed=signed,
        is_inverted=text_of(dataset, "PhotometricInterpretation") == "MONOCHROME1",
        slope=slope[0] if rescaled else 1.0,
        intercept=intercept[0] if rescaled and intercept else 0.0,
        is_rescaled=rescaled,
        modality_lut=modality_lut,
        padding=_padding(dataset, signed, is_float=is_float),
        windows=_windows(header, is_float=is_float),
        voi_lut=_lut(
            dataset, "VOILUTSequence", goes_below=lowest_value < 0 and modality_lut is None
        ),
        unit=header.text("RescaleType"),
    )


def _allocated(dataset: Dataset) -> float:
    return number_of(dataset, "BitsAllocated") or 16


def _windows(header: FrameHeader, *, is_float: bool) -> tuple[VoiWindow, ...]:
    said = header.text("VOILUTFunction")
    function: Function = said if said in ("LINEAR_EXACT", "SIGMOID") else "LINEAR"  # type: ignore[assignment]
    if is_float and function == "LINEAR":
        # Its half step is that of whole numbers: a window from 0 to 1 would be black and white.
        function = "LINEAR_EXACT"
    least = 1 if function == "LINEAR" else 0
    return tuple(
        VoiWindow(centre, width, function)
        for centre, width in zip(
            header.numbers("WindowCenter"), header.numbers("WindowWidth"), strict=False
        )
        # C.11.2.1.2: a LINEAR window is 1 wide at least, others wider than 0.
        if math.isfinite(centre) and math.isfinite(width) and width >= least and width > 0
    )


def _padding(dataset: Dataset, signed: bool, *, is_float: bool) -> tuple[float, float] | None:
    names = ("FloatPixelPaddingValue", "DoubleFloatPixelPaddingValue", "PixelPaddingValue")
    for name in names if is_float else names[2:]:
        value = number_of(dataset, name)
        if value is None:
            continue
        limit = number_of(dataset, name.replace("PaddingValue", "PaddingRangeLimit"))
        ends = [value, value if limit is None else limit]
        if signed:
            # Written as US where pixels are SS: the bits are meant (PS3.5 7.2, ambiguous VR).
            ends = [end - (1 << 16) if end >= 1 << 15 else end for end in ends]
        return min(ends), max(ends)
    return None


def _lut(dataset: Dataset, keyword: str, *, goes_below: bool) -> Lut | None:
    items = dataset.get(keyword)
    if not items or "LUTDescriptor" not in items[0] or "LUTData" not in items[0]:
        return None
    item = items[0]
    number, first, bits = (int(value) for value in item.LUTDescriptor)
    number = number % (1 << 16) or 1 << 16
    # Where values are signed, so is the first one, whatever representation it is written in.
    if goes_below and first >= 1 << 15:
        first -= 1 << 16
    elif not goes_below and first < 0:
        first += 1 << 16
    data = item.LUTData
    if isinstance(data, bytes):
        is_little = item.original_encoding[1] is not False
        narrow = len(data) < 2 * number
        table = np.frombuffer(data, dtype=np.uint8 if narrow else "<u2" if is_little else ">u2")
    else:
        table = np.asarray(data).astype(np.int64) & 0xFFFF
    if not table.size:
        return None
    # Some state 16 bits for entries that need fewer, and shine dark; some state fewer.
    bits = max(min(bits, 16), int(table.max(initial=1)).bit_length(), 1)
    return Lut(first, bits, table[:number].astype("<u2").tobytes())
