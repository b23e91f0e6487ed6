"""Is the noise what is claimed? Coordinates that no canary reaches hold noise and nothing else.

Shapes: R releases, D coordinates without a canary.
"""

from itertools import combinations

import numpy as np
import numpy.typing as npt

from medfed.simulations.auditing.findings import Finding, Status
from medfed.simulations.auditing.probe import Setting, one_pixel_each, release
from medfed.simulations.auditing.statistics import (
    ALPHA,
    correlation_p,
    normality_p,
    std_interval,
    variance_p,
)

_PATIENTS = 40
_ROUNDS = 10
_SITES = ("first", "second")
_LONG_STEPS = (2, 5)
_LONG_ROUNDS = 5
PART = "mechanism"


def check_noise(setting: Setting, *, seeded: bool) -> tuple[list[Finding], npt.NDArray[np.float64]]:
    """Return the findings on noise of one source, and all the noise that was seen, over its std."""
    claimed = setting.privacy.noise_multiplier
    source = "seeded" if seeded else "secure"
    data = one_pixel_each(_PATIENTS)
    noise_RD = np.stack(
        [
            release(setting, data, round_number=number, site=site, seeded=seeded)[_PATIENTS:]
            for site in _SITES
            for number in range(1, _ROUNDS + 1)
        ]
    )
    again = release(setting, data, round_number=1, site=_SITES[0], seeded=seeded)[_PATIENTS:]
    findings = check_released_noise(noise_RD, claimed, source)
    if not seeded:
        findings.append(check_repeated(noise_RD[0], again))
    for steps in _LONG_STEPS:
        long_RD = np.stack(
            [
                release(setting, data, round_number=100 + n, steps=steps, seeded=seeded)
                for n in range(_LONG_ROUNDS)
            ]
        )[:, _PATIENTS:]
        findings.append(_steps(long_RD, claimed, steps, source))
    return findings, noise_RD[:, :-1].ravel() / claimed


def check_released_noise(
    noise_RD: npt.NDArray[np.float64],
    claimed: float,
    source: str,
    *,
    bound: str = "max_grad_norm",
    where: str = "pixels",
) -> list[Finding]:
    """Return the findings on the noise of R independent releases.

    Args:
        noise_RD: Noise over `bound`; the last coordinate is a parameter of dimension 0.
        claimed: Its standard deviation.
        source: secure or seeded.
        bound: What the noise is set against.
        where: What the other coordinates are.
    """
    return [
        # The last coordinate is a parameter of its own: a fault can spare or hit it alone.
        _deviation(noise_RD[:, :-1], claimed, f"{source}, {where}", bound),
        _deviation(noise_RD[:, -1], claimed, f"{source}, parameter of dimension 0", bound),
        _normality(noise_RD[:, :-1], claimed, source),
        _neighbours(noise_RD[:, :-1], source),
        _releases(noise_RD, source),
    ]


def _finding(check: str, p: float, detail: str, **numbers: float | int | str) -> Finding:
    status = Status.PASS if p >= ALPHA else Status.FAIL
    return Finding(PART, check, status, detail, {**numbers, "p_value": p})


def _deviation(noise: npt.NDArray[np.float64], claimed: float, where: str, bound: str) -> Finding:
    values = noise.ravel()
    p = variance_p(values, claimed)
    low, high = std_interval(values) if np.any(values) else (0.0, 0.0)
    measured = float(np.sqrt(np.square(values).mean()))
    return _finding(
        f"noise standard deviation ({where})",
        p,
        f"Claimed {claimed:g} times {bound}, measured {measured:.4g} "
        f"(99 % interval {low:.4g} to {high:.4g}, {values.size} samples).",
        claimed=claimed,
        measured=measured,
        low=low,
        high=high,
        samples=values.size,
    )


def _normality(noise: npt.NDArray[np.float64], claimed: float, source: str) -> Finding:
    p = normality_p(noise.ravel(), claimed)
    return _finding(
        f"noise distribution ({source})",
        p,
        "Kolmogorov-Smirnov against the normal distribution of the claimed deviation: "
        f"probability {p:.2g}.",
        samples=noise.size,
    )


def _neighbours(noise_RD: npt.NDArray[np.float64], source: str) -> Finding:
    correlation, p = correlation_p(noise_RD[:, :-1].ravel(), noise_RD[:, 1:].ravel())
    return _finding(
        f"lag-1 correlation across coordinates ({source})",
        p,
        f"Neighbouring coordinates correlate by {correlation:+.4f}; independent noise gives "
        f"{1 / np.sqrt(noise_RD.size):.4f} or so, either way.",
        correlation=correlation,
    )


def _releases(noise_RD: npt.NDArray[np.float64], source: str) -> Finding:
    pairs = [
        correlation_p(noise_RD[a], noise_RD[b]) for a, b in combinations(range(len(noise_RD)), 2)
    ]
    worst, p = min(pairs, key=lambda pair: pair[1])
    return _finding(
        f"correlation between rounds and sites ({source})",
        min(1.0, p * len(pairs)),
        f"Of {len(pairs)} pairs of releases the closest correlates by {worst:+.4f}. Noise that is "
        "used again correlates by 1, and one release then subtracts it from the other.",
        correlation=worst,
        pairs=len(pairs),
    )


def check_repeated(first: npt.NDArray[np.float64], again: npt.NDArray[np.float64]) -> Finding:
    """Return whether a round that is asked again gets noise of its own."""
    correlation, p = correlation_p(first, again)
    return _finding(
        "same round asked again (secure)",
        p,
        f"The noise of the same round, released twice, correlates by {correlation:+.4f}. Secure "
        "noise must be fresh each time; seeded noise repeats by design and is charged once.",
        correlation=correlation,
    )


def _steps(noise_RD: npt.NDArray[np.float64], claimed: float, steps: int, source: str) -> Finding:
    values = noise_RD.ravel()
    p = variance_p(values, claimed * np.sqrt(steps))
    ratio = float(np.square(values).mean()) / (claimed**2 * steps)
    # Var of a sum of n = n (1 + 2 sum_k (1 - k/n) rho_k): exactly lag 1 for two steps.
    lag = ratio - 1 if steps == 2 else (ratio - 1) / (steps - 1)
    return _finding(
        f"correlation across the {steps} steps of a round ({source})",
        p,
        f"The noise of {steps} steps together has {ratio:.4f} times the variance of {steps} "
        f"independent draws: the steps correlate by {lag:+.4f}. Noise that is used again at each "
        f"step would give {steps}.",
        variance_ratio=ratio,
        correlation=lag,
    )
