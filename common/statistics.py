"""What a site may say of its training patients, and how much of it one patient can change.

A *quantity* is an array that a site releases. All of them are sums over its patients; a patient
adds a vector without negative parts whose L2 norm is at most the quantity's `bound`:

    patients            1: every patient counts once
    images              the patient's images; under noise at most K of them (K is the study's
                        privacy.images_per_patient)
    images_per_patient  1 in the bin of how many images the patient has
    classes             1 in each class that one of the patient's images shows; under noise in
                        L of them at most (statistics.classes_per_patient): L2 norm sqrt(L)
    intensities         the histogram of the patient's grey levels, mean over the images, each
                        with a sum of 1 a channel: L2 norm at most sqrt(channels)
    sizes               1 in the bin of the longest side of the patient's largest image, in pixels
                        or voxels; only where images keep their size (data.fit = "patch"). With
                        "resize" all have the study's size, which is no news

Without noise, `intensities` leaves as shares with a sum of 1, and what must not be said is NaN.

Shapes: L classes, C channels of all views, B bins.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medfed.common.study import StudyConfig

Floats = npt.NDArray[np.float64]
Values = Mapping[str, Floats]

# The first of each bin; the last bin is open.
IMAGES_PER_PATIENT = (1, 2, 3, 5, 9, 17)
SIZES = (1, 65, 129, 257, 513, 1025, 2049, 4097)


@dataclass(frozen=True)
class Quantity:
    """One array that a site releases.

    Attributes:
        name: As in the list above, which is its name in messages and files too.
        shape: Known from the study alone.
        bound: The largest L2 norm of what one patient adds to it.
    """

    name: str
    shape: tuple[int, ...]
    bound: float


def quantities(study: StudyConfig) -> tuple[Quantity, ...]:
    """Return what `study` asks a site for, in the order of release. Public: no data decides it."""
    asked, channels = study.statistics, study.data.total_channels
    num_classes = len(study.task.label_names)
    found = [
        Quantity("patients", (1,), 1.0),
        Quantity("images", (1,), float(study.privacy.images_per_patient)),
        Quantity("images_per_patient", (len(IMAGES_PER_PATIENT),), 1.0),
    ]
    if num_classes:
        most = min(asked.classes_per_patient, num_classes)
        found.append(Quantity("classes", (num_classes,), math.sqrt(most)))
    found.append(Quantity("intensities", (channels, asked.bins), math.sqrt(channels)))
    if study.data.fit == "patch":
        found.append(Quantity("sizes", (len(SIZES),), 1.0))
    return tuple(found)


def sensitivity(study: StudyConfig) -> float:
    """Return how far one patient more or less moves all quantities, each over its bound (L2)."""
    return math.sqrt(len(quantities(study)))


def standard_errors(study: StudyConfig) -> dict[str, float]:
    """Return the standard deviation of the noise on each number of a quantity, by name.

    0.0 for all without noise. That of `intensities` is in patients, as the sums are.
    """
    noise = (study.statistics.noise_multiplier or 0.0) * sensitivity(study)
    return {quantity.name: noise * quantity.bound for quantity in quantities(study)}


def bin_labels(starts: tuple[int, ...]) -> tuple[str, ...]:
    """Name bins by their first and last number: "1", "3-4", "17+"."""
    following = (*(start - 1 for start in starts[1:]), None)
    return tuple(
        f"{first}+" if last is None else str(first) if first == last else f"{first}-{last}"
        for first, last in zip(starts, following, strict=True)
    )


def to_lists(values: Values) -> dict[str, list[object]]:
    """Return values as JSON writes them: None for what was not said."""
    return {
        name: np.where(np.isnan(array), None, array.astype(object)).tolist()  # type: ignore[call-overload]
        for name, array in values.items()
    }


def from_lists(table: Mapping[str, object], study: StudyConfig) -> dict[str, Floats]:
    """Read back what `to_lists` wrote.

    Raises:
        ValueError, TypeError: Other names or shapes than `study` asks for.
    """
    asked = quantities(study)
    if list(sorted(table)) != sorted(quantity.name for quantity in asked):
        raise ValueError(f"expected {', '.join(q.name for q in asked)}, got {', '.join(table)}")
    values = {q.name: np.array(table[q.name], dtype=np.float64) for q in asked}
    for quantity in asked:
        if values[quantity.name].shape != quantity.shape:
            raise ValueError(
                f"expected {quantity.name} of shape {quantity.shape}, "
                f"got {values[quantity.name].shape}"
            )
    return values
