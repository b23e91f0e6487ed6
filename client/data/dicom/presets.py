"""Windows by name, and what an image is shown with that brings none of its own.

Hounsfield windows are those in common radiological use, e.g. https://radiopaedia.org/articles/windowing-ct
(lung 1500/-600, mediastinum 400/40, bone 1800/400, brain 80/40).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PresetName = Literal["lung", "soft_tissue", "bone", "brain"]
Window = (
    Literal["auto", "percentiles", "lung", "soft_tissue", "bone", "brain"] | tuple[float, float]
)
"""How values become grey: by itself, from the image's own values whatever its file says, a preset
in Hounsfield units, or centre and width."""

PRESETS: Mapping[PresetName, tuple[float, float]] = {
    "lung": (-600, 1500),
    "soft_tissue": (40, 400),
    "bone": (400, 1800),
    "brain": (40, 80),
}


@dataclass(frozen=True)
class Percentiles:
    """Grey from one percentile of the values to another, background left out."""

    low: float
    high: float


Fallback = Percentiles | Literal["all", "lung", "soft_tissue", "bone", "brain"]

_RADIOGRAPH = Percentiles(0.1, 99.9)
_NUCLEAR = Percentiles(0, 99.9)
FALLBACKS: Mapping[str, Fallback] = {
    "CT": "soft_tissue",
    # MR values have no unit; so has what is derived of them.
    "MR": Percentiles(0.5, 99.5),
    "CR": _RADIOGRAPH,
    "DX": _RADIOGRAPH,
    "MG": _RADIOGRAPH,
    "RG": _RADIOGRAPH,
    "PX": _RADIOGRAPH,
    "IO": _RADIOGRAPH,
    "RF": _RADIOGRAPH,
    "XA": _RADIOGRAPH,
    "NM": _NUCLEAR,
    "PT": _NUCLEAR,
    # Made for a screen: all values that its bits hold.
    "US": "all",
    "ES": "all",
    "OP": "all",
    "XC": "all",
    "SM": "all",
}
"""By modality, for images of more than 8 bits; those of fewer show every value. The file's own VOI
LUT or window goes first. Other modalities: `OTHERS`."""

OTHERS = Percentiles(0.5, 99.5)
