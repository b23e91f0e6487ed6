"""How thick slices are that do not say so.

A segmentation with a place in space has to say it (PS3.3 C.7.6.16.2.1; dciodvfy insists), while CT
and MR images need not. Nothing is made up here: where the distance of slices stands in for it, the
object says so, and the command does; of a slice alone nothing is known, and its segmentation refers
to it and has no place of its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from medfed.client.data.dicom.elements import number_of, tag_of
from medfed.client.data.dicom.geometry import normal_of
from medfed.client.data.results.sources import Sources

_PLACES = ("PlanePositionSequence", "PlaneOrientationSequence")


@dataclass(frozen=True)
class Thickness:
    """What a segmentation says of its slices' thickness.

    Attributes:
        mm: What stands in for it; None if the images say it themselves, or none is known.
        note: What to tell of that; empty if the images say it, or need none.
    """

    mm: float | None = None
    note: str = ""

    @property
    def is_unknown(self) -> bool:
        """Whether a segmentation can have no place in space for the want of it."""
        return bool(self.note) and self.mm is None


def thickness_of(sources: Sources) -> Thickness:
    """Return what stands in for a thickness that images with a place in space do not say."""
    first = sources.first
    is_placed = "FrameOfReferenceUID" in first and "SharedFunctionalGroupsSequence" not in first
    if not is_placed or all(_says(one, "SliceThickness") for one in sources.headers):
        return Thickness()
    if all(_says(one, "SpacingBetweenSlices") for one in sources.headers):
        distance = float(number_of(first, "SpacingBetweenSlices") or 0)
    else:
        distance = _even_distance(sources)
    if not distance:
        return Thickness(
            note="Source images state no slice thickness: the segmentation has no place in space "
            "of its own, only the references to its images."
        )
    return Thickness(
        distance,
        "Source images state no slice thickness: the segmentation gives the distance of slices, "
        f"{distance:.6g} mm, in its stead.",
    )


def _even_distance(sources: Sources) -> float:
    """Distance of slices, mm; 0 if there is one alone, or if they are not evenly apart."""
    planes = sources.planes()
    normal = normal_of(planes[0].orientation) if planes else None
    if len(planes) < 2 or normal is None:
        return 0.0
    steps = np.abs(np.diff([np.asarray(plane.position) @ normal for plane in planes]))
    return float(np.mean(steps)) if np.allclose(steps, steps[0], rtol=0.01) else 0.0


@contextmanager
def filled_in(sources: Sources, thickness: Thickness) -> Iterator[None]:
    """Let headers say `thickness` meanwhile: highdicom asks all images with a place for one."""
    tag = tag_of("SliceThickness")
    unsaid = [one for one in sources.headers if not _says(one, "SliceThickness")]
    unsaid = unsaid if thickness.note else []
    before = [one.get_item(tag) for one in unsaid]
    try:
        for header in unsaid:
            # A new element: to change the one that is there would lose what it said.
            header[tag] = DataElement(tag, "DS", f"{thickness.mm or 1:.6g}")
        yield
    finally:
        for header, element in zip(unsaid, before, strict=True):
            del header[tag]
            if element is not None:
                header[tag] = element


def settle(made: Dataset, sources: Sources, thickness: Thickness) -> None:
    """Leave in a segmentation only what is known, and say what stands in for what is not."""
    shared = made.SharedFunctionalGroupsSequence[0]
    for measures in shared.get("PixelMeasuresSequence") or ():
        # highdicom has a slice alone lie 1 mm from the next.
        if len(sources.shape) == 2 and not _says(sources.first, "SpacingBetweenSlices"):
            measures.pop("SpacingBetweenSlices", None)
        if thickness.is_unknown:
            measures.pop("SliceThickness", None)
    if thickness.note:
        made.ImageComments = thickness.note
    if thickness.is_unknown:
        _displace(made)


def _displace(made: Dataset) -> None:
    """Take the place in space out: each frame still names its image, whose rows and columns it has.

    Pixels of a frame are then told by their segment alone (PS3.3 C.7.6.17).
    """
    del made.FrameOfReferenceUID
    made.pop("PositionReferenceIndicator", None)
    kept = [
        at
        for at, one in enumerate(made.DimensionIndexSequence)
        if one.get("FunctionalGroupPointer") != tag_of("PlanePositionSequence")
    ]
    made.DimensionIndexSequence = [made.DimensionIndexSequence[at] for at in kept]
    groups = [*made.SharedFunctionalGroupsSequence, *made.PerFrameFunctionalGroupsSequence]
    for group in groups:
        for keyword in _PLACES:
            group.pop(keyword, None)
        for content in group.get("FrameContentSequence") or ():
            values = content.DimensionIndexValues
            values = [values] if isinstance(values, int) else list(values)
            content.DimensionIndexValues = [values[at] for at in kept]


def _says(header: Dataset, keyword: str) -> bool:
    return (number_of(header, keyword) or 0) > 0
