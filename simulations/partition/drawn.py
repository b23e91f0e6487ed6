"""Sites that a draw makes: iid and quantity by their size alone, dirichlet by class.

Shapes: P patients, S sites.
"""

import numpy as np
import numpy.typing as npt

from medfed.common.study import PartitionSection
from medfed.simulations.partition.sizes import check_size, relative_sizes, site_sizes, whole_shares

# Outside these bounds a class is whole at one site, or in equal parts, and NumPy gives NaN.
_MIN_ALPHA, _MAX_ALPHA = 1e-3, 1e6


def by_size(
    num_patients: int, section: PartitionSection, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Assign patients at random to sites of the sizes asked for; return int64 [P] sites.

    Raises:
        DataError: Too few patients for the sites asked for.
    """
    sizes = site_sizes(num_patients, section, rng)
    site_P = np.empty(num_patients, dtype=np.int64)
    site_P[rng.permutation(num_patients)] = np.repeat(np.arange(section.num_sites), sizes)
    return site_P


def dirichlet(
    labels: npt.NDArray[np.int64],
    section: PartitionSection,
    rng: np.random.Generator,
    size_rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Assign the patients of each class by Dirichlet shares; return int64 [P] sites.

    Sizes enter as the mean of the shares: with relative sizes w of mean 1 a class has shares
    ~ Dirichlet(alpha w), so that a site expects w / S of every class, and classes are as
    concentrated over sites as alpha says.

    Args:
        labels: int64 [P], the class of each patient.
        section: alpha, num_sites and sizes.
        rng: Of the shares and of who goes where.
        size_rng: Of the relative sizes.

    Raises:
        DataError: Too few patients for the sites asked for.
    """
    check_size(len(labels), section)
    relative = relative_sizes(section, size_rng)
    if section.size_law != "equal":
        relative = relative / relative.mean()
    concentration = np.clip(section.alpha * relative, _MIN_ALPHA, _MAX_ALPHA)
    site_P = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        counts = whole_shares(rng.dirichlet(concentration), len(members), rng)
        site_P[members] = np.repeat(np.arange(section.num_sites), counts)
    return site_P
