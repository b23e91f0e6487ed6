"""From an archive's series to the records of a data set: one an image, or one a volume.

What gives no record is listed with its reason; nothing is dropped.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from medfed.client.data.archive.clean_reading import CleanReader
from medfed.client.data.archive.inventory import Series, printable
from medfed.client.data.dicom.volume import spacing_of_array
from medfed.client.data.labels.index import image_identity
from medfed.client.data.labels.joined import LabelJoin, SeriesLabels
from medfed.client.data.records import SourceRecord, UnusableSource
from medfed.common.errors import UnreadableImageError

Dimensions = Literal[2, 3]

# Index of a series as one volume, among the labels.
VOLUME = -1
_NO_LABELS = SeriesLabels()


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
        if series.key in self.joined.not_images:
            return
        problem = self._problem(series)
        if problem:
            self._leave_out(series.files[0], problem, len(series.files))
            return
        for index in self._images(series):
            path, frame = _place(series, index)
            labels = self.joined.by_image.get((series.key, index))
            try:
                yield self._record(series, index, labels)
            except UnreadableImageError as error:
                self._leave_out(path, str(error) + (f" (frame {frame + 1})" if frame else ""))

    def _problem(self, series: Series) -> str:
        """Why a series as a whole gives no record; empty if it does."""
        if self.dimensions == 2 and series.kind == "nifti":
            return "A NIfTI volume in a study of images. Set data.dimensions = 3 in the study."
        if self.dimensions == 3 and not (series.is_stack and len(series.shape) >= 3):
            why = " ".join(series.notes) or "its images lie in no order in space."
            return f"Expected a volume, got {series.num_images} image(s): {why}"
        return ""

    def _images(self, series: Series) -> list[int]:
        if self.dimensions == 3:
            return [VOLUME]
        if self.slices == "middle":
            return [series.num_images // 2]
        return list(range(series.num_images))

    def _record(self, series: Series, index: int, said: SeriesLabels | None) -> SourceRecord:
        if said is None and (series.key, index) in self.joined.left_out:
            raise UnreadableImageError(
                "Its labels contradict each other or are uncertain. medfed data label says how."
            )
        if self.needs_labels and (said is None or not said.is_classified):
            raise UnreadableImageError("No label: no source of labels speaks of it. Add a row.")
        labels = said or _NO_LABELS
        patient = series.patient or labels.patient
        if not patient:
            raise UnreadableImageError(
                'It names no patient. Say whose it is: archive.patient = "folder" or "name", or a '
                "table's patient_column."
            )
        path, frame = _place(series, index)
        is_volume = index == VOLUME
        return SourceRecord(
            record_id=image_identity(series.key, index),
            patient_id=patient,
            labels=labels.classes,
            source=printable(path) + (f", frame {frame + 1}" if frame else ""),
            read_image=partial(self.reader.volume, series)
            if is_volume
            else partial(self.reader.image, path, frame, series.kind),
            read_mask=labels.read_mask,
            report=labels.report,
            split=labels.split,
            columns={"modality": series.modality, "scanner": series.scanner, **labels.columns},
            spacing_mm=spacing_of_array(series, self.reader.limits) if is_volume else None,
        )

    def _leave_out(self, path: Path, reason: str, num_files: int = 1) -> None:
        more = f" (and {num_files - 1} more of its series)" if num_files > 1 else ""
        named = reason if printable(path) in reason else f"{printable(path)}{more}: {reason}"
        self.unusable.append(UnusableSource(printable(path), named))


def _place(series: Series, index: int) -> tuple[Path, int]:
    """File and frame of an image of a series."""
    if index == VOLUME:
        return series.files[0], 0
    frames = max(1, series.num_images // len(series.files))
    return series.files[index // frames], index % frames
