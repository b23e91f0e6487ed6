"""The least that every site has: few patients moved, and none to where it may not be.

Shapes: P patients, S sites.
"""

import numpy as np
import numpy.typing as npt

from medfed.common.errors import DataError
from medfed.simulations.partition.classes import NOWHERE


def fill_up(
    site_P: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    may_be_PS: npt.NDArray[np.bool_],
    min_patients: int,
    *,
    keep_classes: bool,
) -> npt.NDArray[np.int64]:
    """Return int64 [P] sites of at least `min_patients` each.

    It changes the draw as little as it can: while a site has too few, the smallest site takes one
    patient from the largest that has one for it, of the class that this one has most of.

    Args:
        site_P: int64 [P] sites, NOWHERE for patients left out.
        labels: int64 [P] classes.
        may_be_PS: Where each patient may be.
        min_patients: The least that every site gets.
        keep_classes: Whether a site's last patient of a class stays.

    Raises:
        DataError: No site has a patient to spare who may be where one is missing.
    """
    site_P = site_P.copy()
    num_sites = may_be_PS.shape[1]
    sizes_S = np.bincount(site_P[site_P != NOWHERE], minlength=num_sites)
    while sizes_S.min() < min_patients:
        poor = int(sizes_S.argmin())
        given = _spare(site_P, labels, may_be_PS[:, poor], sizes_S, min_patients, keep_classes)
        if given is None:
            raise DataError(
                f"A site would have {sizes_S[poor]} patient(s), fewer than min_patients = "
                f"{min_patients}, and no other has one to spare of the classes that it may have. "
                "Lower simulation.partition.min_patients or num_sites, or let sites have more "
                "classes."
            )
        sizes_S[site_P[given]] -= 1
        sizes_S[poor] += 1
        site_P[given] = poor
    return site_P


def _spare(
    site_P: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    fits_P: npt.NDArray[np.bool_],
    sizes_S: npt.NDArray[np.int64],
    min_patients: int,
    keep_classes: bool,
) -> int | None:
    """The patient whom the largest site possible gives, or None."""
    for rich in np.argsort(-sizes_S, kind="stable"):
        if sizes_S[rich] <= min_patients:
            return None
        here_P = site_P == rich
        fitting_P = here_P & fits_P
        if keep_classes:
            counts = np.bincount(labels[here_P])
            fitting_P &= counts[np.minimum(labels, len(counts) - 1)] > 1
        spare = np.flatnonzero(fitting_P)
        if len(spare):
            commonest = np.bincount(labels[spare]).argmax()
            return int(spare[labels[spare] == commonest][0])
    return None
