"""What a DICOM header says of text that may be written into the pixels."""

from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.uid import UID

from medfed.client.data.deidentification.text_marks import Box

# Values that a scanner computed, on a grid that nobody writes on: stored as measured.
_MEASURED = (
    "CT Image Storage",
    "Enhanced CT Image Storage",
    "Legacy Converted Enhanced CT Image Storage",
    "MR Image Storage",
    "Enhanced MR Image Storage",
    "Legacy Converted Enhanced MR Image Storage",
    "Positron Emission Tomography Image Storage",
    "Nuclear Medicine Image Storage",
    "Segmentation Storage",
    "Parametric Map Storage",
    "RT Dose Storage",
)
_NO_PICTURE = ("Segmentation Storage", "Parametric Map Storage", "RT Dose Storage")
_SCREENS = frozenset({"SECONDARY", "SCREEN SAVE", "DOSE_INFO", "SCREEN"})


@dataclass(frozen=True)
class TextFacts:
    """What a header says of burnt-in text.

    Attributes:
        declared: `BurnedInAnnotation` is YES.
        possible: Nothing in the header excludes text: a file whose pixels cannot be looked at is
            then refused.
        looked_for: Whether text is looked for at all: not in masks and maps of numbers.
        regions: Where the anatomy is, in an ultrasound picture; text is outside. Empty if unknown.
    """

    declared: bool
    possible: bool
    looked_for: bool
    regions: tuple[Box, ...]


def text_facts(dataset: Dataset) -> TextFacts:
    """Read the facts of `dataset`, before or after its de-identification."""
    kind = UID(str(dataset.get("SOPClassUID") or "")).name
    image_type = {str(value).upper() for value in dataset.get("ImageType") or ()}
    declared = str(dataset.get("BurnedInAnnotation") or "").strip().upper() == "YES"
    measured = kind in _MEASURED and not image_type & _SCREENS
    return TextFacts(
        declared=declared,
        possible=declared or not measured,
        looked_for=declared or kind not in _NO_PICTURE,
        regions=_regions(dataset),
    )


def _regions(dataset: Dataset) -> tuple[Box, ...]:
    """Read Sequence of Ultrasound Regions (PS3.3 C.8.5.5); its last row and column are in."""
    boxes = []
    for item in dataset.get("SequenceOfUltrasoundRegions") or ():
        try:
            sides = [int(item[tag].value) for tag in (0x0018601A, 0x00186018)]
            ends = [int(item[tag].value) + 1 for tag in (0x0018601E, 0x0018601C)]
        except (KeyError, TypeError, ValueError):
            return ()
        if min(sides) < 0 or ends[0] <= sides[0] or ends[1] <= sides[1]:
            return ()
        boxes.append(Box(*sides, *ends))
    return tuple(boxes)
