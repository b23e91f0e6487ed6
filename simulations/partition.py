"""Divides a cohort into fake hospitals: IID, Dirichlet label skew, quantity skew, or natural.

Always by patient: all images of a patient end up at one site. Whole patients are counted, so a
site's share of images follows from its patients.

Shapes: P patients, S sites, L classes.
"""

import difflib
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medfed.client.data.store import Store
from medfed.common.errors import DataError
from medfed.common.seeding import numpy_rng
from medfed.common.study import PartitionSection

# Joins the values of a patient whose images differ in a column; occurs in no metadata.
SEPARATOR = "\x1f"

# A few patients seen at two hospitals are left out and reported. More than this share means that
# the column is no property of a patient, so its values cannot be hospitals.
MAX_MIXED_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """What a partition needs to know about the patients, one row each, sorted by pseudonym.

    Attributes:
        patients: [P] pseudonyms, sorted, no one twice.
        labels: int64 [P] index of each patient's primary class, L where there is none.
        num_images: int64 [P].
        columns: Metadata by column name, [P] texts each. Where a patient's images differ, the
            distinct values, sorted and joined by `SEPARATOR`.
    """

    patients: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    num_images: npt.NDArray[np.int64]
    columns: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        expected = len(self.patients)
        lengths = {"labels": len(self.labels), "num_images": len(self.num_images)}
        lengths |= {f"column {name}": len(values) for name, values in self.columns.items()}
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


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Which patient is at which site.

    Attributes:
        sites: Sorted patient indices into the cohort by site name; names sorted, fit for files.
        left_out: What is at no site, and why: values of the natural column.
    """

    sites: Mapping[str, tuple[int, ...]]
    left_out: Mapping[str, str]


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
    )


def partition_patients(cohort: Cohort, section: PartitionSection, *, seed: int) -> Partition:
    """Divide `cohort` into sites as `section` says; the same arguments give the same sites.

    - iid: patients in random order, cut into sites whose sizes differ by at most one.
    - dirichlet: for each class on its own, shares of the sites ~ Dirichlet(alpha, ..., alpha).
      Small alpha is skewed; large alpha has every class in equal parts at every site.
      Hsu et al. 2019, https://arxiv.org/abs/1909.06335
    - quantity: sites' sizes are proportional to exp(sigma Z), Z standard normal; labels are IID.
    - natural: one site for each value of `section.column`. A value with fewer than min_patients,
      patients without a value and (at most 5 % of) patients with two values are left out and
      listed in `left_out`.

    dirichlet and quantity guarantee min_patients by a repair that changes the draw as little as
    it can: while a site has too few, the smallest site takes one patient from the largest (for
    dirichlet, one of the class that the largest has most of).

    Raises:
        DataError: Too few patients for the sites asked for, an unknown or unsuitable column, two
            values with one site name, or no site left after filtering.
    """
    if section.method == "natural":
        return _natural(cohort, section)
    _check_size(len(cohort.patients), section)
    rng = numpy_rng(seed, "partition", section.method)
    if section.method == "dirichlet":
        site_P = _dirichlet(cohort.labels, section, rng)
    else:
        site_P = _by_size(len(cohort.patients), section, rng)
    width = len(str(section.num_sites))
    members = _members(site_P, section.num_sites)
    names = [f"site-{number:0{width}d}" for number in range(1, section.num_sites + 1)]
    return Partition(sites=dict(zip(names, members, strict=True)), left_out={})


def site_name(value: str) -> str:
    """Return `value` as a site name: a-z, 0-9, dot, dash, underscore, at most 64 characters.

    Lower case, since some file systems do not tell cases apart. A value with no such character
    gets a name from its SHA-256.
    """
    plain = unicodedata.normalize("NFKD", value).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9._]+", "-", plain).strip("-._")[:64].rstrip("-._")
    return slug or f"site-{hashlib.sha256(value.encode()).hexdigest()[:8]}"


def _value_of_each(
    row_of: npt.NDArray[np.intp], values: tuple[str, ...], num_patients: int
) -> tuple[str, ...]:
    seen: list[set[str]] = [set() for _ in range(num_patients)]
    for row, value in zip(row_of, values, strict=True):
        seen[row].add(value)
    return tuple(SEPARATOR.join(sorted(distinct)) for distinct in seen)


def _check_size(num_patients: int, section: PartitionSection) -> None:
    needed = section.num_sites * section.min_patients
    if num_patients < needed:
        raise DataError(
            f"Expected at least {needed} patients for {section.num_sites} sites of "
            f"{section.min_patients} or more, got {num_patients}. Lower "
            "simulation.partition.num_sites or min_patients, or use a larger data set."
        )


def _counts(
    shares_S: npt.NDArray[np.float64], total: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Round `total * shares_S` to whole numbers that sum to `total`, each right on average.

    Systematic sampling: plain rounding of cumulated shares would always give a class with a
    single patient to the same site.
    """
    ends = np.cumsum(shares_S)
    cuts = np.floor(total * (ends / ends[-1]) + rng.random()).astype(np.int64)
    cuts[-1] = total
    counts: npt.NDArray[np.int64] = np.diff(np.minimum(cuts, total), prepend=0)
    return counts


