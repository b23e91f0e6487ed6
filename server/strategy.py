"""Rounds as a Flower `Strategy`: the plumbing between messages and the pure aggregation rules.

Our round loop (`server.loop`) drives it, with deadline, quorum, checkpoint and records; Flower's
own `Strategy.start` can drive it too, but for algorithms that the server keeps a state for: that
moves once a round counts (`server.progress`), which only our loop decides; and for those in which
sites do not train all at once, or not the whole model (`server.cyclic`, `server.buffered`,
`server.split`).
"""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from medfed.common import compression, messages
from medfed.common.errors import UpdateError
from medfed.common.messages import EvaluateReply, TrainReply
from medfed.common.state_dicts import StateDict, digest
from medfed.common.study import StudyConfig
from medfed.common.tasks import make_task, pooled_metrics
from medfed.server.aggregation.choice import normalises, rule_for
from medfed.server.aggregation.fednova import effective_steps
from medfed.server.aggregation.rule import Rule
from medfed.server.aggregation.scaffold import Variates
from medfed.server.conversation import Absence, Conversation
from medfed.server.participants import (
    Participant,
    draw_evaluators,
    draw_participants,
    site_weight,
)
from medfed.server.released_sums import ReleasedSums
from medfed.server.screening import (
    screen_examples,
    screen_loss,
    screen_size,
    screen_statement,
    screen_sums,
    screen_update,
)
from medfed.server.site_privacy import SitePrivacy, noised_by_server

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedHere:
    """What of a round's updates the server made itself, with split learning.

    Attributes:
        names: Of the arrays that sites neither get nor send.
        updates: By site, their update.
    """

    names: frozenset[str] = frozenset()
    updates: dict[str, StateDict] = field(default_factory=dict)


