"""Secure aggregation, and distributed noise under it: masks, shares of the noise, clipping, charge.

The worst case that a study allows: as many sites as the threshold lets go drop out, all of them
honest, and of those that stay all that need not be honest leave their noise out. What the rest
adds must reach the noise that is stated.

Shapes: R releases, D coordinates.
"""

import math
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from scipy import stats

from medfed.common.errors import StudyError, UpdateError
from medfed.common.secure_sum.from_study import context_of, noisy_grid_of
from medfed.common.seeding import numpy_rng
from medfed.simulations.auditing.findings import Finding, Status
from medfed.simulations.auditing.masked_probe import Federation, MaskedSum
from medfed.simulations.auditing.noise_checks import PART, check_released_noise, check_repeated
from medfed.simulations.auditing.site_level_checks import (
    BOUND,
    check_charged,
    ordinary,
    sensitivity,
    site_attempts,
)
from medfed.simulations.auditing.site_probe import (
    NUM_COORDINATES,
    RUN,
    SiteSetting,
    Values,
    start,
)
from medfed.simulations.auditing.statistics import ALPHA, correlation_p, too_small_p

_RELEASES = 24
_MAX_SITES = 8


def check_masks(setting: SiteSetting) -> list[Finding]:
    """Return whether what leaves a site says nothing, and the sum is that of the updates."""
    federation = Federation(setting, num_sites(setting), seeded=False)
    rounds = [federation.sum({}, 1), federation.sum({}, 1), federation.sum({}, 2)]
    centred = [
        np.concatenate([found.masked[name] / 2.0**32 - 0.5 for name in federation.names])
        for found in rounds
    ]
    uniform = min(1.0, 3 * min(float(stats.kstest(c + 0.5, "uniform").pvalue) for c in centred))
    pairs = [correlation_p(a, b) for a, b in combinations(centred, 2)]
    fresh = min(1.0, 3 * min(p for _, p in pairs))
    worst = max((c for c, _ in pairs), key=abs)
    findings = [
        Finding(
            PART,
            "masked updates look random",
            Status.PASS if uniform >= ALPHA else Status.FAIL,
            f"Updates of zeros leave {len(federation.names)} sites as numbers that should be "
            f"uniform over 32 bits: Kolmogorov-Smirnov, probability {uniform:.2g}.",
            {"p_value": uniform},
        ),
        Finding(
            PART,
            "masks are fresh each round",
            Status.PASS if fresh >= ALPHA else Status.FAIL,
            f"Masked updates of two rounds, or of one that is repeated, correlate by {worst:+.4f} "
            "at most. Masks that are used twice cancel between the two.",
            {"correlation": worst, "p_value": fresh},
        ),
    ]
    if setting.secure.distributed_noise == "none":
        findings.append(_exact(federation))
    return findings


def num_sites(setting: SiteSetting) -> int:
    """How many sites the audit asks: as many as the study expects, within reason."""
    return max(3, min(_MAX_SITES, round(setting.privacy.site.expected_sites or 4)))


def _exact(federation: Federation) -> Finding:
    """With a site that drops out, the mean is that of the sites that stayed, to the grid."""
    rng, largest = (
        numpy_rng(federation.setting.seed, "audit sum"),
        federation.setting.secure.max_value,
    )
    shape, (first, *rest) = NUM_COORDINATES, federation.names
    updates = {name: largest * rng.uniform(-1, 1, shape) for name in federation.names}
    context = context_of(federation.study, RUN, 3, len(federation.names))
    dropped = [first] if context.threshold < len(federation.names) else []
    mean = federation.mean(federation.sum(updates, 3, dropped=dropped))
    true = np.mean([updates[n] for n in (rest if dropped else federation.names)], axis=0)
    error, limit = float(np.abs(mean - true).max()), len(federation.names) * largest * 2.0**-30
    return Finding(
        PART,
        "sum under masks",
        Status.PASS if error <= limit else Status.FAIL,
        f"With {len(dropped)} of {len(federation.names)} sites dropping out, the mean is that of "
        f"the others within {error:.2g}; rounding explains {limit:.2g}.",
        {"error": error, "limit": limit},
    )


