"""A round of training under secure aggregation: the server learns the sum of the updates alone.

Four phases, each to those that answered the one before: keys, shares, training, reveal
(`server.secure`). Whoever is silent in one has dropped out; the round goes on while the threshold
of sites is there, and the quorum until the sum is about to be opened: a sum that would not count is
never opened, because the next one, over other sites, would tell what they differ by.

A phase may be asked for again: a site whose worker was killed goes on, and one whose memory was
lost says so at once, so that nobody waits for it (docs/adr/0010).
"""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import cast

from flwr.app import ArrayRecord, Message

from medfed.common import messages
from medfed.common.errors import MessageError, RunError, UpdateError
from medfed.common.messages import MASKED, Reply, SecureReply, SecureRequest, TrainReply
from medfed.common.secure_sum.from_study import context_of
from medfed.common.secure_sum.masking import Vector
from medfed.common.secure_sum.quantise import num_values
from medfed.common.state_dicts import StateDict
from medfed.common.study import StudyConfig
from medfed.server.conversation import Conversation
from medfed.server.exchange import Exchange
from medfed.server.participants import Participant, site_weight
from medfed.server.secure import SecureRound

log = logging.getLogger(__name__)

# Phases without training: a message is under way and a few kilobytes are encrypted.
_PHASE_TIMEOUT_S = 300.0


@dataclass
class MaskedSum:
    """What a round gave.

    Attributes:
        total: Sum of the masked vectors, masks removed, modulo 2**32.
        weights: The public weights of the sites whose vectors are in it, by name.
        replies: Their replies, without the vectors.
    """

    total: Vector
    weights: dict[str, int]
    replies: dict[str, TrainReply] = field(default_factory=dict)


class MaskedRound:
    """One round; `train` runs it.

    Args:
        exchange: Makes a phase's exchange.
        study: With secure_aggregation.enabled.
        run: The run's identifier.
        round_number: 1-based.
        conversation: Notes what each site does.
        chosen: The round's participants.
        min_sites: Without so many vectors in the sum it is not opened.
    """

    def __init__(
        self,
        exchange: Callable[[], Exchange],
        study: StudyConfig,
        run: str,
        round_number: int,
        conversation: Conversation,
        chosen: Sequence[Participant],
        *,
        min_sites: int,
    ) -> None:
        self._exchange = exchange
        self._min_sites = min_sites
        self._study = study
        self._run = run
        self._number = round_number
        self._conversation = conversation
        self._by_name = {site.name: site for site in chosen}
        self.weights = {site.name: site_weight(site, study, chosen) or 1 for site in chosen}

    def train(
        self, arrays: ArrayRecord, weights: StateDict, trained: Callable[[str], None]
    ) -> MaskedSum:
        """Return the sum of what the sites trained from `weights` (packed: `arrays`).

        Args:
            arrays: What is sent.
            weights: The same, to know its size.
            trained: Called with the name of each site that has trained.

        Raises:
            RunError: Fewer sites than the threshold or the quorum were left, or one shared out
                wrong secrets. The round is lost.
        """
        chosen = list(self._by_name)
        context = context_of(self._study, self._run, self._number, len(chosen))
        secure = SecureRound(context, chosen, num_values(weights))
        needed = max(self._min_sites, context.threshold)
        self._phase(messages.SECURE_KEYS, chosen, b"", secure.on_keys, needed)
        roster = secure.roster()
        offered = sorted(self._quorum_of(secure.offered, "keys"))
        self._phase(messages.SECURE_SHARES, offered, roster, secure.on_shares, needed)
        sharers = self._quorum_of(secure.sharers(), "shares")
        replies = self._train(secure, sharers, arrays, trained, needed)
        survivors = secure.survivors()
        stayed = sorted(self._quorum_of(secure.summed, "masked updates"))
        # Whoever is in the sum may leave now, as long as the others' shares open it.
        threshold = context.threshold
        self._phase(messages.SECURE_REVEAL, stayed, survivors, secure.on_reveal, threshold)
        total = secure.result()
        for name in sorted(secure.culprits):
            log.warning("%s revealed wrong shares; they were left out.", name)
        return MaskedSum(total, {name: self.weights[name] for name in stayed}, replies)

    def _quorum_of(self, sites: frozenset[str], sent: str) -> frozenset[str]:
        if len(sites) < self._min_sites:
            raise RunError(
                f"{len(sites)} sites sent {sent}, the quorum is {self._min_sites}. Nothing of "
                "their updates is known."
            )
        return sites

    def _phase(
        self,
        kind: str,
        to: Collection[str],
        payload: bytes,
        take: Callable[[str, bytes], None],
        needed: int,
    ) -> None:
        """Ask the same of some sites and take their answers; once `needed` came, lost ones go."""
        content = messages.pack_secure_request(
            SecureRequest(
                study=self._study,
                run=self._run,
                round_number=self._number,
                num_participants=len(self._by_name),
                payload=payload,
            )
        )
        sites = [self._by_name[name] for name in to]
        outgoing = self._conversation.address(kind, self._number, sites, lambda _: content)
        taken: list[str] = []
        for site, reply in self._answers(outgoing, _PHASE_TIMEOUT_S, taken, needed):
            if not isinstance(reply, SecureReply):
                self._wrong_kind(site, reply)
                continue
            try:
                take(site.name, reply.payload)
            except MessageError as error:
                self._conversation.reject(site.name, str(error))
                continue
            taken.append(site.name)

    def _train(
        self,
        secure: SecureRound,
        names: frozenset[str],
        arrays: ArrayRecord,
        trained: Callable[[str], None],
        needed: int,
    ) -> dict[str, TrainReply]:
        sharers = [self._by_name[name] for name in sorted(names)]
        outgoing = self._conversation.model_messages(
            messages.TRAIN,
            self._number,
            arrays,
            sharers,
            parcels={site.name: secure.parcels(site.name) for site in sharers},
            weights=self.weights,
        )
        replies: dict[str, TrainReply] = {}
        limit_s = self._study.federation.round_timeout_s
        for site, reply in self._answers(outgoing, limit_s, replies, needed):
            if not isinstance(reply, TrainReply):
                self._wrong_kind(site, reply)
                continue
            try:
                self._conversation.note_head(site, reply.ledger_head)
                if set(reply.update) != {MASKED}:
                    raise MessageError("expected one masked vector, got other arrays")
                secure.on_masked(site.name, cast(Vector, reply.update[MASKED]))
            except (MessageError, UpdateError) as error:
                self._conversation.reject(site.name, str(error))
                continue
            replies[site.name] = replace(reply, update={})
            trained(site.name)
        return replies

    def _answers(
        self, outgoing: list[Message], timeout_s: float, taken: Sized, needed: int
    ) -> Iterator[tuple[Participant, Reply]]:
        """Yield who answered; who is lost is not waited for once `needed` are `taken`."""
        exchange = self._exchange()
        limit_s = min(timeout_s, self._study.federation.round_timeout_s)
        replies = exchange.replies(outgoing, limit_s, lambda: len(taken) >= needed)
        yield from self._conversation.opened(replies)
        self._conversation.note_failures(exchange.failures)
        self._conversation.note_ignored(exchange.ignored)

    def _wrong_kind(self, site: Participant, reply: Reply) -> None:
        self._conversation.reject(
            site.name, f"answered secure aggregation with {type(reply).__name__}"
        )
