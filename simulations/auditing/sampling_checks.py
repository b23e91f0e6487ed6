"""Is each patient drawn alone, at the claimed rate? Read off releases with hardly any noise.

At a noise multiplier of 0.1 each canary's coordinate says whether that canary was drawn (0 or 1,
ten deviations apart). How patients are drawn does not depend on the noise; at the study's own noise
one release could not say, which is what the noise is for.

Shapes: R releases, P patients.
"""

import numpy as np
import numpy.typing as npt

from medfed.simulations.auditing.findings import Finding, Status
from medfed.simulations.auditing.noise_checks import PART
from medfed.simulations.auditing.probe import Setting, one_pixel_each, release
from medfed.simulations.auditing.statistics import (
    ALPHA,
    binomial_p,
    correlation_p,
    dispersion_p,
    rate_interval,
)

NUM_PATIENTS = 200
_RELEASES = 250
_LONG_RELEASES = 60
LOW_NOISE = 0.1


def check_sampling(
    setting: Setting, *, seeded: bool
) -> tuple[list[Finding], npt.NDArray[np.float64]]:
    """Return the findings on sampling by one source, and how many were drawn in each release."""
    quiet, source = setting.with_privacy(noise_multiplier=LOW_NOISE), _source(seeded)
    rate, data = setting.privacy.sample_rate, one_pixel_each(NUM_PATIENTS)
    values_RP = np.stack(
        [
            release(quiet, data, round_number=number, seeded=seeded)[:NUM_PATIENTS]
            for number in range(_RELEASES)
        ]
    )
    drawn_RP = values_RP > 0.5
    pairs_RP = np.stack(
        [
            release(quiet, data, round_number=1000 + number, steps=2, seeded=seeded)[:NUM_PATIENTS]
            for number in range(_LONG_RELEASES)
        ]
    )
    counts_R = drawn_RP.sum(axis=1).astype(np.float64)
    findings = [
        *check_draws(drawn_RP, rate, source),
        _between_steps(pairs_RP, rate, source),
        _size(values_RP, drawn_RP, source),
    ]
    return findings, counts_R


def check_draws(drawn_RP: npt.NDArray[np.bool_], rate: float, source: str) -> list[Finding]:
    """Return whether each of P units was drawn alone, at the claimed rate, in R draws."""
    return [
        _rate(drawn_RP, rate, source),
        _spread(drawn_RP.sum(axis=1).astype(np.float64), drawn_RP.shape[1], rate, source),
        _alike(drawn_RP, rate, source),
        _between_rounds(drawn_RP, rate, source),
    ]


def _source(seeded: bool) -> str:
    return "seeded" if seeded else "secure"


def _finding(check: str, p: float, detail: str, **numbers: float | int) -> Finding:
    status = Status.PASS if p >= ALPHA else Status.FAIL
    return Finding(PART, check, status, detail, {**numbers, "p_value": p})


def _rate(drawn_RP: npt.NDArray[np.bool_], rate: float, source: str) -> Finding:
    drawn = int(drawn_RP.sum())
    low, high = rate_interval(drawn, drawn_RP.size)
    return _finding(
        f"sampling rate ({source})",
        binomial_p(drawn, drawn_RP.size, rate),
        f"Claimed {rate:g} a step, measured {drawn / drawn_RP.size:.4f} (99 % interval {low:.4f} "
        f"to {high:.4f}). A higher rate costs more epsilon than the ledger says.",
        claimed=rate,
        measured=drawn / drawn_RP.size,
        low=low,
        high=high,
    )


def _spread(counts_R: npt.NDArray[np.float64], num_units: int, rate: float, source: str) -> Finding:
    ratio, p = dispersion_p(counts_R, num_units, rate)
    return _finding(
        f"spread of the batch size ({source})",
        p,
        f"The number of units drawn varies {ratio:.3f} times as much as the binomial that "
        "Poisson sampling makes. Batches of a fixed size would give 0.",
        variance_ratio=ratio,
    )


def _alike(drawn_RP: npt.NDArray[np.bool_], rate: float, source: str) -> Finding:
    ratio, p = dispersion_p(drawn_RP.sum(axis=0).astype(np.float64), len(drawn_RP), rate)
    return _finding(
        f"all units are drawn alike ({source})",
        p,
        f"How often a unit was drawn varies between units {ratio:.3f} times as much as "
        "chance. Passes over a shuffled list give 0, favourites more than 1.",
        variance_ratio=ratio,
    )


def _between_rounds(drawn_RP: npt.NDArray[np.bool_], rate: float, source: str) -> Finding:
    if rate == 1:
        return _all_drawn(f"draws of successive rounds ({source})")
    centred = drawn_RP.astype(np.float64) - rate
    correlation, p = correlation_p(centred[:-1].ravel(), centred[1:].ravel())
    return _finding(
        f"draws of successive rounds ({source})",
        p,
        f"Being drawn in one round and in the next correlate by {correlation:+.4f}.",
        correlation=correlation,
    )


def _between_steps(pairs_RP: npt.NDArray[np.float64], rate: float, source: str) -> Finding:
    both = int((pairs_RP > 1.5).sum())
    return _finding(
        f"draws of successive steps ({source})",
        binomial_p(both, pairs_RP.size, rate**2),
        f"Drawn in both of two steps: {both / pairs_RP.size:.4f} of all, independent draws give "
        f"{rate**2:.4f}.",
        measured=both / pairs_RP.size,
        expected=rate**2,
    )


def _size(
    values_RP: npt.NDArray[np.float64], drawn_RP: npt.NDArray[np.bool_], source: str
) -> Finding:
    """Canaries a thousand times too long must count for exactly max_grad_norm each."""
    if not drawn_RP.any():
        return Finding(PART, f"size of a contribution ({source})", Status.NOTE, "Nobody was drawn.")
    seen = values_RP[drawn_RP]
    error = LOW_NOISE / np.sqrt(seen.size)
    right = bool(abs(seen.mean() - 1) < 6 * error + 1e-3)
    return Finding(
        PART,
        f"size of a contribution ({source})",
        Status.PASS if right else Status.FAIL,
        f"Drawn canaries, a thousand times too long, count for {seen.mean():.4f} times "
        "max_grad_norm over the claimed divisor; 1 is right. More is missing clipping or a smaller "
        "divisor.",
        {"measured": float(seen.mean()), "standard_error": float(error)},
    )


def _all_drawn(check: str) -> Finding:
    return Finding(PART, check, Status.NOTE, "At a rate of 1 everyone is drawn each time.")
