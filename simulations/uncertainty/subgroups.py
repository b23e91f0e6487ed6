"""Figures of subgroups: does the model serve women and men, old and young alike?

A column of words has a group for each value; one of numbers is cut at its terciles.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from medfed.common.text import finite_number
from medfed.simulations.uncertainty.bootstrap import Figures, draw_counts, interval, resampled
from medfed.simulations.uncertainty.patient_sums import PatientSums

if TYPE_CHECKING:
    from medfed.common.tasks import Figure

UNKNOWN = "not known"
# A gap between groups of a few patients is noise.
_FEWEST_FOR_A_GAP = 10
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


class Compared(NamedTuple):
    """A column's groups.

    Attributes:
        groups: Patients, figures with intervals, and whether gaps are over it, by group.
        gaps: By figure the groups that do best and worst, and the difference with its interval.
    """

    groups: dict[str, Any]
    gaps: dict[str, Any]


def compare_groups(
    sums: PatientSums,
    column: str,
    figures: "Sequence[Figure]",
    *,
    resamples: int,
    rng: np.random.Generator,
) -> Compared:
    """Return what the groups of a column have, and how far they are apart.

    Args:
        sums: Of one model.
        column: A column that `sums` has.
        figures: What to compare.
        resamples: Of each group's own patients, within sites.
        rng: Draws them.
    """
    keys = [figure.key for figure in figures]
    complete = set(sums.figures(np.ones(len(sums), dtype=np.int64)))
    table: dict[str, Any] = {}
    comparable = []
    draws: dict[str, Figures] = {}
    for name, members in groups_of(sums.columns[column]).items():
        mine = np.flatnonzero(members)
        counts_RP = np.zeros((resamples, len(sums)), dtype=np.int64)
        counts_RP[:, mine] = draw_counts([sums.sites[i] for i in mine], resamples, rng)
        found = sums.figures(members.astype(np.int64))
        draws[name] = resampled(sums, counts_RP, keys)
        # A group without a case of a class has a mean over fewer of them.
        is_whole = len(mine) >= _FEWEST_FOR_A_GAP and set(found) == complete
        table[name] = {
            "patients": len(mine),
            "figures": {key: interval(found.get(key), draws[name][key]).to_dict() for key in keys},
            "in_gap": name != UNKNOWN and is_whole,
        }
        if table[name]["in_gap"]:
            comparable.append(name)
    gaps = {one.key: _gap(comparable, table, draws, one) for one in figures}
    return Compared(table, {key: gap for key, gap in gaps.items() if gap is not None})


def _gap(
    names: Sequence[str], table: Mapping[str, Any], draws: Mapping[str, Figures], figure: "Figure"
) -> dict[str, Any] | None:
    """Return best minus worst of the groups that can be compared, None with fewer than two.

    The two groups stay the same in all resamples: of the largest difference in each, no interval
    could hold zero.
    """
    values = {name: table[name]["figures"][figure.key]["value"] for name in names}
    known = {name: value for name, value in values.items() if value is not None}
    if len(known) < 2 or figure.higher_is_better is None:
        return None
    low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    best, worst = (high, low) if figure.higher_is_better else (low, high)
    between = draws[best][figure.key] - draws[worst][figure.key]
    return {
        "best": best,
        "worst": worst,
        **interval(known[best] - known[worst], between).to_dict(),
    }
