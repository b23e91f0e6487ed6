"""Sites that have some classes only: a given number each (pathological), or all but some (missing).

Shapes: P patients, S sites, L classes.
"""

import difflib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medfed.common.errors import DataError
from medfed.common.study import PartitionSection
from medfed.common.study.simulation import MissingSection
from medfed.simulations.partition.cohort import Cohort
from medfed.simulations.partition.sizes import check_size, relative_sizes, whole_shares

NOWHERE = -1


def pathological(
    labels: npt.NDArray[np.int64],
    section: PartitionSection,
    rng: np.random.Generator,
    size_rng: np.random.Generator,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Give each site exactly classes_per_site classes, and divide each class among its sites.

    Classes are dealt so that each is at as many sites as any other, as far as it has patients for
    them; which, is drawn. A class's patients are divided in the proportion of the sites' relative
    sizes (equal parts, if sizes are equal), at least one for each. McMahan et al. 2017,
    https://arxiv.org/abs/1602.05629, section 3, with whole classes in place of shards.

    Args:
        labels: int64 [P], the class of each patient.
        section: classes_per_site, num_sites and sizes.
        rng: Of who has which class and who goes where.
        size_rng: Of the relative sizes.

    Returns:
        int64 [P] sites, NOWHERE where no site has the class, and bool [P, S], where a patient may
        be.

    Raises:
        DataError: Too few patients, or too few classes that have a patient for each site.
    """
    check_size(len(labels), section)
    present, sizes_L = np.unique(labels, return_counts=True)
    if section.classes_per_site > len(present):
        raise DataError(
            f"Expected at least {section.classes_per_site} classes "
            f"(simulation.partition.classes_per_site), got {len(present)}. Lower it."
        )
    has_SL = deal(section.num_sites, section.classes_per_site, sizes_L, rng)
    if has_SL is None:
        raise DataError(
            f"Expected classes with patients enough for {section.num_sites} sites of "
            f"{section.classes_per_site} classes, got classes of "
            f"{', '.join(map(str, sorted(sizes_L.tolist())))} patients. Lower "
            "simulation.partition.num_sites or classes_per_site."
        )
    relative = relative_sizes(section, size_rng)
    site_P = np.full(len(labels), NOWHERE, dtype=np.int64)
    for index, label in enumerate(present):
        holders = np.flatnonzero(has_SL[:, index])
        if not len(holders):
            continue
        members = rng.permutation(np.flatnonzero(labels == label))
        counts = 1 + whole_shares(relative[holders], len(members) - len(holders), rng)
        site_P[members] = np.repeat(holders, counts)
    may_be_PS = has_SL[:, np.searchsorted(present, labels)].T
    return site_P, may_be_PS


def lacking(
    cohort: Cohort, names: Sequence[str], section: MissingSection, rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Return bool [P, S]: whether a patient shows a class that the site lacks.

    Classes to lack are given by site, or drawn so that each is lacked by as many sites as any
    other, and by not all.

    Raises:
        DataError: An unknown site or class, or more classes asked for than there are to lack.
    """
    if section.at_sites:
        lacks_SL = _given(cohort, names, section)
        return cohort.shows(np.arange(lacks_SL.shape[1])) @ lacks_SL.T
    seen = np.arange(len(cohort.classes)) if cohort.classes else np.unique(cohort.labels)
    shown_PL = cohort.shows(seen)
    present_L = shown_PL.any(axis=0)
    shown_PL = shown_PL[:, present_L]
    at_most = np.full(shown_PL.shape[1], len(names) - 1)
    dealt_SL = deal(len(names), section.num_classes or 0, at_most, rng)
    if dealt_SL is None:
        raise DataError(
            f"{len(names)} site(s) that lack {section.num_classes} of {len(at_most)} classes each "
            "would leave a class at no site. Lower simulation.partition.missing.num_classes."
        )
    return shown_PL @ dealt_SL.T


def deal(
    num_sites: int, num_each: int, at_most_L: npt.NDArray[np.int64], rng: np.random.Generator
) -> npt.NDArray[np.bool_] | None:
    """Deal `num_each` different classes to each site, every class as often as any other.

    Args:
        num_sites: S.
        num_each: Classes for each site.
        at_most_L: How often a class may be dealt.
        rng: Of the order of sites and, among classes dealt equally often, of the choice.

    Returns:
        bool [S, L], or None where a site would get too few.
    """
    dealt_SL = np.zeros((num_sites, len(at_most_L)), dtype=np.bool_)
    for site in rng.permutation(num_sites):
        times_L = dealt_SL.sum(axis=0)
        order = np.lexsort((rng.random(len(times_L)), times_L))
        chosen = order[times_L[order] < at_most_L[order]][:num_each]
        if len(chosen) < num_each:
            return None
        dealt_SL[site, chosen] = True
    return dealt_SL


def move_from_lacking(
    site_P: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    lacked_PS: npt.NDArray[np.bool_],
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Move patients whose class their site lacks to the others, as their class is spread there.

    Who shows a class that every site lacks goes NOWHERE.
    """
    moved_P = site_P.copy()
    placed = site_P != NOWHERE
    wrong_P = placed & lacked_PS[np.arange(len(site_P)), np.maximum(site_P, 0)]
    num_sites = lacked_PS.shape[1]
    for label in np.unique(labels[wrong_P]):
        stays = placed & ~wrong_P & (labels == label)
        counts_S = np.bincount(site_P[stays], minlength=num_sites).astype(np.float64)
        for patient in np.flatnonzero(wrong_P & (labels == label)):
            free_S = ~lacked_PS[patient]
            weights = counts_S * free_S
            if not weights.any():
                weights = free_S.astype(np.float64)
            moved_P[patient] = (
                rng.choice(num_sites, p=weights / weights.sum()) if weights.any() else NOWHERE
            )
    return moved_P


def _given(cohort: Cohort, names: Sequence[str], section: MissingSection) -> npt.NDArray[np.bool_]:
    lacks_SL = np.zeros((len(names), len(cohort.classes)), dtype=np.bool_)
    for site, classes in section.at_sites.items():
        row = names.index(known(site, names, "simulation.partition.missing.at_sites", "site"))
        for name in classes:
            found = known(name, cohort.classes, f"simulation.partition.missing.at_sites.{site}")
            lacks_SL[row, cohort.classes.index(found)] = True
    return lacks_SL


def known(name: str, names: Sequence[str], key: str, kind: str = "class") -> str:
    """Return `name` if it is one of `names`.

    Raises:
        DataError: It is not; names the nearest.
    """
    if name in names:
        return name
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"Did you mean {nearest[0]}?" if nearest else f"There are: {', '.join(names)}."
    raise DataError(f'{key}: expected a {kind} of this partition, got "{name}". {hint}')
