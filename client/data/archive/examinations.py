"""Joins the images of one examination into one record with several views.

A view that is not there is missing, which a store tells its reader. Two images that claim one view
are a conflict: which of them is the right one is the hospital's to say, so that the examination is
listed with both. What is of no view, or of several, is listed too.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from medfed.client.data.archive.dataset_file import DatasetFile
from medfed.client.data.archive.inventory import Series, printable
from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.archive.records import (
    NO_LABEL,
    NO_PATIENT,
    ArchiveImage,
    Dimensions,
    RecordMaker,
)
from medfed.client.data.archive.same_place import check_same_place
from medfed.client.data.archive.view_rules import view_facts, view_of
from medfed.client.data.labels.index import image_identity
from medfed.client.data.labels.joined import MaskReader, SeriesLabels
from medfed.client.data.records import SourceRecord
from medfed.common.errors import DataError, UnreadableImageError
from medfed.common.study import TaskSection

Views = dict[str, list[ArchiveImage]]
T = TypeVar("T")

# In an examination's name: never in a path or a UID.
_SEPARATOR = "\x1f"


def check_views(
    file: DatasetFile, task: TaskSection, dimensions: Dimensions, views: Sequence[str]
) -> None:
    """Refuse a study whose views an archive does not have.

    Args:
        file: The hospital's `dataset.toml`.
        task: The study's.
        dimensions: 2 for images, 3 for volumes.
        views: Its data.views.

    Raises:
        DataError: A view that is not defined, or a segmentation of images in several views.
    """
    unknown = [view for view in views if view not in file.views]
    if unknown:
        known = f"it defines {', '.join(file.views)}" if file.views else "it defines none"
        raise DataError(
            f"Expected [views] of {file.name} to say how to tell {', '.join(unknown)}, which the "
            f"study's data.views names; {known}. Add it there, or mend data.views."
        )
    if views and task.type == "segmentation" and dimensions == 2:
        raise DataError(
            f"The study segments images, and its data.views puts images of {file.name} side by "
            "side that do not lie on one another: a mask of one is none of the others. Remove "
            "data.views."
        )


@dataclass
class ExaminationMaker:
    """Makes one record of each examination.

    Attributes:
        file: The hospital's `dataset.toml`.
        maker: Reads images and knows their labels; gets what gives no record.
        views: The study's data.views, in its order.
        task: The study's.
        num_others: Images of views that the study does not ask for.
        places: Examination, view and image, of all records.
    """

    file: DatasetFile
    maker: RecordMaker
    views: tuple[str, ...]
    task: TaskSection
    num_others: int = 0
    places: list[tuple[str, str, str]] = field(default_factory=list)

    def records(self, series: Sequence[Series]) -> list[SourceRecord]:
        """Return the records of an archive; `maker.unusable` gets what gives none."""
        examinations: dict[str, Views] = defaultdict(lambda: defaultdict(list))
        for one in series:
            for image in self.maker.images(one):
                try:
                    view = self._view(image)
                    if view in self.views:
                        examinations[self._examination(image)][view].append(image)
                    else:
                        self.num_others += 1
                except UnreadableImageError as error:
                    self.maker.leave_out(image, str(error))
        records = []
        for name, found in examinations.items():
            own = {view: found[view] for view in self.views if view in found}
            try:
                records.append(self._record(name, own))
            except UnreadableImageError as error:
                # Each file is accounted for: the others of the examination are not used either.
                for image in (image for several in own.values() for image in several):
                    self.maker.leave_out(image, str(error))
        return records

    def _view(self, image: ArchiveImage) -> str:
        """Which view an image is."""
        is_dicom = image.series.kind == "dicom"
        needs_header = any(rule.needs_header for rule in self.file.views.values())
        try:
            facts = view_facts(
                image.path,
                self._below(image)[1].as_posix(),
                self.file.limits,
                header=is_dicom and needs_header,
            )
            return view_of(facts, self.file.views)
        except FileProblem as problem:
            raise problem.of(image.path) from None

    def _examination(self, image: ArchiveImage) -> str:
        """What an image's examination is called: in memory, and then by its pseudonym."""
        archive = self.file.archive
        folder, below = self._below(image)
        found = ""
        if archive.examination == "header":
            # The same study in two folders is one.
            folder, found = "", image.series.study
        elif archive.examination == "folder":
            found = below.parent.as_posix() if below.parent.parts else ""
        elif archive.examination == "name":
            match = re.search(archive.examination_pattern, below.as_posix())
            found = (match.group(1) or "") if match else ""
        else:
            labels = self.maker.labels(image)
            folder = ""
            found = labels.columns.get(archive.examination_column, "") if labels else ""
        if not found:
            raise UnreadableImageError(
                f'archive.examination = "{archive.examination}" does not tell which examination '
                'it is of. Set it to "header", "folder", "name" or "column", whichever does.'
            )
        return f"examination{_SEPARATOR}{folder}{_SEPARATOR}{found}"

    def _below(self, image: ArchiveImage) -> tuple[str, Path]:
        """The archive's folder that holds an image, and the image's path below it."""
        for folder in self.file.archive.folders:
            if image.path.is_relative_to(self.file.path(folder)):
                return folder, image.path.relative_to(self.file.path(folder))
        return "", Path(image.path.name)

    def _record(self, name: str, found: Mapping[str, list[ArchiveImage]]) -> SourceRecord:
        for view, several in found.items():
            if len(several) > 1:
                raise UnreadableImageError(
                    f"Expected one image of the view {view} in an examination, got "
                    f"{len(several)}: {', '.join(one.source for one in several)}. Leave all but "
                    "one out with archive.exclude, or say more of it in [views]."
                )
        images = [own for (own,) in found.values()]
        labels = [said for one in images if (said := self.maker.labels(one))]
        readers = {view: self.maker.pixels(own) for view, (own,) in found.items()}
        names = ", ".join(f"{view}: {printable(own.path.name)}" for view, (own,) in found.items())
        self.places += [(name, view, image_identity(*own.key)) for view, (own,) in found.items()]
        sides = {said.split for said in labels if said.split}
        return SourceRecord(
            record_id=name,
            patient_id=_patient(images, labels),
            labels=self._classes(labels),
            source=f"{images[0].source} ({names})",
            read_image=next(iter(readers.values())),
            read_mask=self._mask(images, labels),
            report="\n\n".join(dict.fromkeys(said.report for said in labels if said.report)),
            split=_one(sides, "split", "Put all of a patient on one side."),
            columns=self._columns(images, labels),
            views=readers,
            spacing_mm=self.maker.spacing_mm(images[0]),
        )

    def _classes(self, labels: Sequence[SeriesLabels]) -> tuple[str, ...]:
        """All classes of an examination: what one view shows, the patient has."""
        said = [one.classes for one in labels if one.is_classified]
        if self.maker.needs_labels and not said:
            raise UnreadableImageError(NO_LABEL)
        classes = tuple(dict.fromkeys(name for one in said for name in one))
        if self.task.one_label and len(classes) > 1:
            raise UnreadableImageError(
                f"Expected one label of an examination, got {', '.join(classes)} of its views. "
                'Label the examination (key = "study"), or set task.mode = "multilabel".'
            )
        return tuple(sorted(classes))

    def _mask(
        self, images: Sequence[ArchiveImage], labels: Sequence[SeriesLabels]
    ) -> MaskReader | None:
        """The mask of an examination: of one of its volumes, on which the others lie."""
        masks = [said.read_mask for said in labels if said.read_mask]
        if self.task.type != "segmentation" or not masks:
            return None
        if len(masks) > 1:
            raise UnreadableImageError(
                f"Expected one mask of an examination, got {len(masks)} of its views. Name one of "
                "them in [[labels.masks]]."
            )
        check_same_place([one.series for one in images], self.file.limits)
        return masks[0]

    def _columns(
        self, images: Sequence[ArchiveImage], labels: Sequence[SeriesLabels]
    ) -> dict[str, str]:
        """What is said of an examination; where its views differ, all of it."""
        found: dict[str, list[str]] = defaultdict(list)
        for columns in (*(one.columns for one in images), *(said.columns for said in labels)):
            for name, value in columns.items():
                if value not in found[name]:
                    found[name].append(value)
        # It names an examination at this hospital.
        found.pop(self.file.archive.examination_column, None)
        return {name: "; ".join(values) for name, values in found.items()}


def _patient(images: Sequence[ArchiveImage], labels: Sequence[SeriesLabels]) -> str:
    named = {one.series.patient for one in images} | {said.patient for said in labels}
    patient = _one(named - {""}, "patient", "Mend archive.examination or archive.patient.")
    if not patient:
        raise UnreadableImageError(NO_PATIENT)
    return patient


def _one(found: set[T], what: str, way_out: str) -> T | None:
    """The only one of what the views of an examination say; None if they say nothing."""
    if len(found) > 1:
        raise UnreadableImageError(
            f"Expected one {what} of an examination, got {len(found)} of its views. {way_out}"
        )
    return next(iter(found), None)
