"""Whether a data set as a whole can serve a study, before any image is decoded."""

from collections import Counter

from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.common.errors import DataError, LeakageError
from medfed.common.study import DataSection, TaskSection

_MOST_REASONS = 5


def check_records(dataset: SourceDataset, task: TaskSection, image: DataSection) -> None:
    """Refuse a mistake in the data set as a whole; what concerns one image is quarantined later.

    Raises:
        DataError: No images, images or targets of another kind than the study's, a label outside
            the label set, an image named twice.
        LeakageError: A patient on both sides of the official split.
    """
    if not dataset.records:
        raise DataError(no_images(dataset))
    check_kind(dataset, task, image)
    seen: set[str] = set()
    side: dict[str, str] = {}
    for record in dataset.records:
        if record.record_id in seen:
            raise DataError(
                f"{record.source}: the image identifier occurs twice in {dataset.name}. "
                "Keep one of the two."
            )
        seen.add(record.record_id)
        if task.type == "classification":
            _check_labels(record, task)
        if record.split and side.setdefault(record.patient_id, record.split) != record.split:
            raise LeakageError(
                f"{record.source}: its patient is in both the train and the test split of "
                f"{dataset.name}. Put all images of a patient on one side."
            )


def no_images(dataset: SourceDataset) -> str:
    """Return what is wrong with a data set without records."""
    if dataset.unusable:
        # The reason that matters is seldom the first: a README says nothing of the images.
        reasons = Counter(one.reason for one in dataset.unusable).most_common(_MOST_REASONS)
        listed = "\n".join(f"  {number:,} x {reason}" for reason, number in reasons)
        return (
            f"None of the {len(dataset.unusable):,} files of {dataset.name} can be used, the most "
            f"frequent reasons:\n{listed}"
        )
    return f"{dataset.name} holds no images. Check the folder given with --data."


def check_kind(dataset: SourceDataset, task: TaskSection, image: DataSection) -> None:
    """Refuse a task or a kind of image that the data set as a whole cannot serve.

    Raises:
        DataError: Dimensions, masks, structures, reports or views are not the study's.
    """
    if dataset.dimensions != image.dimensions:
        raise DataError(
            f"{dataset.name} holds {dataset.dimensions}-D images, the study's data.dimensions is "
            f"{image.dimensions}. Set data.dimensions = {dataset.dimensions}."
        )
    if task.type == "segmentation":
        if not any(record.read_mask for record in dataset.records):
            raise DataError(
                f"{dataset.name} has no masks to learn a segmentation from. Place its mask files "
                "where the data set's layout has them, or choose another task."
            )
        if dataset.structures and dataset.structures != task.classes:
            raise DataError(
                f"The masks of {dataset.name} delineate {', '.join(dataset.structures)}; the study "
                f"names {', '.join(task.classes)}. Set task.classes to the data set's structures."
            )
    if task.type == "report" and not any(record.report for record in dataset.records):
        raise DataError(f"{dataset.name} has no reports to learn from. Choose another task.")
    unknown = {view for record in dataset.records for view in record.views} - set(image.views)
    if image.views and not any(set(record.views) & set(image.views) for record in dataset.records):
        raise DataError(
            f"None of the study's data.views ({', '.join(image.views)}) is in {dataset.name}, "
            f"which has {', '.join(sorted(unknown)) or 'single images'}."
        )


def _check_labels(record: SourceRecord, task: TaskSection) -> None:
    unknown = [label for label in record.labels if label not in task.classes]
    if unknown:
        raise DataError(
            f"{record.source}: label {unknown[0]!r} is outside the study's label set "
            f"({', '.join(task.classes)}). Add it to task.classes or mend the row."
        )
    if task.one_label and len(record.labels) != 1:
        raise DataError(
            f"{record.source}: expected exactly one label, got {len(record.labels)}. "
            'Set task.mode = "multilabel" or mend the row.'
        )
