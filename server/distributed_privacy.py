"""Site-level privacy without a trusted server: all sites together add the noise, under masks.

What is hidden: what one site's update was, from whoever sees the global weights, the server
included, as long as secure_aggregation.honest_sites of the sites add their noise and keep it to
themselves. Neighbours: one site's update is its own, or zero. Who took part is known, so a quorum
may be asked for, and nothing is drawn in secret. docs/adr/0010 has the threat model.

The server keeps a ledger of what the sums have cost beside those of the sites: unit SITE.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from medfed.common.messages import TrainReply
from medfed.common.secure_sum.from_study import grid_of, noisy_grid_of
from medfed.common.secure_sum.masking import Vector
from medfed.common.state_dicts import StateDict
from medfed.common.study import StudyConfig
from medfed.server.site_ledger import SiteLedger

Noise = Literal["secure", "seeded"]


def noised_by_sites(study: StudyConfig) -> bool:
    """Whether sites add the noise of site-level privacy, each a share, before they mask."""
    return study.secure_aggregation.distributed_noise != "none"


class DistributedPrivacy:
    """The noisy sums of one run and their ledger.

    Args:
        study: With secure_aggregation.distributed_noise.
        run: The run's identifier.
        state_folder: Where the server's ledger is.
        seeded: What sites' noise is expected to be, before they say so.

    Attributes:
        bound: Bound on an update's norm.
        epsilon: What the sites have spent after the last release.
        noise: seeded if any site's share in the last release was; then it is not private.
    """

    def __init__(self, study: StudyConfig, run: str, state_folder: Path, *, seeded: bool) -> None:
        assert study.privacy.site.expected_sites is not None  # PrivacySection requires it
        self._expected_sites = study.privacy.site.expected_sites
        self._study, self._run, self._folder = study, run, state_folder
        self.bound = study.privacy.site.max_update_norm
        self.epsilon = 0.0
        self.noise: Noise = "seeded" if seeded else "secure"

    def over_budget(self, round_number: int, weights: StateDict) -> str:
        """Return why a round from `weights` would exceed the study's budget; empty if it fits."""
        return self._ledger().over_budget(round_number, weights, self.bound)

    def release(
        self,
        total: Vector,
        replies: Iterable[TrainReply],
        weights: StateDict,
        *,
        round_number: int,
        num_participants: int,
    ) -> StateDict:
        """Charge the round that started from `weights`, then return the new weights.

        Args:
            total: Unmasked sum of the noisy updates.
            replies: Of the sites whose vectors are in it.
            weights: Global weights before the round.
            round_number: 1-based.
            num_participants: Sites asked.

        Raises:
            LedgerError: The charge could not be written: nothing was released.
        """
        self.noise = "seeded" if any(reply.noise == "seeded" for reply in replies) else "secure"
        grid = noisy_grid_of(self._study, num_participants, weights)
        self.epsilon = self._ledger().charge(round_number, weights, self.bound)
        return _moved(weights, grid.decode(total, self._expected_sites, weights))

    def _ledger(self) -> SiteLedger:
        return SiteLedger(self._folder, self._study, self._run, self.noise)


def masked_mean(
    study: StudyConfig,
    total: Vector,
    weights: StateDict,
    *,
    summed: Mapping[str, int],
    asked: Mapping[str, int],
) -> StateDict:
    """Return the new global weights from an unmasked sum without noise.

    Args:
        study: With secure_aggregation.enabled.
        total: Sum of the weighted updates on the round's grid.
        weights: Global weights before the round.
        summed: Weights of the sites in the sum, by name.
        asked: Weights of all sites asked, by name.
    """
    grid = grid_of(study, len(asked), sum(asked.values()))
    return _moved(weights, grid.decode(total, sum(summed.values()), weights))


def _moved(weights: StateDict, mean: StateDict) -> StateDict:
    return {
        name: np.asarray(np.add(array, mean[name]), dtype=array.dtype)
        for name, array in weights.items()
    }