def check_shared_noise(setting: SiteSetting, *, seeded: bool) -> tuple[list[Finding], Values]:
    """Return the findings on the noise of a sum in the worst case, and all of it, over its std."""
    source = "seeded" if seeded else "secure"
    federation = Federation(setting, num_sites(setting), seeded=seeded)
    worst = _WorstCase(federation)
    with TemporaryDirectory() as folder:
        noise_RD = np.stack(
            [worst.release(number, Path(folder)) for number in range(1, _RELEASES + 1)]
        )
        again = worst.release(1, Path(folder))
        releases = _RELEASES if seeded else _RELEASES + 1
        charged = check_charged(Path(folder), setting, releases, 1.0, source)
    findings = check_released_noise(
        noise_RD, worst.noise, source, bound=BOUND, where="other coordinates"
    )
    if not seeded:
        findings.append(check_repeated(noise_RD[0], again))
    findings += [worst.reaches_what_is_stated(noise_RD, source), charged]
    return findings, noise_RD[:, :-1].ravel() / worst.noise


class _WorstCase:
    """Rounds with no more honest noise than a study counts on."""

    def __init__(self, federation: Federation) -> None:
        self._federation, setting = federation, federation.setting
        names, num = federation.names, len(federation.names)
        threshold = context_of(federation.study, RUN, 1, num).threshold
        # 2 / 3 of three may come out as 2.0000000000000004.
        honest = math.ceil(setting.secure.honest_sites * num - 1e-9)
        self._num, self._honest = num, honest
        self._dropped, self._silent = names[: num - threshold], names[honest:]
        self.num_left = honest - len(self._dropped)
        self._grid = noisy_grid_of(federation.study, num, start())
        # An update that is cut to the bound can grow by half a step in each value.
        self.growth = math.sqrt(NUM_COORDINATES) * self._grid.step / 2 / setting.bound
        self.noise = math.sqrt(self.num_left) * self._grid.scale * self._grid.step / setting.bound

    def release(self, round_number: int, state: Path) -> Values:
        """Return the noise of a round of updates of zeros, [D], over the bound."""
        found = self._federation.sum({}, round_number, dropped=self._dropped, silent=self._silent)
        return self._federation.release(found, round_number, state)

    def reaches_what_is_stated(self, noise_RD: Values, source: str) -> Finding:
        """Return whether the noise is at least the study's, against the bound after rounding."""
        stated = self._federation.setting.privacy.noise_multiplier * (1 + self.growth)
        p, measured = (
            too_small_p(noise_RD.ravel(), stated),
            float(np.sqrt(np.square(noise_RD).mean())),
        )
        right = p >= ALPHA and self.noise >= stated
        return Finding(
            PART,
            f"stated noise in the worst case ({source})",
            Status.PASS if right else Status.FAIL,
            f"Of {self._num} sites {self._honest} are counted on, {len(self._dropped)} of them "
            f"drop out and {len(self._silent)} others leave their noise out: the {self.num_left} "
            f"left must add {stated:.6g} times {BOUND}, and add {self.noise:.6g} by their shares, "
            f"{measured:.4g} as measured.",
            {"stated": stated, "by_shares": self.noise, "measured": measured, "p_value": p},
        )


def check_shared_sensitivity(setting: SiteSetting) -> list[Finding]:
    """Return what one site's update changes in the sum, against zeros in its place; exactly."""
    federation = Federation(setting, num_sites(setting), seeded=True)
    name, *others = federation.names
    grid = noisy_grid_of(federation.study, len(federation.names), start())
    limit = 1 + math.sqrt(NUM_COORDINATES) * grid.step / 2 / setting.bound
    rng = numpy_rng(setting.seed, "audit sites")
    rest = {other: ordinary(rng, setting) for other in others}
    findings = []
    with TemporaryDirectory() as folder:
        without = federation.release(federation.sum(rest, 1), 1, Path(folder))
        for what, values in site_attempts(setting).items():
            size, refused = 0.0, False
            try:
                found: MaskedSum = federation.sum({**rest, name: values}, 1)
                moved = federation.release(found, 1, Path(folder)) - without
                size = float(np.linalg.norm(moved))
            except UpdateError:
                refused = True
            findings.append(
                sensitivity(
                    what, size, refused, limit=limit, change="Putting zeros in place of a site"
                )
            )
    return findings


def infeasible(setting: SiteSetting) -> str:
    """Return why no round of so many sites can have the study's noise; empty if one can."""
    try:
        noisy_grid_of(setting.study, num_sites(setting), start())
    except StudyError as error:
        return str(error)
    return ""
