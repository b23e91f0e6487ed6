"""From an archive's series to the records of a data set: one an image, or one a volume.

What gives no record is listed with its reason; nothing is dropped.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from medfed.client.data.archive.clean_reading import CleanReader
from medfed.client.data.archive.inventory import Series, printable
from medfed.client.data.dicom.volume import spacing_of_array
from medfed.client.data.labels.index import image_identity
from medfed.client.data.labels.joined import ImageKey, LabelJoin, SeriesLabels
from medfed.client.data.records import SourceRecord, UnusableSource
from medfed.common.errors import UnreadableImageError

Dimensions = Literal[2, 3]

# Index of a series as one volume, among the labels.
VOLUME = -1
_NO_LABELS = SeriesLabels()
NO_LABEL = "No label: no source of labels speaks of it. Add a row."
NO_PATIENT = (
    'It names no patient. Say whose it is: archive.patient = "folder" or "name", or a table\'s '
    "patient_column."
)


@dataclass(frozen=True)
class ArchiveImage:
    """One image, or one volume, of an archive.

    Attributes:
        series: That it is of.
        index: In the series; `VOLUME` for all of it.
    """

    series: Series
    index: int

    @property
    def path(self) -> Path:
        """Its file; of a volume the first one."""
        return self.series.files[max(0, self.index) // self._frames]

    @property
    def frame(self) -> int:
        """Which frame of its file it is."""
        return max(0, self.index) % self._frames

    @property
    def source(self) -> str:
        """What messages call it."""
        return printable(self.path) + (f", frame {self.frame + 1}" if self.frame else "")

    @property
    def key(self) -> ImageKey:
        """What labels call it."""
        return self.series.key, self.index

    @property
    def columns(self) -> dict[str, str]:
        """What is kept of its header."""
        return {"modality": self.series.modality, "scanner": self.series.scanner}

    @property
    def _frames(self) -> int:
        return max(1, self.series.num_images // len(self.series.files))


@dataclass(frozen=True)
class RecordMaker:
    """Makes records of an archive's series.

    Attributes:
        reader: Reads pixels.
        joined: What is known of the images.
        dimensions: Of the study: 2 for images, 3 for volumes.
        slices: In 2-D, which images of a series of several.
        needs_labels: Whether an image that no source labels is of no use (classification).
        unusable: What gave no record so far.
    """

    reader: CleanReader
    joined: LabelJoin
    dimensions: Dimensions
    slices: Literal["each", "middle"]
    needs_labels: bool
    unusable: list[UnusableSource] = field(default_factory=list)

    def records(self, series: Series) -> Iterator[SourceRecord]:
        """Yield the records of a series; add to `unusable` what gives none."""
        for image in self.images(series):
            try:
                yield self._record(image)
            except UnreadableImageError as error:
                self.leave_out(image, str(error))

    def images(self, series: Series) -> Iterator[ArchiveImage]:
        """Yield the images of a series that is of the study's kind; add others to `unusable`."""
        if series.key in self.joined.not_images:
            return
        problem = self._problem(series)
        if problem:
            self.leave_out(ArchiveImage(series, VOLUME), problem, len(series.files))
            return
        for index in self._indices(series):
            yield ArchiveImage(series, index)

    def labels(self, image: ArchiveImage) -> SeriesLabels | None:
        """Return what is known of an image; None if nothing is.

        Raises:
            UnreadableImageError: What is known may not be used.
        """
        said = self.joined.by_image.get(image.key)
        if said is None and not self._left_out.isdisjoint({image.key, (image.series.key, VOLUME)}):
            raise UnreadableImageError(
                "Its labels contradict each other or are uncertain. medfed data label says how."
            )
        return said

    def pixels(self, image: ArchiveImage) -> Callable[[], npt.NDArray[np.uint8]]:
        """Return what decodes an image."""
        if image.index == VOLUME:
            return partial(self.reader.volume, image.series)
        return partial(self.reader.image, image.path, image.frame, image.series.kind)

    def spacing_mm(self, image: ArchiveImage) -> tuple[float, ...] | None:
        """Return the size of a volume's voxel, if it is known."""
        if image.index != VOLUME:
            return None
        return spacing_of_array(image.series, self.reader.limits)

    def leave_out(self, image: ArchiveImage, reason: str, num_files: int = 1) -> None:
        """Add an image, or a series of some files, to `unusable`."""
        path = printable(image.path)
        more = f" (and {num_files - 1} more of its series)" if num_files > 1 else ""
        reason += f" (frame {image.frame + 1})" if image.frame else ""
        named = reason if path in reason else f"{path}{more}: {reason}"
        self.unusable.append(UnusableSource(path, named))

    @cached_property
    def _left_out(self) -> frozenset[ImageKey]:
        return frozenset(self.joined.left_out)

    def _problem(self, series: Series) -> str:
        """Why a series as a whole gives no record; empty if it does."""
        if self.dimensions == 2 and series.kind == "nifti":
            return "A NIfTI volume in a study of images. Set data.dimensions = 3 in the study."
        if self.dimensions == 3 and not (series.is_stack and len(series.shape) >= 3):
            why = " ".join(series.notes) or "its images lie in no order in space."
            return f"Expected a volume, got {series.num_images} image(s): {why}"
        return ""

    def _indices(self, series: Series) -> list[int]:
        if self.dimensions == 3:
            return [VOLUME]
        if self.slices == "middle":
            return [series.num_images // 2]
        return list(range(series.num_images))

    def _record(self, image: ArchiveImage) -> SourceRecord:
        said = self.labels(image)
        if self.needs_labels and (said is None or not said.is_classified):
            raise UnreadableImageError(NO_LABEL)
        labels = said or _NO_LABELS
        patient = image.series.patient or labels.patient
        if not patient:
            raise UnreadableImageError(NO_PATIENT)
        return SourceRecord(
            record_id=image_identity(*image.key),
            patient_id=patient,
            labels=labels.classes,
            source=image.source,
            read_image=self.pixels(image),
            read_mask=labels.read_mask,
            report=labels.report,
            split=labels.split,
            columns={**image.columns, **labels.columns},
            spacing_mm=self.spacing_mm(image),
        )
