"""Sites that are periods: patients in order of a date, cut (temporal).

Shapes: P patients.
"""

import datetime
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from medfed.common.errors import DataError
from medfed.common.study import PartitionSection
from medfed.simulations.partition.classes import NOWHERE
from medfed.simulations.partition.cohort import SEPARATOR, Cohort
from medfed.simulations.partition.columns import MAX_MIXED_SHARE, column_values
from medfed.simulations.partition.sizes import site_sizes


def by_date(
    cohort: Cohort, section: PartitionSection, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], dict[str, str]]:
    """Cut the patients, in order of the column's dates, into periods of the sizes asked for.

    A patient counts at the first of his or her dates. Patients of one date are in an order drawn,
    so a date may end one period and begin the next. Patients without a date are left out.

    Returns:
        int64 [P] sites, the earliest first, NOWHERE for patients left out; and why.

    Raises:
        DataError: No such column, values that are no dates, or too few patients.
    """
    values = column_values(cohort, section.column)
    moments = _moments(values, section.column)
    dated = [index for index, moment in enumerate(moments) if moment is not None]
    sizes = site_sizes(len(dated), section, rng)
    ties = rng.random(len(values))
    order = sorted(dated, key=lambda index: (moments[index], ties[index]))
    site_P = np.full(len(values), NOWHERE, dtype=np.int64)
    site_P[order] = np.repeat(np.arange(section.num_sites), sizes)
    left_out = {}
    without = sum(not value for value in values)
    if without:
        left_out[f"no {section.column}"] = f"{without} patient(s) without a value of it"
    unread = len(values) - len(dated) - without
    if unread:
        left_out[f"unreadable {section.column}"] = f"{unread} patient(s) with a value that is none"
    return site_P, left_out


def read_date(text: str) -> float | None:
    """Return a date as days, or None if it is none: 2024, 2024-05, 2024-05-17[T09:30], 20240517.

    A year or month counts as its first day.
    """
    compact = text.replace("-", "")
    if compact.isdecimal() and len(compact) in (4, 6) and len(text) in (4, 7):
        text = f"{compact[:4]}-{compact[4:] or '01'}-01"
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    midnight = datetime.time(tzinfo=moment.tzinfo)
    seconds = (moment - datetime.datetime.combine(moment.date(), midnight)).total_seconds()
    return moment.toordinal() + seconds / 86400


def _moments(values: tuple[str, ...], column: str) -> list[float | None]:
    """Each patient's first moment: dates if most values are dates, else numbers."""
    filled = sum(bool(value) for value in values)
    for read in (read_date, _read_number):
        moments = [_first(value, read) for value in values]
        missing = sum(moment is None for moment in moments) - (len(values) - filled)
        if filled and missing <= MAX_MIXED_SHARE * filled:
            return moments
    raise DataError(
        f'Expected dates (2024-05-17, 20240517, 2024) or numbers in column "{column}" '
        f"(simulation.partition.column), got others for more than {MAX_MIXED_SHARE:.0%} of the "
        "patients. Name a column that says when."
    )


def _first(value: str, read: Callable[[str], float | None]) -> float | None:
    moments = [read(part) for part in value.split(SEPARATOR) if part]
    read_ones = [moment for moment in moments if moment is not None]
    return min(read_ones, default=None)


def _read_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
