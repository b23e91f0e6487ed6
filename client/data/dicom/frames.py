"""What a header says of each frame: at the top, for all frames together, or for one alone.

Source: DICOM PS3.3 C.7.6.16 (multi-frame functional groups).
"""

from collections.abc import Iterator

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

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

    def element(self, keyword: str) -> DataElement | None:
        """Return an attribute that has a value, the most specific one, or None."""
        macro = _MACROS.get(keyword)
        for group in self._groups if macro else ():
            items = group.get(macro)
            if items and keyword in items[0]:
                return _with_value(items[0], keyword)
        return _with_value(self._dataset, keyword)

    def numbers(self, keyword: str, count: int = 0) -> tuple[float, ...]:
        """Return an attribute's numbers; none if it is absent or has not `count` of them."""
        element = self.element(keyword)
        if element is None:
            return ()
        value = element.value
        several = [value] if isinstance(value, str | int | float) else value
        try:
            found = tuple(float(one) for one in several)
        except (TypeError, ValueError):
            return ()
        return found if not count or len(found) == count else ()


def frame_headers(dataset: Dataset, frames: int) -> Iterator[FrameHeader]:
    """Yield the attributes of each frame; of one alone where frames do not differ."""
    differ = dataset.get("PerFrameFunctionalGroupsSequence")
    for index in range(frames if differ else 1):
        yield FrameHeader(dataset, index)


def _with_value(dataset: Dataset, keyword: str) -> DataElement | None:
    element: DataElement | None = dataset[keyword] if keyword in dataset else None  # noqa: SIM401 - get() gives its value
    return None if element is None or element.is_empty else element