def _by_size(
    num_patients: int, section: PartitionSection, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Assign patients at random to sites of given sizes; return int64 [P] site indices."""
    num_sites = section.num_sites
    if section.method == "quantity":
        # Beyond 100 one site has everything anyway, and exp would overflow.
        logs = min(section.sigma, 100.0) * rng.standard_normal(num_sites)
        sizes = _counts(np.exp(logs - logs.max()), num_patients, rng)
        while sizes.min() < section.min_patients:
            sizes[sizes.argmin()] += 1
            sizes[sizes.argmax()] -= 1
    else:
        sizes = np.full(num_sites, num_patients // num_sites)
        sizes[: num_patients % num_sites] += 1
    site_P = np.empty(num_patients, dtype=np.int64)
    site_P[rng.permutation(num_patients)] = np.repeat(np.arange(num_sites), sizes)
    return site_P


def _dirichlet(
    labels: npt.NDArray[np.int64], section: PartitionSection, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Assign the patients of each class by Dirichlet shares; return int64 [P] site indices."""
    # Outside these bounds a class is whole at one site, or in equal parts, and NumPy gives NaN.
    alpha = min(max(section.alpha, 1e-3), 1e6)
    site_P = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(section.num_sites, alpha))
        counts = _counts(shares, len(members), rng)
        site_P[members] = np.repeat(np.arange(section.num_sites), counts)
    sizes = np.bincount(site_P, minlength=section.num_sites)
    while sizes.min() < section.min_patients:
        poor, rich = sizes.argmin(), sizes.argmax()
        at_rich = np.flatnonzero(site_P == rich)
        commonest = np.bincount(labels[at_rich]).argmax()
        site_P[at_rich[labels[at_rich] == commonest][0]] = poor
        sizes[poor] += 1
        sizes[rich] -= 1
    return site_P


def _members(site_P: npt.NDArray[np.int64], num_sites: int) -> list[tuple[int, ...]]:
    return [tuple(np.flatnonzero(site_P == site).tolist()) for site in range(num_sites)]


def _natural(cohort: Cohort, section: PartitionSection) -> Partition:
    values = _natural_values(cohort, section.column)
    mixed = [value for value in values if SEPARATOR in value]
    if len(mixed) > MAX_MIXED_SHARE * len(values):
        raise DataError(
            f'Expected one value of column "{section.column}" a patient, got several for '
            f"{len(mixed)} of {len(values)} patients, so it cannot be the hospital. Name a column "
            "that is the same for all images of a patient, or use another partition method."
        )
    names: dict[str, str] = {}
    sites: dict[str, tuple[int, ...]] = {}
    left_out: dict[str, str] = {}
    for value, count in sorted(Counter(values).items()):
        reason = _reason_to_leave_out(value, count, section)
        if reason:
            left_out[value.replace(SEPARATOR, " and ") or f"no {section.column}"] = reason
            continue
        name = site_name(value)
        if names.setdefault(name, value) != value:
            raise DataError(
                f'Values {names[name]!r} and {value!r} of column "{section.column}" both give the '
                f"site name {name!r}. Rename one of them in the data set's metadata."
            )
        sites[name] = tuple(index for index, other in enumerate(values) if other == value)
    if not sites:
        raise DataError(
            f"No site is left after filtering: expected a value of column "
            f'"{section.column}" with at least {section.min_patients} patients, got '
            + ("; ".join(f"{value}: {reason}" for value, reason in left_out.items()) or "none")
            + ". Lower simulation.partition.min_patients or name another column."
        )
    return Partition(sites=dict(sorted(sites.items())), left_out=left_out)


def _natural_values(cohort: Cohort, column: str) -> tuple[str, ...]:
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


def _reason_to_leave_out(value: str, count: int, section: PartitionSection) -> str:
    if not value:
        return f"{count} patient(s) without a value of {section.column}"
    if SEPARATOR in value:
        return f"{count} patient(s) with images at several sites"
    if count < section.min_patients:
        return f"{count} patient(s), fewer than min_patients = {section.min_patients}"
    return ""
