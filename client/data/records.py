"""`SourceRecord`: one image with what is known about it, before it enters a store.

Data set loaders in `simulations.datasets` and a hospital's own archive both yield these.

Shapes: [H, W] or [H, W, C] in a 2-D data set, [D, H, W] or [D, H, W, C] in a 3-D one; C is 1 to 4.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Split = Literal["train", "test"]


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """One image of one patient, or one examination in several views.

    Attributes:
        record_id: Unique in the data set, e.g. the image's published identifier.
        patient_id: Raw patient key. Only its keyed pseudonym is ever stored.
        labels: Class names: exactly one (multiclass) or any number (multilabel).
        source: What an error about this record names: a file, or a file and a row.
        read_image: Decodes the image: uint8 or float, 0..255. Raises UnreadableImageError.
        read_mask: Decodes the mask, if there is one: uint8, 0 background and i + 1 for the data
            set's structure i, or bit i for region i where regions overlap. A 2-D mask may be of
            another size than its image, in the same proportions; a 3-D one may not.
        report: Free text of the report, if there is one.
        split: The data set's official split, if it has one that respects patients.
        columns: Metadata by column name, as text (e.g. dataset, sex, scanner): natural partitions
            and subgroups.
        views: Reader by view or modality (frontal, lateral; t1, flair) where one examination has
            several; a view that is missing is left out. `read_image` is then the first one's.
        spacing_mm: Size of a voxel along each axis, if it is known.
    """

    record_id: str
    patient_id: str
    labels: tuple[str, ...]
    source: str
    read_image: Callable[[], npt.NDArray[np.generic]]
    read_mask: Callable[[], npt.NDArray[np.uint8]] | None = None
    report: str = ""
    split: Split | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    views: Mapping[str, Callable[[], npt.NDArray[np.generic]]] = field(default_factory=dict)
    spacing_mm: tuple[float, ...] | None = None


@dataclass(frozen=True)
class UnusableSource:
    """What should have been a record and cannot be one. Names files: never leaves this machine."""

    source: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class SourceDataset:
    """What a loader returns: the records and the facts that a store and a report state about them.

    Attributes:
        name: The data set's published name.
        licence: One line.
        citation: One line.
        classes: Every class name of the data set, in its published order.
        records: In a fixed order (sorted by record_id unless the data set has its own order).
        digest: SHA-256 over the source files' content (or the generator's parameters and version):
            the same digest means the same records and pixels.
        structures: What masks delineate, in the order of their indices or bits.
        dimensions: 2 for images, 3 for volumes.
        unusable: What gave no record, each with its reason: a store lists it in quarantine.jsonl.
    """

    name: str
    licence: str
    citation: str
    classes: tuple[str, ...]
    records: tuple[SourceRecord, ...]
    digest: str
    structures: tuple[str, ...] = ()
    dimensions: Literal[2, 3] = 2
    unusable: tuple[UnusableSource, ...] = ()
