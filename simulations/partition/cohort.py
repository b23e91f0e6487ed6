"""`Cohort`: what a partition needs to know about the patients.

Shapes: P patients, L classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from medfed.client.data.store import Store
from medfed.common.errors import DataError

# Joins the values of a patient whose images differ in a column; occurs in no metadata.
SEPARATOR = "\x1f"


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """What a partition needs to know about the patients, one row each, sorted by pseudonym.

    Attributes:
        patients: [P] pseudonyms, sorted, no one twice.
        labels: int64 [P] index of each patient's primary class, L where there is none.
        num_images: int64 [P].
        columns: Metadata by column name, [P] texts each. Where a patient's images differ, the
            distinct values, sorted and joined by `SEPARATOR`.
        classes: [L] names of the classes; empty where no part of the partition names one.
        seen_PL: bool [P, L], whether any image of the patient shows the class; None if that is
            the primary class alone.
    """

    patients: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    num_images: npt.NDArray[np.int64]
    columns: Mapping[str, tuple[str, ...]]
    classes: tuple[str, ...] = ()
    seen_PL: npt.NDArray[np.bool_] | None = field(default=None)

    def __post_init__(self) -> None:
        expected = len(self.patients)
        lengths = {"labels": len(self.labels), "num_images": len(self.num_images)}
        lengths |= {f"column {name}": len(values) for name, values in self.columns.items()}
        if self.seen_PL is not None:
            lengths["seen classes"] = len(self.seen_PL)
        for name, length in lengths.items():
            if length != expected:
                raise DataError(
                    f"Expected {expected} entries of {name}, one a patient, got {length}. "
                    "Build the cohort with cohort_of(store)."
                )
        pairs = zip(self.patients, self.patients[1:], strict=False)
        if any(first >= second for first, second in pairs):
            raise DataError(
                "Expected patients sorted and each once, got another order or one twice. "
                "Build the cohort with cohort_of(store)."
            )

    def class_name(self, label: int) -> str:
        """Return what a message calls the class of index `label`."""
        if label < len(self.classes):
            return self.classes[label]
        return "no class" if self.classes else f"class {label}"

    def shows(self, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return bool [P, len(labels)]: whether a patient shows each of the classes `labels`.

        An index past the classes (L: none of them) is shown by those whose primary class it is.
        """
        shown: npt.NDArray[np.bool_] = self.labels[:, None] == labels[None, :]
        if self.seen_PL is not None:
            known = labels < self.seen_PL.shape[1]
            shown[:, known] |= self.seen_PL[:, labels[known]]
        return shown


def cohort_of(store: Store) -> Cohort:
    """Return the patients of `store`.

    A patient's primary class is the most frequent one over the images, the lowest index on a tie.
    """
    patients, row_of = np.unique(np.asarray(store.patients), return_inverse=True)
    num_classes = len(store.classes)
    counts_PL = np.zeros((len(patients), num_classes), dtype=np.int64)
    if store.labels.ndim == 1:
        np.add.at(counts_PL, (row_of, store.labels), 1)
    else:
        np.add.at(counts_PL, row_of, store.labels.astype(np.int64))
    labels = np.full(len(patients), num_classes, dtype=np.int64)
    labelled = counts_PL.any(axis=1)
    if labelled.any():
        labels[labelled] = counts_PL[labelled].argmax(axis=1)
    return Cohort(
        patients=tuple(str(patient) for patient in patients),
        labels=labels,
        num_images=np.bincount(row_of, minlength=len(patients)).astype(np.int64),
        columns={
            name: _value_of_each(row_of, values, len(patients))
            for name, values in store.columns.items()
        },
        classes=store.classes,
        seen_PL=counts_PL > 0,
    )


def _value_of_each(
    row_of: npt.NDArray[np.intp], values: tuple[str, ...], num_patients: int
) -> tuple[str, ...]:
    seen: list[set[str]] = [set() for _ in range(num_patients)]
    for row, value in zip(row_of, values, strict=True):
        seen[row].add(value)
    return tuple(SEPARATOR.join(sorted(distinct)) for distinct in seen)
