"""Does the server add the noise, clip and draw as it charges, where whole sites are hidden?

Shapes: R releases, D coordinates, S sites.
"""

from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from medfed.common.errors import UpdateError
from medfed.common.seeding import numpy_rng
from medfed.simulations.auditing import verify_ledger
from medfed.simulations.auditing.attack_checks import Scores, gaussian_bound
from medfed.simulations.auditing.findings import Finding, Status
from medfed.simulations.auditing.noise_checks import PART, check_released_noise, check_repeated
from medfed.simulations.auditing.sampling_checks import check_draws
from medfed.simulations.auditing.site_probe import (
    LOUD,
    NUM_COORDINATES,
    Server,
    SiteSetting,
    Values,
    loud,
)
from medfed.simulations.auditing.statistics import ALPHA, variance_p

_RELEASES = 24
_SMALL_RELEASES = 4000  # of one number each: so many show that a tenth of the noise is missing
NUM_SITES, _DRAWS = 100, 150
_CANARIES = 1000
HUGE = "one huge value"
_TOLERANCE = 1e-5  # the server cuts to a millionth below the bound
BOUND = "max_update_norm"
"""What noise and influence are set against."""


def check_site_noise(setting: SiteSetting, *, seeded: bool) -> tuple[list[Finding], Values]:
    """Return the findings on the server's noise, and all of it that was seen, over its std.

    Half of the rounds have no site at all: they must release noise all the same.
    """
    source = "seeded" if seeded else "secure"
    with TemporaryDirectory() as folder:
        server = Server(setting, Path(folder), seeded=seeded)
        rounds = {n: [loud(0, setting)] * (n % 2) for n in range(1, _RELEASES + 1)}
        noise_RD = np.stack([server.release(sites, n) for n, sites in rounds.items()])
        again = server.release(rounds[_RELEASES], _RELEASES)
        releases = _RELEASES if seeded else _RELEASES + 1
        charged = check_charged(Path(folder), setting, releases, setting.fraction, source)
        small = np.array([server.counts([], 1000 + n) for n in range(_SMALL_RELEASES)])
    noise_RD = noise_RD[:, 1:]
    findings = check_released_noise(
        noise_RD, setting.noise, source, bound=BOUND, where="other coordinates"
    )
    findings.append(_variance("a model of one number", small[:, 0], setting.noise, source))
    if setting.privacy.site.adaptive_quantile is not None:
        claimed = setting.privacy.site.count_noise_multiplier
        name = "count of sites within the bound"
        findings.append(_variance(name, small[:, 1], claimed, source))
    if not seeded:
        findings.append(check_repeated(noise_RD[-1], again[1:]))
    return [*findings, charged], noise_RD[:, :-1].ravel() / setting.noise


def _variance(what: str, values: Values, claimed: float, source: str) -> Finding:
    p, measured = variance_p(values, claimed), float(np.sqrt(np.square(values).mean()))
    return Finding(
        PART,
        f"noise standard deviation ({source}, {what})",
        Status.PASS if p >= ALPHA else Status.FAIL,
        f"Claimed {claimed:g}, measured {measured:.4g} ({values.size} rounds).",
        {"claimed": claimed, "measured": measured, "samples": values.size, "p_value": p},
    )


def check_charged(
    state: Path, setting: SiteSetting, releases: int, rate: float, source: str
) -> Finding:
    """Return whether the server's ledger holds each release, at the study's noise.

    Args:
        state: The ledger's folder.
        setting: What is claimed.
        releases: How many there were; one that seeded noise repeats counts once.
        rate: At which each is charged.
        source: secure or seeded.
    """
    privacy, secure = setting.privacy, setting.secure
    shared = secure.distributed_noise != "none"
    event = {
        "unit": "site",
        "noise_multiplier": privacy.noise_multiplier,
        "sample_rate": rate,
        "steps": releases,
        "extra_delta": 0.0,
        "mechanism": secure.distributed_noise if shared else "gaussian",
    }
    book = verify_ledger.examine(state, None, privacy.target_delta)
    claimed = verify_ledger.epsilon([event], privacy.target_delta)
    right = book["passed"] and book["entries"] == releases and book["epsilon"] == claimed
    spent = book["epsilon"]
    return Finding(
        PART,
        f"each release is charged ({source})",
        Status.PASS if right else Status.FAIL,
        f"{releases} releases left {book['entries']} entries in the server's ledger, epsilon "
        f"{f'{spent:.4f}' if isinstance(spent, float) else spent} in all; the study's noise gives "
        f"{claimed:.4f}.",
        {"releases": releases, "entries": book["entries"], "claimed": claimed},
    )


def check_site_draws(
    setting: SiteSetting, *, seeded: bool
) -> tuple[list[Finding], npt.NDArray[np.float64]]:
    """Return whether each site is drawn alone at federation.fraction, and how many were drawn."""
    with TemporaryDirectory() as folder:
        server = Server(setting, Path(folder), seeded=seeded)
        drawn_RS = np.stack([server.draw(NUM_SITES, n) for n in range(1, _DRAWS + 1)])
    source = "seeded" if seeded else "secure"
    findings = check_draws(drawn_RS, setting.fraction, source)
    return findings, drawn_RS.sum(axis=1).astype(np.float64)


