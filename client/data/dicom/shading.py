"""From values to grey, 0 to 255: by a window, a lookup table or a range.

A `Shading` is chosen once for all slices of a volume, so that a tissue has one grey in all of them.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.dicom.grey import Floats, GreyFacts, Lut, Values, VoiWindow
from medfed.client.data.dicom.presets import FALLBACKS, OTHERS, PRESETS, Percentiles, Window

Picture = npt.NDArray[np.uint8]
Extent = Callable[[Percentiles], tuple[float, float]]

_WHITE = 255.0
# A table of all 16-bit values takes as long as shading so many pixels.
_WORTH_A_TABLE, _WORTH_A_SMALL_TABLE = 1 << 16, 1 << 10
_PIECE = 1 << 17


@dataclass(frozen=True)
class Shading:
    """One of three ways.

    Attributes:
        window: PS3.3 C.11.2.1.2.
        lut: PS3.3 C.11.2.1.1.
        ends: Values that are black and white.
    """

    window: VoiWindow | None = None
    lut: Lut | None = None
    ends: tuple[float, float] = (0.0, _WHITE)

    def __call__(self, values: Floats) -> Floats:
        """Return 0..255 for values in the modality's unit."""
        if self.lut is not None:
            grey: Floats = self.lut(values) * np.float32(_WHITE / ((1 << self.lut.bits) - 1))
            return grey
        if self.window is not None:
            return _windowed(values, self.window)
        low, high = self.ends
        if not high > low:
            return np.zeros_like(values)
        return _clipped((values - np.float32(low)) * np.float32(_WHITE / (high - low)))


def choose_shading(facts: GreyFacts, modality: str, window: Window, extent: Extent) -> Shading:
    """Return how values become grey.

    Args:
        facts: Of the frame, or of a volume's middle slice.
        modality: DICOM's code.
        window: "auto": the file's VOI LUT, else its first window, else what `FALLBACKS` says.
            "percentiles": the image's own values, whatever the file says.
        extent: Returns two percentiles of the modality's values, padding left out.

    Raises:
        FileProblem: A preset in Hounsfield units for an image that has none.
    """
    if window == "percentiles":
        own = FALLBACKS.get(modality, OTHERS)
        return Shading(ends=extent(own if isinstance(own, Percentiles) else OTHERS))
    if window != "auto":
        if isinstance(window, str):
            _check_hounsfield(facts, modality, window)
            window = PRESETS[window]
        centre, width = window
        return Shading(VoiWindow(centre, max(1.0, width), "LINEAR"))
    if facts.voi_lut is not None:
        return Shading(lut=facts.voi_lut)
    if facts.windows:
        return Shading(facts.windows[0])
    # Eight bits are what a screen shows: somebody has chosen the greys already.
    fallback = "all" if 0 < facts.bits <= 8 else FALLBACKS.get(modality, OTHERS)
    if isinstance(fallback, Percentiles):
        return Shading(ends=extent(fallback))
    if fallback != "all" and _has_hounsfield(facts, modality):
        return Shading(VoiWindow(*PRESETS[fallback], "LINEAR"))
    if fallback == "all" and facts.bits:
        return Shading(ends=_all_values(facts))
    return Shading(ends=extent(OTHERS))


def shade(stored: Values, facts: GreyFacts, shading: Shading) -> Picture:
    """Return uint8 of the shape of `stored`; what is padding is black."""
    if stored.dtype == np.uint8 and stored.size >= _WORTH_A_SMALL_TABLE:
        greys = stored.tobytes().translate(_table(facts, shading, "|u1").tobytes())
        return np.frombuffer(bytearray(greys), np.uint8).reshape(stored.shape)
    if stored.dtype.kind in "iu":
        line = _as_line(facts, shading)
        if line is not None:
            return _on_line(stored, facts, *line)
        narrow = stored.dtype.itemsize == 1
        if narrow or (stored.dtype.itemsize == 2 and stored.size >= _WORTH_A_TABLE):
            native = stored.astype(stored.dtype.newbyteorder("="), copy=False)
            table = _table(facts, shading, native.dtype.str)
            return np.take(table, native.view(np.uint8 if narrow else np.uint16))
    return _shade(stored, facts, shading)


def _as_line(facts: GreyFacts, shading: Shading) -> tuple[float, float] | None:
    """Slope and intercept of grey over stored values, None if it is no line between its ends."""
    if facts.modality_lut is not None or shading.lut is not None:
        return None
    if shading.window is None:
        low, high = shading.ends
    else:
        centre, width, function = shading.window
        if function == "LINEAR":
            centre, width = centre - 0.5, width - 1
        if function == "SIGMOID" or width <= 0:
            return None
        low, high = centre - width / 2, centre + width / 2
    if not high > low:
        return None
    slope = facts.slope * _WHITE / (high - low)
    intercept = (facts.intercept - low) * _WHITE / (high - low)
    return (-slope, _WHITE - intercept) if facts.is_inverted else (slope, intercept)


