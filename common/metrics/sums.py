"""Metric sums: integers that add up over images, sites and rounds, bit for bit, in any order."""

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

MetricSums = dict[str, npt.NDArray[np.int64]]
"""Named integer arrays that add up over images, sites and rounds."""

Families = Mapping[str, tuple[str, ...]]
"""Names of sums that leave a site together or not at all, by what a policy calls them. `count`, the
number of images, is in none: it goes with each of them."""

FIXED_POINT = 1 << 20
"""Real values travel in units of 2**-20."""

_MAX_VALUE = 1 << 20


def fixed(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return values >= 0 in units of 2**-20, so that their sum is exact.

    Clipped to 2**20, which leaves room for the sum of 2**22 images; NaN counts as the largest.
    """
    finite = np.clip(np.nan_to_num(values, nan=_MAX_VALUE), 0, _MAX_VALUE)
    return np.rint(finite * FIXED_POINT).astype(np.int64)


def add_sums(parts: Iterable[MetricSums]) -> MetricSums:
    """Return the sum of `parts`; integer addition, so the order does not matter."""
    total: MetricSums = {}
    for part in parts:
        for name, values in part.items():
            total[name] = total[name] + values if name in total else values.copy()
    return total


def holds(sums: MetricSums, names: Iterable[str]) -> bool:
    """Whether all of `names` are there: a site may keep some to itself."""
    return all(name in sums for name in names)


def of_families(sums: MetricSums, families: Families, chosen: Iterable[str]) -> MetricSums:
    """Return the count and those sums of `chosen` families that are there."""
    kept = {"count", *(name for family in chosen for name in families.get(family, ()))}
    return {name: values for name, values in sums.items() if name in kept}


def ratio(numerator: int, denominator: int) -> float | None:
    """Return the quotient, or None where it is undefined."""
    return numerator / denominator if denominator else None


def mean_of_defined(values: Iterable[float | None]) -> float | None:
    """Return the mean of those values that are defined, or None if none is."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def only_defined(figures: dict[str, float | None]) -> dict[str, float]:
    """Return `figures` without those that are None."""
    return {key: value for key, value in figures.items() if value is not None}
