"""Site-level (central) differential privacy: `privacy.unit = "site"`, noise added by the server.

What is hidden: whether a site, with all its patients, took part, from whoever sees the global
weights (all rounds together). The neighbouring relation is adding or removing one site. The server
itself is trusted: it sees every update (`secure_aggregation.distributed_noise` removes that trust).

What must not depend on the sites that took part, other than through the noisy sum:

- the noise (calibrated to the bound), the divisor (public) and the size of what is sent;
- whether a round counts: with few answers, or none, it is completed all the same. A quorum of
  answers would tell that one was missing. What can end a run is that fewer sites than
  federation.min_sites are connected and have not withdrawn, looked up before the round's draw;
- the number of participants that sites are told: it is the public expected number.

What is *not* hidden: who joined, who was asked in which round and who answered (the coordinator's
events and round records), and evaluation metrics of held-out images. With federation.fraction
below 1 the stated epsilon counts on the draw being secret: it holds against readers of the models,
not against readers of those records. Without amplification a reader of the records gets the
epsilon of fraction = 1.

References: McMahan et al. 2018, https://arxiv.org/abs/1710.06963;
Andrew et al. 2021, https://arxiv.org/abs/1905.03871.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Literal

import numpy as np

from medfed.common.errors import RunError
from medfed.common.noise import NoiseSource, SecureNoise, SecureUniform, SeededNoise
from medfed.common.seeding import numpy_rng, torch_rng
from medfed.common.state_dicts import StateDict
from medfed.common.study import StudyConfig
from medfed.server.aggregation.clipping import next_bound
from medfed.server.aggregation.exact import MAX_TERMS
from medfed.server.aggregation.site_level import SiteLevelMean, SiteLevelMechanism
from medfed.server.participants import Participant
from medfed.server.site_ledger import SiteLedger


def noised_by_server(study: StudyConfig) -> bool:
    """Whether the server clips the updates and adds the noise; else sites do, or nobody."""
    return study.privacy.unit == "site" and not study.secure_aggregation.enabled


class SitePrivacy:
    """The noisy sums of one run, their bound and their ledger.

    Args:
        study: With privacy.unit = "site".
        run: The run's identifier.
        state_folder: Where the server's ledger is.
        seeded: Draw and noise from the study's seed (simulation) instead of the operating system.
            Not private, and the ledger says so.
        bound: Bound of the next round, from the checkpoint; None at the start.

    Attributes:
        bound: Bound on an update's norm in the next round; moves with adaptive clipping.
        epsilon: What the sites have spent after the last release.
        noise: secure or seeded.
    """

    def __init__(
        self,
        study: StudyConfig,
        run: str,
        state_folder: Path,
        *,
        seeded: bool,
        bound: float | None = None,
    ) -> None:
        self._study = study
        self._section = study.privacy.site
        assert self._section.expected_sites is not None  # PrivacySection requires it
        self._expected_sites = self._section.expected_sites
        self.noise: Literal["secure", "seeded"] = "seeded" if seeded else "secure"
        self.bound = self._section.max_update_norm if bound is None else bound
        self.epsilon = 0.0
        self._ledger = SiteLedger(state_folder, study, run, self.noise)

    @property
    def stated_participants(self) -> int:
        """The number of participants that sites are told: public, whoever was drawn."""
        return max(1, int(self._expected_sites))

    def over_budget(self, round_number: int, weights: StateDict) -> str:
        """Return why a round from `weights` would exceed the study's budget; empty if it fits."""
        return self._ledger.over_budget(round_number, weights, self.bound)

    def draw(self, sites: Collection[Participant], round_number: int) -> list[Participant]:
        """Draw each site alone with probability federation.fraction (Poisson); maybe none.

        Raises:
            RunError: More sites than one exact sum holds.
        """
        if len(sites) > MAX_TERMS:
            raise RunError(f"Expected at most {MAX_TERMS} sites under site-level privacy.")
        ordered = sorted(sites, key=lambda site: site.name)
        fraction = self._study.federation.fraction
        if fraction >= 1:
            return ordered
        if self.noise == "secure":
            uniforms = SecureUniform().random(len(ordered))
        else:  # a stream for each site: one that left changes nobody else's draw
            seed, names = self._study.study.seed, [site.name for site in ordered]
            uniforms = np.array(
                [numpy_rng(seed, "site sampling", round_number, name).random() for name in names]
            )
        return [site for site, u in zip(ordered, uniforms, strict=True) if u < fraction]

    def rule(self, weights: StateDict, round_number: int) -> SiteLevelMean:
        """Return the round's aggregation rule."""
        mechanism = SiteLevelMechanism(
            bound=self.bound,
            noise_multiplier=self._study.privacy.update_noise_multiplier,
            expected_sites=self._expected_sites,
            count_noise=(
                None
                if self._section.adaptive_quantile is None
                else self._section.count_noise_multiplier
            ),
        )
        return SiteLevelMean(weights, mechanism, self._source(round_number))

    def release(self, rule: SiteLevelMean, weights: StateDict, round_number: int) -> StateDict:
        """Charge the round that started from `weights`, then return the noised new weights.

        Raises:
            LedgerError: The charge could not be written: nothing was released.
        """
        self.epsilon = self._ledger.charge(round_number, weights, self.bound)
        new = rule.apply()
        if rule.noisy_balance is not None:
            self.adapt(rule.noisy_balance)
        return new

    def adapt(self, noisy_balance: float) -> None:
        """Move the bound of the next round towards the quantile; see `SiteLevelMean`."""
        assert self._section.adaptive_quantile is not None  # no count is released without
        self.bound = next_bound(
            self.bound,
            noisy_balance,
            expected_sites=self._expected_sites,
            quantile=self._section.adaptive_quantile,
            rate=self._section.adaptive_learning_rate,
        )

    def _source(self, round_number: int) -> NoiseSource:
        if self.noise == "seeded":
            return SeededNoise(torch_rng(self._study.study.seed, "site noise", round_number))
        return SecureNoise()