def _on_line(stored: Values, facts: GreyFacts, slope: float, intercept: float) -> Picture:
    exact: Any = np.float32 if stored.dtype.itemsize <= 2 else np.float64
    flat = stored.reshape(-1)
    picture = np.empty(flat.size, np.uint8)
    # In pieces that stay in the processor's cache.
    for start in range(0, flat.size, _PIECE):
        piece = slice(start, start + _PIECE)
        grey: npt.NDArray[Any] = flat[piece].astype(exact)
        grey *= exact(slope)
        grey += exact(intercept + 0.5)
        np.clip(grey, exact(0.5), exact(_WHITE + 0.5), out=grey)
        picture[piece] = grey
    if facts.padding is not None and max(slope * end + intercept for end in facts.padding) > 0:
        picture[facts.is_padding(flat)] = 0
    return picture.reshape(stored.shape)


@functools.lru_cache(maxsize=64)
def _table(facts: GreyFacts, shading: Shading, dtype: str) -> Picture:
    """The grey of every value that the type can hold, in the order of its bits."""
    kind = np.dtype(dtype)
    unsigned = np.arange(1 << (8 * kind.itemsize)).astype(f"u{kind.itemsize}")
    return _shade(unsigned.view(kind), facts, shading)


def _shade(stored: Values, facts: GreyFacts, shading: Shading) -> Picture:
    values = facts.modality_values(stored)
    finite = np.isfinite(values)
    is_whole = bool(finite.all())
    grey = shading(values if is_whole else np.where(finite, values, 0).astype(np.float32))
    if facts.is_inverted:
        grey = _WHITE - grey
    picture = np.rint(grey).astype(np.uint8)
    if facts.padding is not None:
        picture[facts.is_padding(stored)] = 0
    if not is_whole:
        picture[~finite] = 0
    return picture


def percentiles_of(stored: Values, facts: GreyFacts, wanted: Percentiles) -> tuple[float, float]:
    """Return two percentiles of the modality's values, without padding and what is not finite."""
    if stored.dtype in (np.uint8, np.uint16, np.int16) and facts.modality_lut is None:
        native = stored.astype(stored.dtype.newbyteorder("="), copy=False)
        bits = 8 * native.dtype.itemsize
        count = np.bincount(native.view(f"u{bits // 8}").reshape(-1), minlength=1 << bits)
        values = np.arange(1 << bits).astype(f"u{bits // 8}").view(native.dtype)
        order = np.roll(np.arange(1 << bits), 1 << (bits - 1)) if facts.is_signed else slice(None)
        if facts.padding is not None:
            count[facts.is_padding(values)] = 0
        total = np.cumsum(count[order])
        if not total[-1]:
            return 0.0, 0.0
        # The smallest value that so many are not above.
        shares = np.array([wanted.low, wanted.high]) / 100 * total[-1]
        at = np.searchsorted(total, np.maximum(shares, 1))
        if at[0] == at[1]:
            # Nearly everything is of one value: the rest is what there is to see.
            at = np.flatnonzero(count[order])[[0, -1]]
        ends = facts.modality_values(values[order][at])
    else:
        found = facts.modality_values(stored)
        known = found[np.isfinite(found) & ~facts.is_padding(stored)]
        if not known.size:
            return 0.0, 0.0
        ends = np.percentile(known, [wanted.low, wanted.high]).astype(np.float32)
        if ends[0] == ends[1]:
            ends = np.array([known.min(), known.max()])
    return float(ends.min()), float(ends.max())


def _windowed(values: Floats, window: VoiWindow) -> Floats:
    centre, width, function = window
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            grey: Floats = _WHITE / (
                1 + np.exp(-4 * (values - np.float32(centre)) / np.float32(width))
            )
        return grey.astype(np.float32)
    if function == "LINEAR":
        # C.11.2.1.2.1: the window of width w has w - 1 steps, and its centre is half a step off.
        centre, width = centre - 0.5, width - 1
    if width <= 0:
        return (values > centre).astype(np.float32) * np.float32(_WHITE)
    share = (values - np.float32(centre)) * np.float32(1 / width) + np.float32(0.5)
    return _clipped(share * np.float32(_WHITE))


def _clipped(grey: Floats) -> Floats:
    return np.clip(grey, np.float32(0), np.float32(_WHITE), out=grey)


def _all_values(facts: GreyFacts) -> tuple[float, float]:
    span = 1 << facts.bits
    low = -(span >> 1) if facts.is_signed else 0
    ends = facts.modality_values(np.array([low, low + span - 1]))
    return float(ends.min()), float(ends.max())


def _has_hounsfield(facts: GreyFacts, modality: str) -> bool:
    # A CT image that states no type is in Hounsfield units (C.11.1.1.2).
    return modality == "CT" and facts.is_rescaled and facts.unit in ("", "HU")


def _check_hounsfield(facts: GreyFacts, modality: str, window: str) -> None:
    if not _has_hounsfield(facts, modality):
        raise FileProblem(
            f"Expected a CT image in Hounsfield units for the window {window}, got "
            f'{modality or "an image"} without. Use window = "auto" or [centre, width].',
            "no Hounsfield units",
        )
