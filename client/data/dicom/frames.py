"""What a header says of each frame: at the top, for all frames together, or for one alone.

Source: DICOM PS3.3 C.7.6.16 (multi-frame functional groups).
"""

from collections.abc import Iterator

from pydicom.dataset import Dataset

from medfed.client.data.dicom.elements import numbers_of, text_of

# Macro by the attributes that it holds (PS3.3 C.7.6.16.2).
_MACROS = {
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "RescaleType": "PixelValueTransformationSequence",
    "WindowCenter": "FrameVOILUTSequence",
    "WindowWidth": "FrameVOILUTSequence",
    "VOILUTFunction": "FrameVOILUTSequence",
}


class FrameHeader:
    """The attributes of one frame.

    Args:
        dataset: The file's data set.
        index: The frame, from 0.
    """

    def __init__(self, dataset: Dataset, index: int = 0) -> None:
        self._dataset = dataset
        shared = dataset.get("SharedFunctionalGroupsSequence")
        each = dataset.get("PerFrameFunctionalGroupsSequence")
        own = each[index] if each and index < len(each) else None
        self._groups: tuple[Dataset, ...] = tuple(
            group for group in (own, shared[0] if shared else None) if group is not None
        )

    def numbers(self, keyword: str, count: int = 0) -> tuple[float, ...]:
        """Return an attribute's numbers; none if it is absent or has not `count` of them."""
        found = next(
            (numbers for at in self._places(keyword) if (numbers := numbers_of(at, keyword))), ()
        )
        return found if not count or len(found) == count else ()

    def text(self, keyword: str) -> str:
        """Return an attribute as text, empty if it is absent."""
        return next((text for at in self._places(keyword) if (text := text_of(at, keyword))), "")

    def _places(self, keyword: str) -> Iterator[Dataset]:
        """Where the attribute may be, the most specific place first."""
        macro = _MACROS.get(keyword)
        for group in self._groups if macro else ():
            items = group.get(macro)
            if items:
                yield items[0]
        yield self._dataset


def frame_headers(dataset: Dataset, frames: int) -> Iterator[FrameHeader]:
    """Yield the attributes of each frame; of one alone where frames do not differ."""
    differ = dataset.get("PerFrameFunctionalGroupsSequence")
    for index in range(frames if differ else 1):
        yield FrameHeader(dataset, index)
