"""How large sites are: equal, log-normal or by a power law. Sizes are of patients.

Shapes: S sites.
"""

import numpy as np
import numpy.typing as npt

from medfed.common.errors import DataError
from medfed.common.study import PartitionSection

# Beyond this one site has everything anyway, and exp would overflow.
_MAX_LOG = 100.0


def relative_sizes(section: PartitionSection, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return float64 [S], proportional to the sizes that `section` asks for.

    - equal: 1 each; nothing is drawn.
    - lognormal: exp(sigma Z), Z standard normal, independent over sites.
    - power: rank^-exponent, the first site the largest (Zipf's law); nothing is drawn.
    """
    if section.size_law == "lognormal":
        logs = min(section.sigma, _MAX_LOG) * rng.standard_normal(section.num_sites)
        sizes: npt.NDArray[np.float64] = np.exp(logs - logs.max())
        return sizes
    ranks = np.arange(1, section.num_sites + 1, dtype=np.float64)
    if section.size_law == "power":
        return ranks ** -min(section.exponent, _MAX_LOG)
    return np.ones_like(ranks)


def site_sizes(
    num_patients: int, section: PartitionSection, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Return int64 [S], the patients of each site, `num_patients` in all.

    While a site has fewer than min_patients, the smallest takes one from the largest.

    Raises:
        DataError: Too few patients for the sites asked for.
    """
    check_size(num_patients, section)
    num_sites = section.num_sites
    if section.size_law == "equal":
        sizes = np.full(num_sites, num_patients // num_sites, dtype=np.int64)
        sizes[: num_patients % num_sites] += 1
        return sizes
    sizes = whole_shares(relative_sizes(section, rng), num_patients, rng)
    while sizes.min() < section.min_patients:
        sizes[sizes.argmin()] += 1
        sizes[sizes.argmax()] -= 1
    return sizes


def check_size(num_patients: int, section: PartitionSection) -> None:
    """Refuse fewer patients than `num_sites` sites of `min_patients` need.

    Raises:
        DataError: With how many are needed.
    """
    needed = section.num_sites * section.min_patients
    if num_patients < needed:
        raise DataError(
            f"Expected at least {needed} patients for {section.num_sites} sites of "
            f"{section.min_patients} or more, got {num_patients}. Lower "
            "simulation.partition.num_sites or min_patients, or use a larger data set."
        )


def whole_shares(
    shares_S: npt.NDArray[np.float64], total: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Divide `total` in proportion to `shares_S` into whole numbers, each right on average.

    Systematic sampling: plain rounding of cumulated shares would always give a class with a
    single patient to the same site.
    """
    ends = np.cumsum(shares_S)
    cuts = np.floor(total * (ends / ends[-1]) + rng.random()).astype(np.int64)
    cuts[-1] = total
    counts: npt.NDArray[np.int64] = np.diff(np.minimum(cuts, total), prepend=0)
    return counts
