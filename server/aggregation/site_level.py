"""FedAvg with site-level (central) differential privacy: DP-FedAvg on whole updates.

new = old + (sum of clipped updates + N(0, (z * bound)**2)) / expected_sites

The sum has sensitivity `bound` when a site is added or removed, whoever else takes part: each
update is clipped on its own, all weigh the same, and the divisor is a public constant. How many
sites took part changes the sum and nothing else; with none, the step is noise alone.

References: McMahan et al. 2018, https://arxiv.org/abs/1710.06963;
Andrew et al. 2021, https://arxiv.org/abs/1905.03871.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from medfed.common.errors import UpdateError
from medfed.common.noise import NoiseSource
from medfed.common.state_dicts import StateDict
from medfed.server.aggregation.clipping import clip_update
from medfed.server.aggregation.exact import WeightedMean


@dataclass(frozen=True, kw_only=True)
class SiteLevelMechanism:
    """The numbers of one noisy sum; all public.

    Attributes:
        bound: L2 bound on one site's update.
        noise_multiplier: Noise standard deviation over `bound`.
        expected_sites: Divisor of the noisy sum.
        count_noise: Noise standard deviation of the count of sites within the bound; None if that
            count is not released.
    """

    bound: float
    noise_multiplier: float
    expected_sites: float
    count_noise: float | None = None


class SiteLevelMean:
    """One round of DP-FedAvg: `add` clips each update, `apply` adds the noise.

    Attributes:
        noisy_balance: After `apply`, with `count_noise`: the sites within the bound as +1/2 each
            and the others as -1/2 each, with noise.
    """

    def __init__(
        self, weights: StateDict, mechanism: SiteLevelMechanism, noise: NoiseSource
    ) -> None:
        self._weights = weights
        self._mechanism = mechanism
        self._noise = noise
        self._sum = WeightedMean(weights)
        self._balance = 0.0
        self.noisy_balance: float | None = None

    @property
    def num_updates(self) -> int:
        """How many updates were folded in."""
        return self._sum.num_terms

    @property
    def notes(self) -> Mapping[str, str]:
        """None: whether one site's update was clipped is covered by no epsilon."""
        return {}

    def add(self, update: StateDict, weight: int = 1, site: str = "") -> None:
        """Clip one screened update and fold it in; the order does not matter, nor whose it is.

        Raises:
            UpdateError: NaN or infinite values, or a weight other than one: nothing was added.
        """
        if weight != 1:
            raise UpdateError(f"Expected weight 1 under site-level privacy, got {weight}.")
        clipped, within = clip_update(update, self._mechanism.bound)
        self._sum.add(clipped, 1)
        self._balance += 0.5 if within else -0.5  # exact: halves

    def sum(self) -> StateDict:
        """Return the sum of the clipped updates without noise, in float64. Not for release."""
        return dict(self._sum.total())

    def apply(self) -> StateDict:
        """Return the new global weights; one draw of noise is used up."""
        this = self._mechanism
        deviation = this.noise_multiplier * this.bound
        total = self._sum.total()
        new = {}
        for name, array in self._weights.items():
            noisy = total[name] + deviation * self._normals(array.shape)
            moved = array.astype(np.float64) + noisy / this.expected_sites
            if not np.issubdtype(array.dtype, np.floating):
                moved = np.rint(moved)
            new[name] = np.asarray(moved, dtype=array.dtype)
        if this.count_noise is not None:
            self.noisy_balance = self._balance + this.count_noise * float(self._normals(()))
        return new

    def _normals(self, shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        # The number of values drawn depends on public shapes alone.
        drawn = self._noise.normal_like(torch.empty(shape, dtype=torch.float64))
        return np.asarray(drawn.numpy(), dtype=np.float64)
