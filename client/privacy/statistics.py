"""Statistics of a site's patients with Gaussian noise, or without and with small counts left out.

**With noise** (`noisy`). Let m be the number of quantities (`common.statistics.quantities`) and b_i
the bound of the i-th. A patient adds to each a vector of L2 norm at most b_i, whoever the other
patients are: which classes and how many images of a patient count is decided by that patient
alone. Divide each quantity by its bound and put all of them into one vector: a patient adds a
vector of L2 norm at most sqrt(1 + ... + 1) = sqrt(m). So with N(0, (sigma sqrt(m))^2) on each
entry the whole vector is one Gaussian release of noise multiplier sigma, per patient. Multiplying
each quantity by its bound again is post-processing. All m quantities leave, always: what is
released never depends on what they say.

Where the study counts records, adding or removing one image of a patient replaces that patient's
vector v by another, w. Neither has negative entries, so |v - w|^2 <= |v|^2 + |w|^2 <= 2 m: the
noise multiplier per record is sigma / sqrt(2), which is what is charged (`client.spending`).

**Without noise** (`suppressed`). A number about fewer than k patients is not said, nor one from
which such a number follows by subtraction:

- with fewer than k patients in all, nothing is said;
- a class that fewer than k patients show, *or lack*, is not said. 0 is fewer: that nobody here has
  a disease is news about everybody;
- of how many images patients have, and of image sizes, 0 is said and 1 to k - 1 are not;
- of bins that every patient is in one of, those that are not said must hold k patients together,
  since the rest to the number of patients is their sum; so must those classes of a data set in
  which every patient has a class. The smallest of those that would be said are left out too until
  it is so. The number of images is not said if 1 to k - 1 patients have more than one;
- a bin of grey levels in which fewer than k patients have any pixel counts as empty.

That is no differential privacy: who knows all patients but one can learn about that one.
"""

import numpy as np
import numpy.typing as npt
import torch

from medfed.client.privacy.noise import NoiseSource
from medfed.common.statistics import Floats, Quantity, Values

Bools = npt.NDArray[np.bool_]

# Shares of grey levels are said to this many decimals.
_DECIMALS = 4
# Noisy sums too: far below any noise, and no bits of the sum without noise can be read from it.
_NOISY_DECIMALS = 3


def noisy(
    sums: Values, asked: tuple[Quantity, ...], noise_multiplier: float, noise: NoiseSource
) -> dict[str, Floats]:
    """Return the sums with noise, as one Gaussian release.

    Args:
        sums: Sums over patients, each patient's part within the quantities' bounds.
        asked: The quantities, all of which are released.
        noise_multiplier: Sigma.
        noise: Standard normals, in the order of `asked`.
    """
    sizes = [int(np.prod(quantity.shape)) for quantity in asked]
    drawn = noise.normal_like(torch.empty(sum(sizes), dtype=torch.float64)).numpy()
    scale = noise_multiplier * np.sqrt(len(asked))
    parts = np.split(drawn, np.cumsum(sizes)[:-1])
    return {
        quantity.name: np.round(
            sums[quantity.name] + scale * quantity.bound * part.reshape(quantity.shape),
            _NOISY_DECIMALS,
        )
        for quantity, part in zip(asked, parts, strict=True)
    }


def suppressed(sums: Values, holders: Floats, *, least: int, one_class: bool) -> dict[str, Floats]:
    """Return the exact sums as far as they are about `least` patients or more; NaN elsewhere.

    Args:
        sums: Sums over patients, without bounds.
        holders: [C, B] patients with any pixel in each bin of grey levels.
        least: k.
        one_class: Whether every patient has at least one class.
    """
    num_patients = float(sums["patients"][0])
    if num_patients < least:
        return {name: np.full(array.shape, np.nan) for name, array in sums.items()}
    said: dict[str, Floats] = {}
    for name, array in sums.items():
        if name == "classes":
            said[name] = _classes(array, num_patients, least, one_class=one_class)
        elif name == "intensities":
            said[name] = _shares(array, holders, least)
        elif name == "patients":
            said[name] = array.copy()
        elif name == "images":
            several = num_patients - sums["images_per_patient"][0]
            said[name] = np.where(0 < several < least, np.nan, array)
        else:
            said[name] = _one_of(array, (array > 0) & (array < least), least)
    return said


def _classes(counts: Floats, num_patients: float, least: int, *, one_class: bool) -> Floats:
    small = (counts < least) | (num_patients - counts < least)
    if not one_class:
        return np.where(small, np.nan, counts)
    return _one_of(counts, small, least)


def _one_of(counts: Floats, hidden: Bools, least: int) -> Floats:
    """Leave out `hidden`, and the smallest others until what is left out can be told from no sum.

    One number alone follows from the total; several of a small sum follow nearly.
    """
    hidden = hidden.copy()
    while hidden.any() and (hidden.sum() == 1 or counts[hidden].sum() < least):
        others = np.where(hidden | (counts == 0), np.inf, counts)
        if not np.isfinite(others).any():
            hidden[:] = True
            break
        hidden[np.argmin(others)] = True
    return np.where(hidden, np.nan, counts)


def _shares(mass: Floats, holders: Floats, least: int) -> Floats:
    known = np.where(holders < least, 0.0, mass)
    total = known.sum(axis=1, keepdims=True)
    shares: Floats = np.divide(known, total, out=np.full(mass.shape, np.nan), where=total > 0)
    return np.round(shares, _DECIMALS)
