"""Who takes part: nodes are asked who they are, before the first round and between rounds.

One hospital must not be able to speak as another. Where the coordinator registered the nodes' keys
under their sites' names, a node that calls itself anything else is turned away. Elsewhere (in one
process, or on a SuperLink without authentication) the name is taken on trust.
"""

import logging
import re
import time
from collections.abc import Iterable

from flwr.app import Message
from flwr.serverapp import Grid

from medfed.common import messages
from medfed.common.errors import MessageError, RefusalReason, RunError
from medfed.common.messages import JoinReply, JoinRequest, Refusal
from medfed.common.study import StudyConfig
from medfed.server.exchange import Exchange
from medfed.server.participants import Participant
from medfed.server.presence import Presence
from medfed.server.records import ArmFolder, RunPlan

log = logging.getLogger(__name__)

_JOIN_GRACE_S = 5.0
# Whoever could not join, or is paused, is asked again after so long.
_ASK_AGAIN_S = 15.0
# As `common.study.Name`.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# What a site calls itself that cannot read its own site.toml.
UNKNOWN = "unknown"


class Joining:
    """The sites of a run.

    Args:
        grid: Flower's.
        study: The study.
        plan: Names the run and its quorum.
        arm: Takes the events.
        presence: Who is connected.

    Attributes:
        sites: Who joined, by name.
        refused: Who did not want to, by name, and why; nodes that were turned away included.
    """

    def __init__(
        self, grid: Grid, study: StudyConfig, plan: RunPlan, arm: ArmFolder, presence: Presence
    ) -> None:
        self._study = study
        self._plan = plan
        self._arm = arm
        self._presence = presence
        self._exchange = Exchange(grid)
        self._asked: dict[int, str] = {}
        self._again: dict[int, float] = {}
        self._paused: set[int] = set()
        self._begun = False
        self._seen = -1
        self.sites: dict[str, Participant] = {}
        self.refused: dict[str, str] = {}

    def wait(self) -> None:
        """Ask every node who it is, until the expected sites have answered or time is up.

        Nodes are asked as they appear, and none is waited for while others are missing: a SuperNode
        that was killed counts as online for about a minute, and would never answer.

        Raises:
            RunError: Fewer sites than the quorum; or two nodes of one name that nobody registered.
        """
        timeout_s = self._study.federation.join_timeout_s
        deadline = time.monotonic() + timeout_s
        told = ""
        while time.monotonic() < deadline:
            self.look(max(1.0, deadline - time.monotonic()))
            if self._is_settled():
                # Whoever else is online has a moment to answer too.
                deadline = min(deadline, time.monotonic() + _JOIN_GRACE_S)
                if not self._exchange.num_waiting:
                    break
            elif self._state() != told and time.monotonic() > deadline - timeout_s + _JOIN_GRACE_S:
                told = self._state()
                self._arm.emit("waiting", reason=told)
            self._exchange.wait()
        self._begun = True
        if len(self.sites) < self._plan.min_sites:
            raise RunError(
                f"Expected at least {self._plan.min_sites} sites, {len(self.sites)} joined."
                f"{self._answers()} Lower federation.min_sites, raise federation.join_timeout_s, "
                "or see the sites' logs."
            )

    def look(self, timeout_s: float) -> list[Participant]:
        """Ask whoever is new, and return who joined, or came back through another node.

        Does not wait for answers: those that are not there yet are taken at the next look.

        Args:
            timeout_s: For how long an answer is of use.
        """
        self._presence.look()
        new = self._to_ask()
        for node in new:
            self._asked[node] = self._presence.start_of(node)
            self._again.pop(node, None)
            self._paused.discard(node)
            self._exchange.failures.pop(node, None)
        self._exchange.push(self._requests(new, timeout_s))
        joined = [site for message in self._exchange.pull() if (site := self._take(message))]
        self._later(node for node in self._exchange.failures if node not in self._again)
        return joined

    def probe(self, names: Iterable[str]) -> None:
        """Ask sites that joined and then paused whether they go on; they join once more."""
        nodes = [self.sites[name].node_id for name in names]
        self._later(node for node in nodes if node not in self._again)

    def is_probed(self, name: str) -> bool:
        """Whether a site that joined has been asked whether it goes on, and has not said so."""
        node = self.sites[name].node_id
        return node in self._again or self._exchange.is_waiting_for(node)

    @property
    def is_open(self) -> bool:
        """Whether sites may still join: who trains and evaluates was left open."""
        named = (self._plan.train_sites, self._plan.evaluate_sites)
        return any(names is None for names in named) or not {
            name for names in named for name in names or ()
        } <= set(self.sites)

    def _to_ask(self) -> list[int]:
        # With thousands of sites, going through all of them at every answer takes minutes.
        if self._presence.changes == self._seen and not self._again:
            return []
        self._seen = self._presence.changes
        known = {site.node_id for site in self.sites.values()}
        may_join = not self._begun or self.is_open
        return [node for node in self._presence.online if self._is_to_ask(node, known, may_join)]

    def _is_to_ask(self, node: int, known: set[int], may_join: bool) -> bool:
        if node not in known and not may_join:
            return False
        if node in self._again:
            return time.monotonic() >= self._again[node]
        # A site that joined need not join again because its connection was cut.
        return node not in known and self._asked.get(node) != self._presence.start_of(node)

    def _later(self, nodes: Iterable[int]) -> None:
        self._again |= dict.fromkeys(nodes, time.monotonic() + _ASK_AGAIN_S)

    def _requests(self, nodes: Iterable[int], timeout_s: float) -> list[Message]:
        content = messages.pack_join_request(JoinRequest(study=self._study, run=self._plan.run))
        return [
            Message(content=content, dst_node_id=node, message_type=messages.JOIN, ttl=timeout_s)
            for node in nodes
        ]

    def _take(self, message: Message) -> Participant | None:
        """Note an answer; return the site if it is one that joined.

        Raises:
            RunError: Before the first round, two nodes have one name, and none is registered.
        """
        node = message.metadata.src_node_id
        try:
            reply = messages.unpack_reply(message.content)
        except MessageError as error:
            log.warning("A node's answer to joining was not understood: %s", error)
            return None
        if not isinstance(reply, JoinReply | Refusal):
            log.warning("A node answered joining with %s.", type(reply).__name__)
            return None
        name, registered = reply.site, self._presence.name_of(node)
        if isinstance(reply, Refusal) and name == UNKNOWN:
            name = registered or name
        if not _NAME.fullmatch(name):
            self._note_refusal(registered or UNKNOWN, "calls itself what no site can be called")
        elif registered not in ("", name):
            self._note_refusal(registered, f"calls itself {name} but is registered as {registered}")
        elif isinstance(reply, Refusal):
            if not reply.reason.is_final:
                self._later([node])
            if reply.reason is RefusalReason.PAUSED:
                self._paused.add(node)
            # Of a site that joined and was probed, the round has told.
            self._note_refusal(name, reply.reason.value, tell=name not in self.sites)
        else:
            return self._admit(Participant(name, node, reply.public_num_patients), registered)
        return None

    def _admit(self, site: Participant, registered: str) -> Participant | None:
        known = self.sites.get(site.name)
        if known is not None and known.node_id != site.node_id:
            if not registered and not self._begun:
                raise RunError(
                    f"Two nodes call themselves {site.name}. Give each site its own name."
                )
            if self._presence.is_online(known.node_id):
                self._note_refusal(site.name, "a second node of that name is connected")
                return None
        self.sites[site.name] = site
        self.refused.pop(site.name, None)
        if known is None:
            self._arm.emit("joined", site=site.name)
        return site if known != site else None

    def _note_refusal(self, name: str, why: str, *, tell: bool = True) -> None:
        if tell and self.refused.get(name) != why:
            self._arm.emit("refused", site=name, reason=why)
        self.refused[name] = why

    def _is_settled(self) -> bool:
        """Whether as many nodes as expected have answered, or will not."""
        answered = len(self._asked) - self._exchange.num_waiting
        if len(self.sites) < self._plan.min_sites:
            # Someone will resume a site that is paused; that is worth waiting for.
            answered -= len(self._paused)
        return answered >= self._plan.expected_sites

    def _state(self) -> str:
        return (
            f"{len(self.sites)} of {self._plan.expected_sites} sites joined; "
            f"{self._plan.min_sites} are needed.{self._answers()}"
        )

    def _answers(self) -> str:
        text = "".join(
            f" {name} refused ({why})."
            for name, why in sorted(self.refused.items())
            if name not in self.sites
        )
        return text + "".join(f" One site gave {why}." for why in self._exchange.failures.values())
