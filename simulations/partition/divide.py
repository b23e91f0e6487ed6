"""`partition_patients`: a study's partition of a cohort, from beginning to end.

Shapes: P patients, S sites.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from medfed.common.seeding import numpy_rng
from medfed.common.study import PartitionSection
from medfed.simulations.partition.classes import (
    NOWHERE,
    lacking,
    move_from_lacking,
    pathological,
)
from medfed.simulations.partition.cohort import Cohort
from medfed.simulations.partition.columns import by_column, check_some_left
from medfed.simulations.partition.dates import by_date
from medfed.simulations.partition.drawn import by_size, dirichlet
from medfed.simulations.partition.repair import fill_up


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Which patient is at which site.

    Attributes:
        sites: Sorted patient indices into the cohort by site name; names sorted, fit for files.
        left_out: What is at no site, and why: values of the column, classes, dates.
    """

    sites: Mapping[str, tuple[int, ...]]
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class _Draft:
    """A division on the way.

    Attributes:
        names: Site names, sorted.
        site_P: int64 [P] sites, NOWHERE for patients left out.
        left_out: What is left out so far, and why.
        may_be_PS: Where each patient may be moved to; None where sites are real and nobody moves.
    """

    names: tuple[str, ...]
    site_P: npt.NDArray[np.int64]
    left_out: dict[str, str] = field(default_factory=dict)
    may_be_PS: npt.NDArray[np.bool_] | None = None


def partition_patients(cohort: Cohort, section: PartitionSection, *, seed: int) -> Partition:
    """Divide `cohort` into sites as `section` says; the same arguments give the same sites.

    - iid: patients in random order, cut into sites whose sizes differ by at most one.
    - quantity: iid with sizes that differ, log-normal unless `section.sizes` says otherwise.
    - dirichlet: for each class on its own, shares of the sites ~ Dirichlet(alpha, ..., alpha).
      Small alpha is skewed; large alpha has every class in equal parts at every site.
      Hsu et al. 2019, https://arxiv.org/abs/1909.06335
    - pathological: classes_per_site primary classes at each site; patients of classes that no site
      was dealt are left out and listed. Who has several labels brings the others along.
    - natural, scanner: one site for each value of a column. A value with fewer than min_patients,
      patients without a value and (at most 5 % of) patients with two values are left out and
      listed in `left_out`.
    - temporal: patients in order of a date, cut; the first site has the earliest.

    `section.missing` then takes classes from sites. Their patients go to the other sites, as their
    class is spread there; where sites are real (natural, scanner, temporal) they are left out.

    Drawn sites have min_patients by a repair that changes the draw as little as it can: while a
    site has too few, the smallest takes one patient from the largest, of the class that this one
    has most of. Natural sites and periods with fewer are left out.

    Raises:
        DataError: Too few patients for the sites asked for, an unknown or unsuitable column, two
            values with one site name, or no site left after filtering.
    """
    draft = _divide(cohort, section, seed)
    if section.missing is not None:
        rng = numpy_rng(seed, "partition", "missing")
        lacked_PS = lacking(cohort, draft.names, section.missing, rng)
        draft = _without(draft, cohort.labels, lacked_PS, rng)
    if draft.may_be_PS is None:
        return _without_small_sites(draft, section.min_patients)
    site_P = fill_up(
        draft.site_P,
        cohort.labels,
        draft.may_be_PS,
        section.min_patients,
        keep_classes=section.method == "pathological",
    )
    left_out = dict(draft.left_out)
    nowhere = Counter(cohort.labels[site_P == NOWHERE].tolist())
    for label, count in sorted(nowhere.items()):
        left_out[cohort.class_name(label)] = (
            f"{count} patient(s) with a class, or classes together, that no site has"
        )
    return Partition(sites=_members(draft.names, site_P), left_out=left_out)


def _divide(cohort: Cohort, section: PartitionSection, seed: int) -> _Draft:
    if section.method in ("natural", "scanner"):
        sites, left_out = by_column(cohort, section)
        site_P = np.full(len(cohort.patients), NOWHERE, dtype=np.int64)
        for number, members in enumerate(sites.values()):
            site_P[list(members)] = number
        return _Draft(tuple(sites), site_P, left_out)
    width = len(str(section.num_sites))
    names = tuple(f"site-{number:0{width}d}" for number in range(1, section.num_sites + 1))
    # iid with sizes that differ is what quantity is.
    quantity = section.method == "iid" and section.size_law != "equal"
    rng = numpy_rng(seed, "partition", "quantity" if quantity else section.method)
    size_rng = numpy_rng(seed, "partition", "sizes")
    if section.method == "temporal":
        return _Draft(names, *by_date(cohort, section, rng))
    if section.method == "pathological":
        site_P, may_be_PS = pathological(cohort.labels, section, rng, size_rng)
        return _Draft(names, site_P, may_be_PS=may_be_PS)
    if section.method == "dirichlet":
        site_P = dirichlet(cohort.labels, section, rng, size_rng)
    else:
        site_P = by_size(len(cohort.patients), section, rng)
    anywhere_PS = np.broadcast_to(np.True_, (len(site_P), len(names)))
    return _Draft(names, site_P, may_be_PS=anywhere_PS)


def _without(
    draft: _Draft,
    labels: npt.NDArray[np.int64],
    lacked_PS: npt.NDArray[np.bool_],
    rng: np.random.Generator,
) -> _Draft:
    """Take from each site the patients of the classes that it lacks."""
    if draft.may_be_PS is not None:
        moved_P = move_from_lacking(draft.site_P, labels, lacked_PS, rng)
        return replace(draft, site_P=moved_P, may_be_PS=draft.may_be_PS & ~lacked_PS)
    left_out = dict(draft.left_out)
    site_P = draft.site_P.copy()
    for number, name in enumerate(draft.names):
        leaving = (site_P == number) & lacked_PS[:, number]
        if leaving.any():
            left_out[f"{name}, missing classes"] = (
                f"{leaving.sum()} patient(s) of classes that the site lacks"
            )
            site_P[leaving] = NOWHERE
    return replace(draft, site_P=site_P, left_out=left_out)


def _without_small_sites(draft: _Draft, min_patients: int) -> Partition:
    sites = _members(draft.names, draft.site_P)
    small = {name: len(members) for name, members in sites.items() if len(members) < min_patients}
    left_out = dict(draft.left_out) | {
        name: f"{count} patient(s) left, fewer than min_patients = {min_patients}"
        for name, count in small.items()
    }
    kept = {name: members for name, members in sites.items() if name not in small}
    check_some_left(kept, left_out, "a site", min_patients)
    return Partition(sites=kept, left_out=left_out)


def _members(names: tuple[str, ...], site_P: npt.NDArray[np.int64]) -> dict[str, tuple[int, ...]]:
    order = np.argsort(site_P, kind="stable")
    starts = np.searchsorted(site_P[order], np.arange(len(names) + 1))
    return {
        name: tuple(order[start:end].tolist())
        for name, start, end in zip(names, starts[:-1], starts[1:], strict=True)
    }
