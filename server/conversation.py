"""What server and sites say to one another in a round, and what the server knows of each site.

Every way of aggregating (in the clear, or masked in phases) asks and listens through this: one
place numbers messages, counts bytes, reads replies, and notes who refused, failed or was rejected.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from flwr.app import ArrayRecord, Message, RecordDict

from medfed.common import messages
from medfed.common.errors import MessageError, RefusalReason
from medfed.common.messages import Refusal, Reply, SplitContents, TrainReply
from medfed.common.state_dicts import StateDict
from medfed.common.study import StudyConfig
from medfed.server.countersigning import screen_head
from medfed.server.exchange import AFTER_DEADLINE, DAMAGED, LATE, LOST
from medfed.server.participants import Participant
from medfed.server.records import SiteRound, SiteStatus

log = logging.getLogger(__name__)

_MOST_IGNORED = 10
_LONGEST_REASON = 500


class Absence(NamedTuple):
    """Why a site is not asked: how that is put on record."""

    status: SiteStatus
    reason: str


# How an exchange that ended without a reply is put on record.
_ENDS = {
    LATE: Absence("late", "late"),
    AFTER_DEADLINE: Absence("late", AFTER_DEADLINE),
    LOST: Absence("lost", "not connected any more"),
    DAMAGED: Absence("rejected", "its reply cannot be read, or is not what was announced"),
}
NOT_CONNECTED = Absence("away", "not connected")
PAUSED = Absence("refused", RefusalReason.PAUSED.value)


class Conversation:
    """One study's messages.

    Args:
        study: The study.
        run: The run's identifier.
        sites: All that train or evaluate.
        words: The vocabulary of a report task.
        reference: Of grey levels, with data.harmonise.
        frozen_sha256: Hash of what is frozen of the model.
        stated_participants: The number of participants that sites are told, where the true one is
            not for them to know; None for the true one.

    Attributes:
        sites: What each site did in the current round, by name.
        left: Names of sites that refused for good; they are not asked again.
        heads: The ledger heads that sites sent in the current round, by name.
        countersignatures: By name, what the next message to a site carries.
        order: Names of the sites whose updates were taken in the current round, as they came.
        counted: By name, the last round in which a site's update counted, where sites need to know.
        in_vain: Names of sites that did all that they were asked for in the current round, which
            gave nothing because of others.
    """

    def __init__(
        self,
        study: StudyConfig,
        run: str,
        sites: Iterable[Participant],
        *,
        words: tuple[str, ...],
        reference: tuple[float, ...],
        frozen_sha256: str,
        stated_participants: int | None,
    ) -> None:
        self._study = study
        self._run = run
        self._by_node = {site.node_id: site for site in sites}
        self._words = words
        self._reference = reference
        self._frozen_sha256 = frozen_sha256
        self._stated_participants = stated_participants
        self._asked = 0.0
        self.sites: dict[str, SiteRound] = {}
        self.left: set[str] = set()
        self.heads: dict[str, str] = {}
        self.countersignatures: Mapping[str, str] = {}
        self.order: list[str] = []
        self.counted: dict[str, int] = {}
        self.in_vain: set[str] = set()

    def admit(self, site: Participant) -> None:
        """Listen to a site; through this node alone, if it had another one before."""
        self._by_node = {
            node: known for node, known in self._by_node.items() if known.name != site.name
        }
        self._by_node[site.node_id] = site

    def name_of(self, node: int) -> str:
        """Return the name of the site behind a node; empty if there is none."""
        return self._by_node[node].name if node in self._by_node else ""

    def start_round(
        self,
        chosen: Sequence[Participant],
        absent: Mapping[str, Absence] = MappingProxyType({}),
    ) -> None:
        """Begin a round of training with the sites that were chosen for it; `absent` by name."""
        self._asked = time.perf_counter()
        self.heads, self.order, self.in_vain = {}, [], set()
        self.sites = {site.name: SiteRound(status="failed", reason="no answer") for site in chosen}
        for name, why in absent.items():
            self.sites[name] = SiteRound(status=why.status, reason=why.reason)

    def model_messages(
        self,
        kind: str,
        round_number: int,
        arrays: ArrayRecord,
        to: Sequence[Participant],
        *,
        parcels: Mapping[str, bytes] = MappingProxyType({}),
        weights: Mapping[str, int] = MappingProxyType({}),
        correction: Callable[[str], StateDict] | None = None,
        num_combined: int | None = None,
    ) -> list[Message]:
        """Return a message of `kind` (train or evaluate) with the model for each of the sites.

        Args:
            kind: The message's type.
            round_number: 1-based.
            arrays: The packed model.
            to: Sites to ask.
            parcels: Under secure aggregation, the others' shares for each of `to`, by name.
            weights: Under secure aggregation, the weight of each site of the round, by name; those
                that have dropped out by now included.
            correction: With scaffold, from a site's name to what it adds to its gradients.
            num_combined: Updates that will be combined, where that is not one of each of `to`.
        """
        stated = num_combined if num_combined is not None else self._stated_participants
        contents = messages.pack_model(
            self._study,
            self._run,
            round_number,
            arrays,
            frozen_sha256=self._frozen_sha256,
            words=self._words,
            reference=self._reference,
            num_participants=(len(weights) or len(to)) if stated is None else stated,
            total_weight=sum(weights.values()) or 1,
        )
        return self.address(
            kind,
            round_number,
            to,
            lambda site: contents(
                self.countersignatures.get(site.name, ""),
                parcels=parcels.get(site.name, b""),
                weight=weights.get(site.name, 1),
                correction=correction(site.name) if correction else None,
                counted_round=self.counted.get(site.name, 0),
            ),
        )

    def split_contents(self, round_number: int, num_participants: int) -> SplitContents:
        """Return what makes the contents of a round of split learning."""
        return messages.pack_split(
            self._study,
            self._run,
            round_number,
            frozen_sha256=self._frozen_sha256,
            reference=self._reference,
            num_participants=num_participants,
        )

    def address(
        self,
        kind: str,
        round_number: int,
        to: Sequence[Participant],
        content_for: Callable[[Participant], RecordDict],
    ) -> list[Message]:
        """Return a message of `kind` for each of the sites, and count its bytes."""
        outgoing = []
        for site in to:
            content = content_for(site)
            self.round_of(site.name).bytes_down += messages.num_bytes(content)
            outgoing.append(
                Message(
                    content=content,
                    dst_node_id=site.node_id,
                    message_type=kind,
                    group_id=str(round_number),
                    # A message must not outlive its round: a late site would train for nothing.
                    ttl=self._study.federation.round_timeout_s,
                )
            )
        return outgoing

    def opened(self, replies: Iterable[Message]) -> Iterator[tuple[Participant, Reply]]:
        """Yield who answered and what; replies that say no or cannot be read are noted instead."""
        for message in replies:
            site = self._by_node.get(message.metadata.src_node_id)
            reply = None if site is None else self._open(message, site)
            # Nothing of it is held while the next one is fetched.
            del message
            if site is not None and reply is not None:
                yield site, reply
            del reply

    def _open(self, message: Message, site: Participant) -> Reply | None:
        self.round_of(site.name).bytes_up += messages.num_bytes(message.content)
        try:
            reply = messages.unpack_reply(message.content)
            if reply.site != site.name:
                raise MessageError(f"the site that joined as {site.name} calls itself another name")
        except MessageError as error:
            self.reject(site.name, str(error))
            return None
        if isinstance(reply, Refusal):
            self._refused(site.name, reply)
            return None
        return reply

    def note_head(self, site: Participant, head: str) -> None:
        """Keep the ledger head that a site sent: it is countersigned, whatever else it sent.

        Raises:
            UpdateError: It is no ledger head.
        """
        self.heads[site.name] = screen_head(head)

    def accept(self, site: Participant, reply: TrainReply, weight: int) -> None:
        """Note that a site's update was aggregated."""
        record = self.round_of(site.name)
        record.status, record.reason, record.weight = "ok", "", weight
        self.order.append(site.name)
        record.update_bytes = record.bytes_up  # it has sent nothing else in this round so far
        record.epsilon, record.noise = reply.epsilon, reply.noise
        # Round records leave the server, and no epsilon, a site's least, covers a site's own loss.
        record.loss = None if self._study.privacy.enabled else reply.loss
        record.seconds = time.perf_counter() - self._asked

    def note_counted(self, round_number: int, sites: Mapping[str, SiteRound]) -> None:
        """Note that a round counts, and with it the updates of it that were aggregated."""
        if self._study.compression.keeps_residual:
            used = (name for name, site in sites.items() if site.status == "ok" and site.weight)
            self.counted.update(dict.fromkeys(used, round_number))

    def reject(self, name: str, reason: str) -> None:
        """Note that a site's reply cannot be used."""
        # It may quote what the site sent.
        reason = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}..."
        log.warning("A reply of %s was rejected: %s", name, reason)
        record = self.round_of(name)
        if record.status == "ok":  # its update counts; what came after it does not
            self._note(name, reason)
        else:
            record.status, record.reason = "rejected", reason

    def note_failures(self, failures: Mapping[int, str]) -> None:
        """Record why training sites, by node, gave no reply."""
        for node_id, reason in failures.items():
            site = self.sites.get(self.name_of(node_id))
            if site is not None and site.status == "failed":
                site.status, site.reason = _ENDS.get(reason, Absence("failed", reason))

    def note_damaged(self, failures: Mapping[int, str]) -> None:
        """Record whose figures, by node, could not be read."""
        for node_id, reason in failures.items():
            if reason == DAMAGED and self.name_of(node_id):
                self.reject(self.name_of(node_id), _ENDS[DAMAGED].reason)

    def note_ignored(self, ignored: Iterable[tuple[int, str]]) -> None:
        """Record what came from a node, or in its name, and was not used."""
        for node_id, why in ignored:
            name = self.name_of(node_id)
            log.warning("Ignored, from %s: %s.", name or "an unknown node", why)
            if name in self.sites:
                self._note(name, why)

    def note_turned_away(self, reasons: Mapping[str, str]) -> None:
        """Record, by name, why the gate turned away what sites sent, of those without an answer."""
        for name, reason in reasons.items():
            site = self.sites.get(name)
            if site is not None and site.status in ("failed", "late", "lost"):
                site.status, site.reason = "rejected", f"turned away by the gate: {reason}"

    def note_lost(self, reason: str) -> None:
        """Note that the round gave no sum, for sites that nothing else is known of."""
        for name, site in self.sites.items():
            if site.status == "failed" and site.reason == "no answer":
                site.reason = f"the round was lost: {reason}"
                self.in_vain.add(name)

    @property
    def num_updates(self) -> int:
        """Usable updates of the current round."""
        return sum(site.status == "ok" for site in self.sites.values())

    def round_of(self, name: str) -> SiteRound:
        """Return what is known of a site in the current round."""
        # A site that only evaluates in this round took no part in training: nothing went wrong.
        return self.sites.setdefault(name, SiteRound(status="ok", reason="evaluation only"))

    def _note(self, name: str, why: str) -> None:
        noted = self.sites[name].ignored
        # A flood of them must not fill the record.
        if len(noted) < _MOST_IGNORED:
            noted.append(why)

    def _refused(self, name: str, refusal: Refusal) -> None:
        record = self.round_of(name)
        if record.status == "failed":
            record.status, record.reason = "refused", refusal.reason.value
            if refusal.reason.is_final:
                self.left.add(name)
