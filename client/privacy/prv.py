"""Epsilon as Opacus states it while it trains: the upper end of its PRV accountant.

Code that shares nothing with `common.accounting`, for those who compare. The gate and the ledger
do not use it.

Reference: Gopi et al. 2021, https://arxiv.org/abs/2106.02848.
"""

import warnings

import numpy as np
from opacus.accountants import PRVAccountant
from opacus.accountants.analysis.prv import (
    PoissonSubsampledGaussianPRV,
    compute_safe_domain_size,
)

from medfed.common.accounting import GaussianEvent

_MAX_POINTS = 8e6  # about 1 GB at its peak


def prv_epsilon(event: GaussianEvent, delta: float, *, eps_error: float = 0.01) -> float:
    """Return an upper bound on epsilon, at most about twice `eps_error` above the true one.

    Raises:
        ValueError: Opacus accounts for no such event, or its arithmetic gave out.
    """
    if event.sample_rate == 1 or event.records_per_unit > 1:
        raise ValueError(
            "Opacus's PRV accountant is for sample rates below 1 of the unit itself, got sample "
            f"rate {event.sample_rate:g} and up to {event.records_per_unit} records of a unit. "
            "Leave the accountant out: pld covers these."
        )
    try:
        # Its densities overflow in the tails that it then cuts off.
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if _num_points(event, delta, eps_error) > _MAX_POINTS:
                raise ValueError("its grid would not fit into memory.")
            accountant = PRVAccountant()
            accountant.history = [(event.noise_multiplier, event.sample_rate, event.steps)]
            return float(accountant.get_epsilon(delta, eps_error=eps_error))
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"Opacus's PRV accountant gave no epsilon for {event.steps} steps of noise "
            f"{event.noise_multiplier:g}: {error} Leave the accountant out: pld covers these."
        ) from None


def _num_points(event: GaussianEvent, delta: float, eps_error: float) -> float:
    """How many points Opacus would lay out, which it does not ask itself."""
    delta_error = delta / 1000
    reach = compute_safe_domain_size(
        prvs=[PoissonSubsampledGaussianPRV(event.sample_rate, event.noise_multiplier)],
        max_self_compositions=[event.steps],
        eps_error=eps_error,
        delta_error=delta_error,
    )
    mesh = eps_error / np.sqrt(event.steps * np.log(12 / delta_error) / 2)
    return float(2 * reach / mesh)