class FedAvgStrategy(Strategy):
    """One study's rounds.

    Args:
        study: The study.
        run: The run's identifier.
        trainers: Sites that train.
        evaluators: Sites that evaluate.
        words: The vocabulary of a report task.
        reference: Of grey levels, with data.harmonise.
        frozen_sha256: Hash of what is frozen of the model.
        parameters: Names of what of the model has gradients; for fednova.
        variates: Exactly where the study is scaffold.
        privacy: Noise of the server, exactly where the study asks the server for it.

    Attributes:
        conversation: What was said in the current round, and what each site did.
        sums: What sites released of the last evaluation.
        global_sums: With personal models, the same of the global model.
        absent: Sites that are not asked anything now, by name, and why.
        training: With fedbuff, names of sites that are busy: they are not asked for figures.
        variates: With scaffold, what each site drifts by.
    """

    def __init__(
        self,
        study: StudyConfig,
        run: str,
        trainers: Sequence[Participant],
        evaluators: Sequence[Participant],
        *,
        words: tuple[str, ...] = (),
        reference: tuple[float, ...] = (),
        frozen_sha256: str,
        parameters: Collection[str] = (),
        variates: Variates | None = None,
        privacy: SitePrivacy | None = None,
    ) -> None:
        if noised_by_server(study) != (privacy is not None):
            raise ValueError('Expected SitePrivacy exactly where privacy.unit is "site".')
        if (study.federation.algorithm == "scaffold") != (variates is not None):
            raise ValueError("Expected Variates exactly where the algorithm is scaffold.")
        self._study = study
        self._privacy = privacy
        self._task = make_task(study, words)
        self._trainers = list(trainers)
        self._evaluators = list(evaluators)
        self.absent: dict[str, Absence] = {}
        self.training: frozenset[str] = frozenset()
        self._weights: StateDict = {}
        self._staleness: Mapping[str, int] = {}
        self._trained_here = TrainedHere()
        self._parameters = frozenset(parameters)
        self._steps: dict[str, float] = {}
        self._losses: dict[str, float] = {}
        self.variates = variates
        self.sums = ReleasedSums()
        self.global_sums = ReleasedSums()
        self.conversation = Conversation(
            study,
            run,
            [*trainers, *evaluators],
            words=words,
            reference=reference,
            frozen_sha256=frozen_sha256,
            stated_participants=privacy.stated_participants if privacy else None,
        )

    @property
    def num_updates(self) -> int:
        """Usable updates of the current round."""
        return self.conversation.num_updates

    @property
    def staying(self) -> list[Participant]:
        """Training sites that have not withdrawn."""
        return [site for site in self._trainers if site.name not in self.conversation.left]

    @property
    def present(self) -> list[Participant]:
        """Those of `staying` that can be asked now."""
        return [site for site in self.staying if site.name not in self.absent]

    def admit(self, site: Participant, *, trains: bool, evaluates: bool) -> None:
        """Take in a site that joined late, or that came back through another node."""
        for sites, takes_part in ((self._trainers, trains), (self._evaluators, evaluates)):
            known = [each for each in sites if each.name == site.name]
            for old in known:
                sites.remove(old)
            if known or takes_part:
                sites.append(site)
        self.conversation.admit(site)

    def choose(self, server_round: int) -> list[Participant]:
        """Draw the participants of a round, and begin it."""
        if self._privacy is None:
            chosen = draw_participants(self.present, self._study, server_round)
        else:
            chosen = self._privacy.draw(self.present, server_round)
        trainers = {site.name for site in self.staying}
        absent = {name: why for name, why in self.absent.items() if name in trainers}
        self.conversation.start_round(chosen, absent)
        return chosen

    def start_from(
        self,
        weights: StateDict,
        staleness: Mapping[str, int],
        trained_here: TrainedHere | None = None,
    ) -> None:
        """Set what updates are added to, where the caller asks for them itself.

        Args:
            weights: What `aggregate_train` starts from.
            staleness: With fedbuff, by site, rounds since it was asked; else empty.
            trained_here: With split, what is added to sites' updates; it is filled as they come.
        """
        self._weights, self._staleness = weights, staleness
        self._trained_here = trained_here or TrainedHere()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return one training message for each participant of the round."""
        self._weights = messages.unpack_arrays(arrays)
        chosen = self.choose(server_round)
        correction = None
        if self.variates is not None:
            self.variates.begin([site.name for site in self._trainers])
            correction = self._correction
        return self.conversation.model_messages(
            messages.TRAIN, server_round, arrays, chosen, correction=correction
        )

    def _correction(self, site: str) -> StateDict:
        """Return what a site is to add to its gradients, and put its digest on record."""
        assert self.variates is not None  # configure_train asks with scaffold only
        found = self.variates.correction(site, self._weights)
        self.conversation.round_of(site).correction_sha256 = digest(found)
        return found

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold replies in as they come; None if too few were usable for the study's rule.

        Under site-level privacy there is always a result, if need be of noise alone, and no count.
        """
        if self._privacy is not None:
            noisy = self._privacy.rule(self._weights, server_round)
            self._fold_all(noisy, replies)
            new = self._privacy.release(noisy, self._weights, server_round)
            return messages.pack_arrays(new), MetricRecord()
        section = self._study.aggregation
        rule = rule_for(
            self._study,
            self._weights,
            self._parameters,
            self._steps,
            self._staleness,
            self._losses,
        )
        self._fold_all(rule, replies)
        if rule.num_updates < section.min_updates:
            log.warning(
                "Round %d had %d usable updates; %s needs %d to hold against what a site may send.",
                server_round,
                rule.num_updates,
                section.rule,
                section.min_updates,
            )
            return None, None
        new = rule.apply()
        for name, note in rule.notes.items():
            self.conversation.round_of(name).reason = note
        return messages.pack_arrays(new), MetricRecord({"num_updates": rule.num_updates})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return one evaluation message for each evaluating site."""
        self.sums, self.global_sums = ReleasedSums(), ReleasedSums()
        others = self.absent.keys() | self.training
        present = [site for site in self._evaluators if site.name not in others]
        asked = draw_evaluators(present, self._study, server_round)
        return self.conversation.model_messages(messages.EVALUATE, server_round, arrays, asked)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Add the sites' sums; None if no site released any."""
        for site, reply in self.conversation.opened(replies):
            if not isinstance(reply, EvaluateReply) or reply.sums is None:
                continue
            try:
                screen_sums(reply.sums, self._task.sum_shapes())
                self._note_global(site, reply)
            except UpdateError as error:
                self.conversation.reject(site.name, str(error))
                continue
            self.sums.add(site.name, reply.sums)
            self.conversation.round_of(site.name).metrics = self._task.metrics(reply.sums)
        if not self.sums:
            return None
        return MetricRecord(dict(pooled_metrics(self._task, self.sums.parts)))

    def _note_global(self, site: Participant, reply: EvaluateReply) -> None:
        """Note the global model's sums, where a site uses a personal one.

        Raises:
            UpdateError: They are none, or there where there is no other model.
        """
        if reply.global_sums is None:
            return
        if not self._study.federation.has_personal_models:
            raise UpdateError("Expected sums of one model, got those of two.")
        screen_sums(reply.global_sums, self._task.sum_shapes())
        self.global_sums.add(site.name, reply.global_sums)
        found = self._task.metrics(reply.global_sums)
        self.conversation.round_of(site.name).global_metrics = found

    @property
    def global_metrics(self) -> dict[str, float] | None:
        """With personal models, the global model's figures over all held-out images."""
        if not self.global_sums:
            return None
        return dict(pooled_metrics(self._task, self.global_sums.parts))

    def summary(self) -> None:
        """Log what this strategy does."""
        log.info(
            "%s, weighting %s, %d training sites, %s",
            self._study.federation.algorithm,
            self._study.weighting,
            len(self._trainers),
            f"{self._privacy.noise} noise on the sum"
            if self._privacy
            else "no noise of the server",
        )

    def _fold_all(self, rule: Rule, replies: Iterable[Message]) -> None:
        # A filter holds no message while the next one is fetched, as a generator would.
        for site, reply in self.conversation.opened(filter(self._fits, replies)):
            if self.conversation.round_of(site.name).status != "failed":
                log.warning("%s was not asked, or answered twice: ignored.", site.name)
            elif isinstance(reply, TrainReply):
                self._fold(rule, site, reply)
            else:
                self.conversation.reject(
                    site.name, f"answered training with {type(reply).__name__}"
                )

    def _fits(self, message: Message) -> bool:
        """Whether a reply is no larger than one with an update; others are let go unread."""
        num_bytes = messages.num_bytes(message.content)
        name = self.conversation.name_of(message.metadata.src_node_id)
        try:
            screen_size(num_bytes, self._travelling())
        except UpdateError as error:
            if name:
                self.conversation.round_of(name).bytes_up += num_bytes
                self.conversation.reject(name, str(error))
            return False
        return True

    def _fold(self, rule: Rule, site: Participant, reply: TrainReply) -> None:
        try:
            self.conversation.note_head(site, reply.ledger_head)
            screen_statement(reply)
            screen_update(reply.update, self._travelling())
            update = self._decoded(reply.update, site.name)
            weight = site_weight(site, self._study, self._trainers)
            if weight is None:
                weight = screen_examples(reply.num_examples)
            if normalises(self._study):
                steps = self._steps_of(reply)
                self._steps[site.name] = effective_steps(steps, self._study.training.momentum)
            if self._study.federation.algorithm == "qfedavg":
                self._losses[site.name] = screen_loss(reply.loss)
            variate = self._variate_of(site.name, reply)
            rule.add(update, weight, site.name)
        except UpdateError as error:
            self.conversation.reject(site.name, str(error))
            return
        if self.variates is not None:
            self.variates.note(site.name, variate)
        self.conversation.accept(site, reply, weight)

    def _travelling(self) -> StateDict:
        """Return what an update looks like on its way."""
        here = self._trained_here.names
        weights = {name: array for name, array in self._weights.items() if name not in here}
        return compression.template(weights, self._parameters, self._study.compression)

    def _decoded(self, travelled: StateDict, site: str) -> StateDict:
        """Return the update of the whole model."""
        section = self._study.compression
        if not self._trained_here.names:
            return compression.decode(travelled, self._weights, self._parameters, section)
        both = travelled | self._trained_here.updates.pop(site)
        return {name: both[name] for name in self._weights}

    def _variate_of(self, site: str, reply: TrainReply) -> StateDict:
        """Return what follows of a site's drift; empty but for scaffold."""
        if self.variates is None:
            return {}
        return self.variates.next_of(
            site,
            reply.update,
            num_steps=self._steps_of(reply),
            learning_rate=self._study.training.learning_rate,
        )

    def _steps_of(self, reply: TrainReply) -> int:
        """Return the steps that a site took: nothing is asked for it that is not released anyway.

        Raises:
            UpdateError: They follow from its number of images, which is none.
        """
        training = self._study.training
        if training.local_steps is not None:
            return training.local_steps
        return training.steps_for(screen_examples(reply.num_examples))
