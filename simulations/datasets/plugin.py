"""A researcher's own data set, from a package of their own (ADR 26). For simulations only."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic, Literal, TypeVar

from medfed.client.data.records import SourceDataset, SourceRecord, Split
from medfed.common.errors import StudyError
from medfed.common.plugins.loading import blaming, load_plugin
from medfed.common.study import Section, StudyConfig
from medfed.simulations.datasets.digests import dataset_digest, file_digest
from medfed.simulations.datasets.pictures import read_picture

Options = TypeVar("Options", bound=Section)


@dataclass(frozen=True)
class DatasetPlugin(Generic[Options]):
    """A data set; its entry point is in the group `medfed.datasets`.

    Attributes:
        options: What `[simulation.options]` may hold.
        load: From these and the folder or file of `--data` (none, if nobody gave it) to the
            records; of picture files `dataset_of_pictures` makes them. Their `digest` is of all
            that they depend on: stores are kept by it.
    """

    options: type[Options]
    load: Callable[[Options, Path | None], SourceDataset]


@dataclass(frozen=True)
class Picture:
    """A picture file of a data set, and what is known of it.

    Attributes:
        file: PNG, JPEG or TIFF.
        patient: Whose it is; only a keyed pseudonym is ever stored.
        labels: Names of its classes: exactly one (multiclass) or any number (multilabel).
        split: Where the data set has one that respects patients.
        columns: Metadata by column name, as text.
    """

    file: Path
    patient: str
    labels: tuple[str, ...]
    split: Split | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


def dataset_of_pictures(
    pictures: Sequence[Picture],
    root: Path,
    *,
    mode: Literal["L", "RGB"] = "L",
    licence: str = "not stated",
    citation: str = "not stated",
) -> SourceDataset:
    """Return the data set of `pictures`, named like `root`; its digest is of all that is in it.

    Its classes are those that pictures show, by name. Masks, reports, volumes and views need
    records of their own (`SourceRecord`).

    Args:
        pictures: In the order of the records.
        root: Folder that holds them; records are named by their paths in it.
        mode: Grey or colour.
        licence: One line, for stores and reports.
        citation: One line.
    """
    records = tuple(
        SourceRecord(
            record_id=one.file.relative_to(root).as_posix(),
            patient_id=one.patient,
            labels=one.labels,
            source=str(one.file),
            read_image=partial(read_picture, one.file, mode),
            split=one.split,
            columns=one.columns,
        )
        for one in pictures
    )
    facts = (
        (
            *(record.record_id, record.patient_id, record.split or ""),
            *(json.dumps(part) for part in (record.labels, dict(record.columns))),
            file_digest(one.file),
        )
        for one, record in zip(pictures, records, strict=True)
    )
    return SourceDataset(
        name=root.name,
        licence=licence,
        citation=citation,
        classes=tuple(sorted({label for record in records for label in record.labels})),
        records=records,
        digest=dataset_digest(f"pictures 1, {mode}", facts),
    )


def load_plugin_dataset(study: StudyConfig, data: Path | None) -> SourceDataset:
    """Return the data set that a plug-in makes of `data`.

    Raises:
        StudyError: The plug-in cannot be had, or failed.
        DataError: What it says of files that are missing or malformed.
    """
    loaded = load_plugin(study, "dataset", DatasetPlugin)
    with blaming(loaded.origin):
        dataset = loaded.plugin.load(loaded.options, data)
    if not isinstance(dataset, SourceDataset):
        raise StudyError(
            f"The {loaded.origin}: expected a SourceDataset, got {type(dataset).__name__}. That is "
            "for the package's authors to mend."
        )
    return dataset
