"""Canary sites with known updates, sent through the installed server's own path.

A loud site's update is one coordinate, a thousand times too long; so what is released is known but
for the noise, coordinate by coordinate. Clipping, sum, noise, divisor and charge are
`server.site_privacy`'s own: nothing of it is copied here.

Shapes: R releases, D coordinates, S sites.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfed.common.state_dicts import StateDict
from medfed.common.study import PrivacySection, SecureAggregationSection, StudyConfig
from medfed.server.participants import Participant
from medfed.server.site_privacy import SitePrivacy

NUM_COORDINATES = 1537
"""In two parameters of unequal size, and one of dimension 0, which comes last."""
RUN = "audit"
_SPLIT = 500
LOUD = 1000.0
"""Norm of a loud update over the bound."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SiteSetting:
    """What is claimed of site-level privacy.

    Attributes:
        privacy: The study's own section, with privacy.unit = "site".
        fraction: Public probability that a site is drawn for a round.
        secure: The study's own section.
        seed: Root seed of seeded noise and draws.
    """

    privacy: PrivacySection
    fraction: float = 1.0
    secure: SecureAggregationSection = field(default_factory=SecureAggregationSection)
    seed: int = 0

    @property
    def bound(self) -> float:
        """L2 bound on an update's norm (unitless)."""
        return self.privacy.site.max_update_norm

    @property
    def divisor(self) -> float:
        """The public number of sites that the noisy sum is divided by."""
        assert self.privacy.site.expected_sites is not None  # PrivacySection requires it
        return self.privacy.site.expected_sites

    @property
    def noise(self) -> float:
        """Standard deviation of the sum's noise over the bound, worked out here.

        With adaptive clipping the count of sites within the bound is released beside the sum, and a
        site moves it by one half: z**-2 = update**-2 + (2 count)**-2.
        """
        section, noise = self.privacy.site, self.privacy.noise_multiplier
        if section.adaptive_quantile is None:
            return noise
        return float((noise**-2 - (2 * section.count_noise_multiplier) ** -2) ** -0.5)

    @property
    def study(self) -> StudyConfig:
        """The smallest study that makes this claim; without a budget, which would end the audit."""
        privacy = self.privacy.model_dump()
        privacy["site"]["max_epsilon"] = None
        return StudyConfig.model_validate(
            {
                "study": {"name": "audit", "seed": self.seed},
                "task": {"classes": ["one", "two"]},
                "training": {"local_steps": 1},
                "federation": {"fraction": self.fraction},
                "privacy": privacy,
                "secure_aggregation": self.secure.model_dump(),
            }
        )


def update_of(values: Values) -> StateDict:
    """Return coordinates [D] as a model's arrays."""
    return {
        "upper": values[:_SPLIT].reshape(-1, 10).copy(),
        "lower": values[_SPLIT:-1].reshape(-1, 4).copy(),
        "silent": np.array(values[-1]),
    }


def values_of(state: StateDict) -> Values:
    """Return a model's arrays as coordinates [D]."""
    return np.concatenate([np.asarray(state[n]).reshape(-1) for n in ("upper", "lower", "silent")])


def start() -> StateDict:
    """Return the global weights that every release starts from. In float64: nothing is rounded."""
    return update_of(np.zeros(NUM_COORDINATES))


def loud(coordinate: int, setting: SiteSetting) -> Values:
    """Return an update of one coordinate, far beyond the bound, [D]."""
    values = np.zeros(NUM_COORDINATES)
    values[coordinate] = LOUD * setting.bound
    return values


class Server:
    """The installed server's site-level privacy.

    Args:
        setting: What is claimed.
        state: Folder of the ledger that it keeps.
        seeded: Where noise and draws come from.
    """

    def __init__(self, setting: SiteSetting, state: Path, *, seeded: bool) -> None:
        self._setting, self._study = setting, setting.study
        self._state, self._seeded = state, seeded

    def release(self, updates: Iterable[Values], round_number: int) -> Values:
        """Return what a round of these updates releases, [D]: the noisy sum over the bound.

        That is the change of the global weights times the claimed divisor.

        Raises:
            UpdateError: An update that the server refuses.
        """
        privacy, weights = self._make(), start()
        rule = privacy.rule(weights, round_number)
        for values in updates:
            rule.add(update_of(values))
        new = privacy.release(rule, weights, round_number)
        return values_of(new) * self._setting.divisor / self._setting.bound

    def counts(self, updates: Iterable[Values], round_number: int) -> tuple[float, float]:
        """Return a number of dimension 0 over the bound, and adaptive clipping's noisy balance.

        As `release`, for a model of one number, and without a charge: nothing is handed out.
        """
        weights: StateDict = {"silent": np.array(0.0)}
        rule = self._make().rule(weights, round_number)
        for values in updates:
            rule.add({"silent": np.array(values[-1])})
        new = rule.apply()
        value = float(new["silent"]) * self._setting.divisor / self._setting.bound
        return value, 0.0 if rule.noisy_balance is None else rule.noisy_balance

    def draw(self, num_sites: int, round_number: int) -> npt.NDArray[np.bool_]:
        """Return which of S sites a round draws, [S]."""
        sites = [Participant(f"site-{n:04d}", n, None) for n in range(num_sites)]
        drawn = {site.node_id for site in self._make().draw(sites, round_number)}
        return np.array([site.node_id in drawn for site in sites])

    def _make(self) -> SitePrivacy:
        # Anew each time: adaptive clipping would move the bound from round to round.
        return SitePrivacy(self._study, RUN, self._state, seeded=self._seeded)
