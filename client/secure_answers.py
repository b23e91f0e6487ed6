"""What a site answers in a round of secure aggregation, phase by phase (`client.secure`).

Between the phases the site's secrets are in a `Memory`: at a hospital that of its SuperNode, never
a disk and never a message. What has been given out is on the disk (`client.masked_record`).
"""

import logging
from collections.abc import Callable
from typing import Protocol

from medfed.client import policy, secure
from medfed.client.masked_record import note_revealed, note_vector
from medfed.client.secure import SiteState
from medfed.client.site import SiteConfig
from medfed.common.errors import MessageError, RefusalReason, SiteRefusal
from medfed.common.messages import MASKED, ModelRequest, SecureReply, SecureRequest
from medfed.common.secure_sum import agreement, wire
from medfed.common.secure_sum.discrete_gaussian import secure_words, seeded_words
from medfed.common.secure_sum.from_study import context_of, grid_of, noisy_grid_of
from medfed.common.secure_sum.masking import Vector
from medfed.common.seeding import derive_seed
from medfed.common.state_dicts import StateDict
from medfed.common.study import StudyConfig

log = logging.getLogger(__name__)

Encode = Callable[[StateDict], Vector]


class Memory(Protocol):
    """Where a site's secrets of a round are between its phases."""

    def read(self) -> SiteState | None:
        """Return what was kept last."""
        ...

    def keep(self, state: SiteState) -> None:
        """Replace it."""
        ...


def offer_keys(request: SecureRequest, site: SiteConfig, memory: Memory) -> SecureReply:
    """Begin a round: offer fresh public keys, and forget the round before."""
    _check_asked(request.study)
    policy.check_participants(request.num_participants, site.policy)
    context = context_of(request.study, request.run, request.round_number, request.num_participants)
    state, keys = secure.offer_keys(context, site.name)
    memory.keep(state)
    return SecureReply(site=site.name, payload=keys)


def share_secrets(request: SecureRequest, site: SiteConfig, memory: Memory) -> SecureReply:
    """Share this round's secrets among the sites whose keys came."""
    state, shares = secure.share_secrets(_state(request, memory), request.payload)
    memory.keep(state)
    return SecureReply(site=site.name, payload=shares)


def reveal(request: SecureRequest, site: SiteConfig, memory: Memory) -> SecureReply:
    """Reveal what unmasks the sum over the sites that stayed."""
    before = _state(request, memory)
    state, shares = secure.reveal(before, request.payload)
    note_revealed(site.state_folder, before.context, wire.unpack_names(request.payload))
    memory.keep(state)
    return SecureReply(site=site.name, payload=shares)


class MaskedTraining:
    """A round of training whose update leaves masked: what comes before it, and after.

    All that can be refused is refused on making this: before the ledger is charged.

    Raises:
        SiteRefusal: Too few sites share masks, or the weight is not this site's.
        StudyError: No grid fits the study.
        UpdateError: No grid fits the weights.
    """

    def __init__(self, request: ModelRequest, site: SiteConfig, memory: Memory) -> None:
        self._memory = memory
        self._folder = site.state_folder
        self._state = secure.receive_shares(_state(request, memory), request.parcels)
        # Once opened they are not opened again: a second vector would share its masks.
        memory.keep(self._state)
        policy.check_participants(self._state.num_sharers, site.policy)
        _check_weight(request, site)
        self._encode = _encoder(request, site)

    def mask(self, update: StateDict) -> StateDict:
        """Return the update as it leaves: one masked vector.

        Raises:
            UpdateError: NaN or infinite values.
            SiteRefusal: Another update has left under this round's masks.
            OSError: It could not be written down that this one leaves.
        """
        vector = self._encode(update)
        note_vector(self._folder, agreement.public_key(self._state.mask_key), vector)
        self._memory.keep(secure.mask(self._state, vector))
        return {MASKED: vector}


def _encoder(request: ModelRequest, site: SiteConfig) -> Encode:
    study, num_sites = request.study, request.num_participants
    if study.secure_aggregation.distributed_noise == "none":
        grid = grid_of(study, num_sites, request.total_weight)

        def onto_grid(update: StateDict) -> Vector:
            vector, num_cut = grid.encode(update, request.weight)
            if num_cut:
                log.warning(
                    "%d values of the update were beyond secure_aggregation.max_value and cut.",
                    num_cut,
                )
            return vector

        return onto_grid
    noisy = noisy_grid_of(study, num_sites, request.weights)
    names = ("distributed noise", request.round_number, site.name, num_sites)
    seeded = site.policy.allow_seeded_noise
    words = seeded_words(derive_seed(study.study.seed, *names)) if seeded else secure_words()
    return lambda update: noisy.encode(update, words)


def _state(request: SecureRequest | ModelRequest, memory: Memory) -> SiteState:
    """Return this round's state.

    Raises:
        SiteRefusal: There is none: the round is unknown here, or the process' memory was lost.
    """
    _check_asked(request.study)
    state = memory.read()
    context = context_of(request.study, request.run, request.round_number, request.num_participants)
    if state is None or state.context != context:
        raise SiteRefusal(
            RefusalReason.INTERNAL,
            "Secure aggregation: asked to go on with a round whose keys are not in memory. The "
            "server must begin the round anew.",
        )
    return state


def _check_asked(study: StudyConfig) -> None:
    if not study.secure_aggregation.enabled:
        raise MessageError("A phase of secure aggregation in a study that has none.")


def _check_weight(request: ModelRequest, site: SiteConfig) -> None:
    """Only public weights: one that the server made up could make this site's update stand out."""
    if request.weight not in (1, site.data.public_num_patients):
        raise SiteRefusal(
            RefusalReason.STUDY,
            f"The server gives this site the weight {request.weight}, which is neither 1 nor its "
            "public_num_patients.",
        )
