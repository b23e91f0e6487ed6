"""FedAvg as a Flower `Strategy`: the plumbing between messages and the pure aggregation rule.

Our round loop (`server.loop`) drives it, with deadline, quorum, checkpoint and records; Flower's
own `Strategy.start` can drive it too.
"""

import logging
import time
from collections.abc import Iterable, Sequence

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from medfed.common import messages
from medfed.common.errors import MessageError, UpdateError
from medfed.common.messages import EvaluateReply, Refusal, Reply, TrainReply
from medfed.common.metrics import MetricSums, add_sums
from medfed.common.state_dicts import StateDict
from medfed.common.study import StudyConfig
from medfed.common.tasks import make_task
from medfed.server.aggregation.fedavg import FedAvg
from medfed.server.participants import Participant, draw_participants, site_weight
from medfed.server.records import SiteRound
from medfed.server.screening import screen_examples, screen_sums, screen_update

log = logging.getLogger(__name__)


class FedAvgStrategy(Strategy):
    """One study's rounds.

    Attributes:
        sites: What each site did in the current round, by name.
        sums: The released metric sums of the last evaluation, by name.
        left: Names of sites that refused to go on; they are not asked again.
    """

    def __init__(
        self,
        study: StudyConfig,
        run: str,
        trainers: Sequence[Participant],
        evaluators: Sequence[Participant],
        *,
        words: tuple[str, ...] = (),
        frozen_sha256: str,
    ) -> None:
        self._study = study
        self._run = run
        self._task = make_task(study, words)
        self._words = words
        self._frozen_sha256 = frozen_sha256
        self._trainers = trainers
        self._evaluators = evaluators
        self._by_node = {site.node_id: site for site in [*trainers, *evaluators]}
        self._weights: StateDict = {}
        self._asked = 0.0
        self.sites: dict[str, SiteRound] = {}
        self.sums: dict[str, MetricSums] = {}
        self.left: set[str] = set()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return one training message for each participant of the round."""
        self._weights = messages.unpack_arrays(arrays)
        self._asked = time.perf_counter()
        staying = [site for site in self._trainers if site.name not in self.left]
        chosen = draw_participants(staying, self._study, server_round)
        self.sites = {site.name: SiteRound(status="failed", reason="no answer") for site in chosen}
        return self._messages(messages.TRAIN, server_round, arrays, chosen)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold replies in as they come; None if no update was usable."""
        rule = FedAvg(self._weights)
        for message in replies:
            site, reply = self._open(message)
            if site is None:
                continue
            if isinstance(reply, TrainReply):
                self._fold(rule, site, reply)
            elif reply is not None:
                self._reject(site.name, f"answered training with {type(reply).__name__}")
        if not rule.num_updates:
            return None, None
        summary = MetricRecord({"num_updates": rule.num_updates})
        return messages.pack_arrays(rule.apply()), summary

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return one evaluation message for each evaluating site."""
        self.sums = {}
        return self._messages(messages.EVALUATE, server_round, arrays, self._evaluators)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Add the sites' sums; None if no site released any."""
        for message in replies:
            site, reply = self._open(message)
            if site is None or not isinstance(reply, EvaluateReply) or reply.sums is None:
                continue
            try:
                screen_sums(reply.sums, self._task.sum_shapes())
            except UpdateError as error:
                log.warning("Metric sums of %s were rejected: %s", site.name, error)
                continue
            self.sums[site.name] = reply.sums
            self._round_of(site.name).metrics = self._task.metrics(reply.sums)
        if not self.sums:
            return None
        return MetricRecord(dict(self._task.metrics(add_sums(self.sums.values()))))

    def summary(self) -> None:
        """Log what this strategy does."""
        log.info(
            "FedAvg, weighting %s, %d training sites", self._study.weighting, len(self._trainers)
        )

    def note_failures(self, failures: dict[int, str]) -> None:
        """Record why training sites gave no reply."""
        for node_id, reason in failures.items():
            site = self.sites.get(self._by_node[node_id].name)
            if site is not None and site.status == "failed":
                site.status = "late" if reason == "late" else "failed"
                site.reason = reason

    @property
    def num_updates(self) -> int:
        """Usable updates of the current round."""
        return sum(site.status == "ok" for site in self.sites.values())

    def _messages(
        self, kind: str, server_round: int, arrays: ArrayRecord, to: Sequence[Participant]
    ) -> list[Message]:
        contents = messages.pack_model(
            self._study,
            self._run,
            server_round,
            arrays,
            frozen_sha256=self._frozen_sha256,
            words=self._words,
            num_participants=len(to),
        )
        timeout_s = self._study.federation.round_timeout_s
        outgoing = []
        for site in to:
            content = contents("")
            self._round_of(site.name).bytes_down += messages.num_bytes(content)
            outgoing.append(
                Message(
                    content=content,
                    dst_node_id=site.node_id,
                    message_type=kind,
                    group_id=str(server_round),
                    # A message must not outlive its round: a late site would train for nothing.
                    ttl=timeout_s,
                )
            )
        return outgoing

    def _open(self, message: Message) -> tuple[Participant | None, Reply | None]:
        """Return who answered and what; a reply that cannot be read is recorded as rejected."""
        site = self._by_node.get(message.metadata.src_node_id)
        if site is None:
            return None, None
        self._round_of(site.name).bytes_up += messages.num_bytes(message.content)
        try:
            reply = messages.unpack_reply(message.content)
            if reply.site != site.name:
                raise MessageError(f"the site that joined as {site.name} calls itself another name")
        except MessageError as error:
            self._reject(site.name, str(error))
            return site, None
        if isinstance(reply, Refusal):
            self._refused(site.name, reply)
            return site, None
        return site, reply

    def _fold(self, rule: FedAvg, site: Participant, reply: TrainReply) -> None:
        try:
            screen_update(reply.update, self._weights)
            weight = site_weight(site, self._study, self._trainers)
            if weight is None:
                weight = screen_examples(reply.num_examples)
            rule.add(reply.update, weight)
        except UpdateError as error:
            self._reject(site.name, str(error))
            return
        record = self._round_of(site.name)
        record.status, record.reason, record.weight = "ok", "", weight
        record.loss, record.epsilon, record.noise = reply.loss, reply.epsilon, reply.noise
        record.seconds = time.perf_counter() - self._asked

    def _refused(self, name: str, refusal: Refusal) -> None:
        record = self._round_of(name)
        if record.status == "failed":
            record.status, record.reason = "refused", refusal.reason.value
            self.left.add(name)

    def _reject(self, name: str, reason: str) -> None:
        record = self._round_of(name)
        record.status, record.reason = "rejected", reason
        log.warning("A reply of %s was rejected: %s", name, reason)

    def _round_of(self, name: str) -> SiteRound:
        # A site that only evaluates in this round took no part in training: nothing went wrong.
        return self.sites.setdefault(name, SiteRound(status="ok", reason="evaluation only"))
