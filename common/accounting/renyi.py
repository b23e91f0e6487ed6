"""Renyi differential privacy: an upper bound on epsilon that holds for any mechanism here.

Renyi divergences of independent releases add up, order by order; the conversion to epsilon loses
some (7-27 % at hospitals' sizes), so this is used where nothing tighter is known, or needed.

Reference: Mironov 2017, https://arxiv.org/abs/1702.07476; conversion: Canonne et al. 2020,
https://arxiv.org/abs/2004.00010, proposition 12, as in dp-accounting.
"""

import logging
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from medfed.common.accounting.events import GaussianEvent


def renyi_epsilon(events: Sequence[GaussianEvent], delta: float) -> float:
    """Return an upper bound on the epsilon of `events` at `delta`."""
    from dp_accounting.rdp import rdp_privacy_accountant as rdp

    if not events:
        return 0.0
    curve = np.sum(
        [
            event.steps * _curve(event.noise_multiplier, event.sample_rate, event.records_per_unit)
            for event in events
        ],
        axis=0,
    )
    known = np.isfinite(curve)
    if not known.any():
        return math.inf
    orders = np.asarray(rdp.DEFAULT_RDP_ORDERS)[known]
    return float(rdp.compute_epsilon(orders, curve[known], delta)[0])


@lru_cache(maxsize=256)
def _curve(
    noise_multiplier: float, sample_rate: float, records_per_unit: int
) -> npt.NDArray[np.float64]:
    """Return the Renyi divergence of one release at dp-accounting's orders.

    The discrete Gaussian's is at most that of the Gaussian of equal noise. Of several records, all
    are taken to be in the sample as soon as one is: more than happens, so never too little.
    """
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant()
    mechanism = dp_accounting.GaussianDpEvent(noise_multiplier / records_per_unit)
    any_sampled = 1.0
    if sample_rate < 1:
        any_sampled = -math.expm1(records_per_unit * math.log1p(-sample_rate))
    # It tells the log which orders' series did not converge; these are infinite, and left out.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        accountant.compose(dp_accounting.PoissonSampledDpEvent(any_sampled, mechanism))
    finally:
        logger.setLevel(level)
    return np.asarray(accountant.rdp, dtype=np.float64)
