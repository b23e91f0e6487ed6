"""Figures of subgroups: does the model serve women and men, old and young alike?

A column of words has a group for each value; one of numbers is cut at its terciles.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medfed.common.text import finite_number
from medfed.simulations.uncertainty.bootstrap import draw_counts, interval, resampled
from medfed.simulations.uncertainty.patient_sums import PatientSums

UNKNOWN = "not known"
_MOST_GROUPS = 12
_MOST_NUMBERS = 6


def groups_of(values: Sequence[str]) -> dict[str, npt.NDArray[np.bool_]]:
    """Return who is in which group, [P] each; no more than twelve groups, the largest first.

    Args:
        values: Each patient's value; empty where it is not known.
    """
    numbers = [finite_number(value) for value in values]
    known = [number for number in numbers if number is not None]
    all_numbers = len(known) == sum(bool(value) for value in values)
    if known and all_numbers and len(set(known)) > _MOST_NUMBERS:
        return _terciles(numbers, known)
    names = sorted(set(values), key=lambda value: (-values.count(value), value))
    texts = np.array(values)
    return {name or UNKNOWN: texts == name for name in names[:_MOST_GROUPS]}


def _terciles(
    numbers: Sequence[float | None], known: Sequence[float]
) -> dict[str, npt.NDArray[np.bool_]]:
    low, high = np.quantile(known, [1 / 3, 2 / 3])
    array = np.array([math.nan if number is None else number for number in numbers])
    groups = {
        f"up to {low:g}": array <= low,
        f"{low:g} to {high:g}": (array > low) & (array <= high),
        f"above {high:g}": array > high,
        UNKNOWN: np.isnan(array),
    }
    return {name: members for name, members in groups.items() if members.any()}


def compare_groups(
    sums: PatientSums, column: str, keys: Sequence[str], *, resamples: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Return patients and figures with intervals of each group of a column.

    Args:
        sums: Of one model.
        column: A column that `sums` has.
        keys: Figures.
        resamples: Of each group's own patients, within sites.
        rng: Draws them.
    """
    table: dict[str, Any] = {}
    for name, members in groups_of(sums.columns[column]).items():
        mine = np.flatnonzero(members)
        counts_RP = np.zeros((resamples, len(sums)), dtype=np.int64)
        counts_RP[:, mine] = draw_counts([sums.sites[i] for i in mine], resamples, rng)
        figures = sums.figures(members.astype(np.int64))
        draws = resampled(sums, counts_RP, keys)
        table[name] = {
            "patients": len(mine),
            "figures": {key: interval(figures.get(key), draws[key]).to_dict() for key in keys},
        }
    return table