def check_site_sensitivity(setting: SiteSetting) -> list[Finding]:
    """Return what removing one site, whoever it is, changes; exactly: noise is the same twice."""
    rng, attempts = numpy_rng(setting.seed, "audit sites"), site_attempts(setting)
    others = [ordinary(rng, setting) for _ in range(5)]
    with TemporaryDirectory() as folder:
        pair = _Pair(setting, Path(folder))
        findings = [
            sensitivity(name, *pair.influence(values, others)) for name, values in attempts.items()
        ]
        crowds = [[], others[:1], others * 4]
        sizes = [pair.influence(attempts[HUGE], crowd)[0] for crowd in crowds]
        findings.append(_divisor(setting, [len(crowd) for crowd in crowds], sizes))
        if setting.privacy.site.adaptive_quantile is not None:
            findings.append(_balance(pair.moved(attempts[HUGE])))
    return findings


def site_attempts(setting: SiteSetting) -> dict[str, Values]:
    """Return updates [D] of sites that try to count for more than one, by what they are."""
    rng = numpy_rng(setting.seed, "audit attempts")
    broken, infinite = loud(1, setting), loud(1, setting)
    broken[0], infinite[0] = np.nan, -np.inf
    return {
        HUGE: 1e6 * loud(1, setting),
        "huge values everywhere": LOUD * setting.bound * rng.standard_normal(NUM_COORDINATES),
        "a parameter of dimension 0 alone": loud(NUM_COORDINATES - 1, setting),
        "an update of zeros": np.zeros(NUM_COORDINATES),
        "an update with NaN": broken,
        "an update with infinity": infinite,
    }


def ordinary(rng: np.random.Generator, setting: SiteSetting) -> Values:
    """Return an update [D] well within the bound."""
    values = rng.standard_normal(NUM_COORDINATES)
    return np.asarray(0.3 * setting.bound * values / np.linalg.norm(values), dtype=np.float64)


class _Pair:
    """Two runs of the server with the same seeded noise, with and without one site."""

    def __init__(self, setting: SiteSetting, folder: Path) -> None:
        self._server = Server(setting, folder, seeded=True)
        self._rounds = count(1)

    def influence(self, values: Values, others: list[Values]) -> tuple[float, bool]:
        """Return how far the site moves the sum, over the bound; and whether it was refused."""
        number = next(self._rounds)
        without = self._server.release(others, number)
        try:
            with_site = self._server.release([*others, values], number)
        except UpdateError:
            return 0.0, True
        return float(np.linalg.norm(with_site - without)), False

    def moved(self, values: Values) -> float:
        """Return how far the site moves the count of sites within the bound."""
        number = next(self._rounds)
        return self._server.counts([values], number)[1] - self._server.counts([], number)[1]


def sensitivity(
    name: str,
    size: float,
    refused: bool,
    *,
    limit: float = 1.0,
    change: str = "Removing a site",
) -> Finding:
    """Return whether a site's influence is within a limit.

    Args:
        name: What its update is.
        size: Norm of the change of the sum, over the bound.
        refused: Whether the update was.
        limit: The largest that is accounted for.
        change: What tells the two neighbours apart.
    """
    worst = size if np.isfinite(size) else np.inf
    how = (
        "It was refused, and nothing of it counted."
        if refused
        else f"At most {limit:.7g} is allowed."
    )
    return Finding(
        PART,
        f"removal sensitivity: {name}",
        Status.PASS if worst <= limit + _TOLERANCE else Status.FAIL,
        f"{change} with {name} changes the sum by {worst:.6f} times {BOUND}. {how}",
        {"influence_over_max_update_norm": worst if np.isfinite(worst) else "not finite"},
    )


def _divisor(setting: SiteSetting, numbers: list[int], sizes: list[float]) -> Finding:
    right = all(abs(size - 1) < _TOLERANCE for size in sizes)
    seen = ", ".join(f"{s:.4f} beside {n}" for s, n in zip(sizes, numbers, strict=True))
    return Finding(
        PART,
        "divisor (expected_sites)",
        Status.PASS if right else Status.FAIL,
        f"A site that is cut to the bound, times {setting.divisor:g} public expected sites, counts "
        f"for {seen} other sites; 1 is right each time. A divisor that follows the number of sites "
        "that answered tells it, and scales the noise with it.",
        {f"beside_{n}": s for n, s in zip(numbers, sizes, strict=True)},
    )


def _balance(moved: float) -> Finding:
    return Finding(
        PART,
        "removal sensitivity: count of sites within the bound",
        Status.PASS if abs(moved) <= 0.5 + _TOLERANCE else Status.FAIL,
        f"Removing a site changes the count by {abs(moved):.4f}; at most one half is charged.",
        {"influence": abs(moved)},
    )


def check_site_attack(setting: SiteSetting) -> tuple[Finding, Scores]:
    """Return the bound that an attacker proves who knows every update and guesses who sent one."""
    present = numpy_rng(setting.seed, "audit coins", "sites").random(_CANARIES) < 0.5
    updates = [loud(int(coordinate), setting) for coordinate in np.flatnonzero(present)]
    with TemporaryDirectory() as folder:
        values = Server(setting, Path(folder), seeded=False).release(updates, 1)
    scores = Scores(values[:_CANARIES], present)
    delta = setting.privacy.target_delta
    return gaussian_bound(scores, steps=1, claimed_mu=1 / setting.noise, delta=delta), scores
