"""Turns one source record into what a store holds of it: pixels, mask and row.

Shapes: C channels of all views, *S spatial.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medfed.client.data.fitting import Pixels, fit_image, fit_mask, fit_views
from medfed.client.data.pseudonyms import pseudonym
from medfed.client.data.records import SourceRecord
from medfed.common.errors import UnreadableImageError
from medfed.common.metrics.findings import FindingLabeller
from medfed.common.study import DataSection, TaskSection
from medfed.common.text import tokenise

Views = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class Prepared:
    """A record as a store holds it.

    Attributes:
        row: Its line of records.jsonl.
        image: uint8 [C, *S].
        mask: uint8 *S for segmentation, else None.
    """

    row: dict[str, Any]
    image: Pixels
    mask: Pixels | None


@dataclass(frozen=True)
class Refused:
    """A record that cannot be used, and why. Names files: never leaves this machine."""

    source: str
    reason: str


@dataclass(frozen=True)
class Preparation:
    """How every record of a store is prepared.

    Attributes:
        task: Label set and mode.
        image: Size, channels and views of the stored images.
        pseudonym_key: Key of the HMAC that turns identities into pseudonyms.
    """

    task: TaskSection
    image: DataSection
    pseudonym_key: bytes

    def __call__(self, record: SourceRecord) -> Prepared | Refused:
        """Decode, fit and check one record."""
        try:
            views = self.read_views(record)
            prepared = self.fit_views(record, views)
            if self.task.type == "segmentation":
                prepared = self.add_mask(record, views, prepared, self.read_mask(record))
        except UnreadableImageError as error:
            return Refused(record.source, str(error))
        return prepared

    def read_views(self, record: SourceRecord) -> Views:
        """Decode a record's pixels, by view; of a record without views the one entry is "".

        Raises:
            UnreadableImageError: They cannot be decoded, or the report to learn is missing.
        """
        if self.task.type == "report" and not record.report.strip():
            raise UnreadableImageError(
                f"{record.source}: expected a report, got none. Add its text, or leave the image "
                "out."
            )
        names = self.image.views
        if names:
            return {name: record.views[name]() for name in names if name in record.views}
        return {"": record.read_image()}

    def read_mask(self, record: SourceRecord) -> npt.NDArray[np.uint8]:
        """Decode a record's mask.

        Raises:
            UnreadableImageError: There is none, or it cannot be decoded.
        """
        if record.read_mask is None:
            raise UnreadableImageError(
                f"{record.source}: expected a mask, found none. Place it beside the others, or "
                "leave the image out: an image without a mask is not an image without a finding."
            )
        return record.read_mask()

    def fit_views(self, record: SourceRecord, views: Views) -> Prepared:
        """Bring pixels into the store's size and make the record's row.

        Raises:
            UnreadableImageError: They cannot be used.
        """
        row = self.row(record)
        if self.image.views:
            pixels, present = fit_views(views, self.image, record.source)
            row["present"] = present.tolist()
        else:
            pixels = fit_image(views[""], self.image, record.source, record.spacing_mm)
        row["shape"] = list(pixels.shape[1:])
        return Prepared(row, pixels, None)

    def add_mask(
        self,
        record: SourceRecord,
        views: Views,
        prepared: Prepared,
        mask: npt.NDArray[np.uint8],
    ) -> Prepared:
        """Bring the mask into the size of its prepared image; its structures are the labels.

        Raises:
            UnreadableImageError: It cannot be this image's.
        """
        self._check_values(record, mask)
        shape = next(iter(views.values())).shape[: self.image.dimensions]
        fitted = fit_mask(mask, self.image, record.source, shape, prepared.image.shape[1:])
        row = {**prepared.row, "labels": structures_in(fitted, self.task)}
        return Prepared(row, prepared.image, np.asarray(fitted, dtype=np.uint8))

    def _check_values(self, record: SourceRecord, mask: npt.NDArray[np.uint8]) -> None:
        task = self.task
        highest = int(mask.max(initial=0))
        limit = 2 ** len(task.classes) - 1 if task.mode == "multilabel" else len(task.classes)
        if highest > limit:
            raise UnreadableImageError(
                f"{record.source}: mask value {highest} is outside the study's structures "
                f"({', '.join(task.classes)}), which allow 0 to {limit}."
            )

    def row(self, record: SourceRecord) -> dict[str, Any]:
        """Return what is stored of a record besides its pixels."""
        task, labels = self.task, []
        if task.type == "classification":
            labels = sorted(task.classes.index(label) for label in record.labels)
        elif task.type == "report":
            mentioned_F = FindingLabeller(task.report.findings)(tokenise(record.report))
            labels = np.flatnonzero(mentioned_F).tolist()
        return {
            "record": pseudonym(self.pseudonym_key, "record", record.record_id),
            "patient": pseudonym(self.pseudonym_key, "patient", record.patient_id),
            "labels": labels,
            "split": record.split or "",
            "columns": dict(record.columns),
            "report": record.report if task.type == "report" else "",
        }


def structures_in(mask: npt.NDArray[np.uint8], task: TaskSection) -> list[int]:
    """Return the indices of the structures that `mask` holds."""
    values = np.unique(mask)
    if task.mode == "multilabel":
        return [i for i in range(len(task.classes)) if (values >> i & 1).any()]
    return [int(value) - 1 for value in values if value]
