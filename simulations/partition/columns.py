"""Sites that a metadata column names: hospitals (natural) or scanners.

Shapes: P patients.
"""

import difflib
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping

from medfed.common.errors import DataError
from medfed.common.study import PartitionSection
from medfed.simulations.partition.cohort import SEPARATOR, Cohort

# A few patients seen at two hospitals are left out and reported. More than this share means that
# the column is no property of a patient, so its values cannot be hospitals.
MAX_MIXED_SHARE = 0.05

# What archives and data sets call the machine, best first; letters and digits only, lower case.
SCANNER_COLUMNS = (
    ("scanner",),
    ("manufacturer", "manufacturermodelname"),
    ("manufacturer", "model"),
    ("manufacturermodelname",),
    ("model",),
    ("device",),
    ("manufacturer",),
)


def by_column(
    cohort: Cohort, section: PartitionSection
) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Return patients by site, one for each value of the column, and what is left out and why.

    Raises:
        DataError: An unknown or unsuitable column, two values with one site name, or no site left.
    """
    if section.method == "scanner":
        column, values = _scanners(cohort, section.column)
    else:
        column, values = section.column, column_values(cohort, section.column)
    mixed = [value for value in values if SEPARATOR in value]
    if len(mixed) > MAX_MIXED_SHARE * len(values):
        raise DataError(
            f'Expected one value of column "{column}" a patient, got several for '
            f"{len(mixed)} of {len(values)} patients, so it cannot be the hospital. Name a column "
            "that is the same for all images of a patient, or use another partition method."
        )
    names: dict[str, str] = {}
    sites: dict[str, tuple[int, ...]] = {}
    left_out: dict[str, str] = {}
    for value, count in sorted(Counter(values).items()):
        reason = _reason_to_leave_out(value, count, column, section.min_patients)
        if reason:
            left_out[value.replace(SEPARATOR, " and ") or f"no {column}"] = reason
            continue
        name = site_name(value)
        if names.setdefault(name, value) != value:
            raise DataError(
                f'Values {names[name]!r} and {value!r} of column "{column}" both give the '
                f"site name {name!r}. Rename one of them in the data set's metadata."
            )
        sites[name] = tuple(index for index, other in enumerate(values) if other == value)
    check_some_left(sites, left_out, f'a value of column "{column}"', section.min_patients)
    return dict(sorted(sites.items())), left_out


def site_name(value: str) -> str:
    """Return `value` as a site name: a-z, 0-9, dot, dash, underscore, at most 64 characters.

    Lower case, since some file systems do not tell cases apart. A value with no such character
    gets a name from its SHA-256.
    """
    plain = unicodedata.normalize("NFKD", value).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9._]+", "-", plain).strip("-._")[:64].rstrip("-._")
    return slug or f"site-{hashlib.sha256(value.encode()).hexdigest()[:8]}"


def check_some_left(
    sites: Mapping[str, object], left_out: Mapping[str, str], expected: str, min_patients: int
) -> None:
    """Refuse a partition without sites.

    Raises:
        DataError: With what was left out.
    """
    if not sites:
        raise DataError(
            f"No site is left after filtering: expected {expected} with at least "
            f"{min_patients} patients, got "
            + ("; ".join(f"{value}: {reason}" for value, reason in left_out.items()) or "none")
            + ". Lower simulation.partition.min_patients or name another column."
        )


def column_values(cohort: Cohort, column: str) -> tuple[str, ...]:
    """Return the value of `column` of each patient, several joined by `SEPARATOR`.

    Raises:
        DataError: No such column; names the nearest.
    """
    if column not in cohort.columns:
        known = sorted(cohort.columns)
        nearest = difflib.get_close_matches(column, known, n=1, cutoff=0.5)
        hint = (
            f"Did you mean {nearest[0]}?" if nearest else f"It has: {', '.join(known) or 'none'}."
        )
        raise DataError(
            f'Expected a metadata column "{column}" (simulation.partition.column) in the data '
            f"set, got none of that name. {hint}"
        )
    return tuple(
        # A missing value contradicts no other.
        SEPARATOR.join(sorted({part.strip() for part in value.split(SEPARATOR)} - {""}))
        for value in cohort.columns[column]
    )


def _scanners(cohort: Cohort, column: str) -> tuple[str, tuple[str, ...]]:
    """The column or columns that name the machine, and each patient's value.

    Archives spell one machine in several ways: case and spaces tell none apart.
    """
    spelt = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in sorted(cohort.columns)}
    columns: tuple[str, ...] = (column,) if column else ()
    for wanted in SCANNER_COLUMNS:
        if not columns and all(name in spelt for name in wanted):
            columns = tuple(spelt[name] for name in wanted)
    if not columns:
        raise DataError(
            "Expected a metadata column that names the scanner (scanner, manufacturer, model, "
            f"...), got {', '.join(sorted(cohort.columns)) or 'none'}. Name it with "
            "simulation.partition.column."
        )
    parts = zip(*(column_values(cohort, name) for name in columns), strict=True)
    return " and ".join(columns), tuple(_spelt_alike(" ".join(part)) for part in parts)


def _spelt_alike(value: str) -> str:
    spellings = {" ".join(part.casefold().split()) for part in value.split(SEPARATOR)}
    return SEPARATOR.join(sorted(spellings - {""}))


def _reason_to_leave_out(value: str, count: int, column: str, min_patients: int) -> str:
    if not value:
        return f"{count} patient(s) without a value of {column}"
    if SEPARATOR in value:
        return f"{count} patient(s) with images at several sites"
    if count < min_patients:
        return f"{count} patient(s), fewer than min_patients = {min_patients}"
    return ""
