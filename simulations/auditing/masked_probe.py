"""Canary sites through whole rounds of secure aggregation: the sites' path and the server's.

Keys, shares, masks, each site's noise, the sum and its charge are `client.secure_answers`',
`server.secure`'s and `server.distributed_privacy`'s own; only training is left out, and messages.

Shapes: D coordinates.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import numpy.typing as npt

from medfed.client import secure as site_side
from medfed.client.secure import SiteState
from medfed.client.secure_answers import MaskedTraining, offer_keys, reveal, share_secrets
from medfed.client.site import SiteConfig
from medfed.common.messages import MASKED, ModelRequest, SecureRequest, TrainReply
from medfed.common.secure_sum.from_study import context_of
from medfed.common.secure_sum.masking import Vector
from medfed.server.distributed_privacy import DistributedPrivacy, masked_mean
from medfed.server.secure import SecureRound
from medfed.simulations.auditing.site_probe import (
    NUM_COORDINATES,
    RUN,
    SiteSetting,
    Values,
    start,
    update_of,
    values_of,
)


class _Memory:
    """A site's memory between the phases of a round."""

    def __init__(self) -> None:
        self._state: SiteState | None = None

    def read(self) -> SiteState | None:
        return self._state

    def keep(self, state: SiteState) -> None:
        self._state = state


@dataclass(frozen=True)
class MaskedSum:
    """What a round gave.

    Attributes:
        masked: What left each site that stayed, by name, uint32 [D].
        total: The sum that the server unmasked, uint32 [D].
    """

    masked: Mapping[str, Vector]
    total: Vector


class Federation:
    """Sites and a server that aggregate under masks.

    Args:
        setting: What is claimed.
        num_sites: How many sites each round asks.
        seeded: Where the sites' noise comes from.
    """

    def __init__(self, setting: SiteSetting, num_sites: int, *, seeded: bool) -> None:
        self.setting, self.study, self.seeded = setting, setting.study, seeded
        self.names = [f"site-{n}" for n in range(num_sites)]

    def sum(
        self,
        updates: Mapping[str, Values],
        round_number: int,
        *,
        dropped: Collection[str] = (),
        silent: Collection[str] = (),
    ) -> MaskedSum:
        """Run a round, of sites that know of no other: a real one opens its sum once only.

        Args:
            updates: Of each site, [D]; zeros for those that are not named.
            round_number: 1-based.
            dropped: Sites that leave once they have shared their secrets.
            silent: Sites that send zeros and leave out their noise, against what they are told.

        Raises:
            UpdateError: A site refuses its update: nothing leaves it.
        """
        with TemporaryDirectory() as folder:
            sites = {name: self._site(name, Path(folder)) for name in self.names}
            return self._sum(sites, updates, round_number, dropped, silent)

    def _site(self, name: str, folder: Path) -> SiteConfig:
        return SiteConfig.model_validate(
            {
                "name": name,
                "data": {"stores": ["none"]},
                "policy": {"unit": "none", "allow_seeded_noise": self.seeded},
                "state": name,
                "folder": folder,
            }
        )

    def _sum(
        self,
        sites: Mapping[str, SiteConfig],
        updates: Mapping[str, Values],
        round_number: int,
        dropped: Collection[str],
        silent: Collection[str],
    ) -> MaskedSum:
        context = context_of(self.study, RUN, round_number, len(self.names))
        secure = SecureRound(context, self.names, NUM_COORDINATES)
        memories = {name: _Memory() for name in self.names}
        for name, site in sites.items():
            request = self._phase(round_number, b"")
            secure.on_keys(name, offer_keys(request, site, memories[name]).payload)
        request = self._phase(round_number, secure.roster())
        for name, site in sites.items():
            secure.on_shares(name, share_secrets(request, site, memories[name]).payload)
        masked = {}
        for name in sorted(secure.sharers() - set(dropped)):
            parcels, memory = secure.parcels(name), memories[name]
            if name in silent:
                vector = _zeros(memory, parcels)
            else:
                asked = self._training(round_number, parcels)
                update = update_of(updates.get(name, np.zeros(NUM_COORDINATES)))
                training = MaskedTraining(asked, sites[name], memory)
                vector = cast(Vector, training.mask(update)[MASKED])
            masked[name] = vector.copy()
            secure.on_masked(name, vector)
        request = self._phase(round_number, secure.survivors())
        for name in sorted(secure.summed):
            secure.on_reveal(name, reveal(request, sites[name], memories[name]).payload)
        return MaskedSum(masked, secure.result())

    def release(self, found: MaskedSum, round_number: int, state: Path) -> Values:
        """Return what the server makes of a sum with distributed noise: that sum over the bound.

        It is the change of the global weights, [D], times the claimed divisor.
        """
        noise = "seeded" if self.seeded else "secure"
        replies = [
            TrainReply(
                site=name, update={}, num_examples=None, loss=None, epsilon=None, noise=noise
            )
            for name in found.masked
        ]
        weights = start()
        new = DistributedPrivacy(self.study, RUN, state, seeded=self.seeded).release(
            found.total,
            replies,
            weights,
            round_number=round_number,
            num_participants=len(self.names),
        )
        return values_of(new) * self.setting.divisor / self.setting.bound

    def mean(self, found: MaskedSum) -> npt.NDArray[np.float64]:
        """Return the mean that the server makes of a sum without noise, [D]."""
        summed, asked = dict.fromkeys(found.masked, 1), dict.fromkeys(self.names, 1)
        new = masked_mean(self.study, found.total, start(), summed=summed, asked=asked)
        return values_of(new)

    def _phase(self, round_number: int, payload: bytes) -> SecureRequest:
        return SecureRequest(
            study=self.study,
            run=RUN,
            round_number=round_number,
            num_participants=len(self.names),
            payload=payload,
        )

    def _training(self, round_number: int, parcels: bytes) -> ModelRequest:
        return ModelRequest(
            study=self.study,
            run=RUN,
            round_number=round_number,
            weights=start(),
            frozen_sha256="",
            num_participants=len(self.names),
            parcels=parcels,
            weight=1,
            total_weight=len(self.names),
        )


def _zeros(memory: _Memory, parcels: bytes) -> Vector:
    """What a site sends that keeps to the protocol, and leaves out update and noise."""
    state = memory.read()
    assert state is not None  # it has shared its secrets
    vector: Vector = np.zeros(NUM_COORDINATES, dtype=np.uint32)
    memory.keep(site_side.mask(site_side.receive_shares(state, parcels), vector))
    return vector
