"""A round's updates as they arrive: screened, unpacked, and folded into the study's rule."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message

from medfed.common import compression, messages
from medfed.common.errors import UpdateError
from medfed.common.messages import TrainReply
from medfed.common.state_dicts import StateDict
from medfed.common.study import StudyConfig
from medfed.server.aggregation.choice import normalises, rule_for
from medfed.server.aggregation.fednova import effective_steps
from medfed.server.aggregation.rule import Rule
from medfed.server.aggregation.scaffold import Variates
from medfed.server.conversation import Conversation
from medfed.server.participants import Participant, site_weight
from medfed.server.screening import (
    screen_examples,
    screen_loss,
    screen_size,
    screen_statement,
    screen_update,
)

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


class Updates:
    """Takes updates.

    Args:
        study: The study.
        conversation: Notes what each site sent.
        trainers: Sites that train now; the list itself, since sites may join.
        parameters: Names of what of the model has gradients; for fednova.
        variates: Exactly where the study is scaffold.

    Attributes:
        weights: What updates are added to.
        staleness: With fedbuff, by site, rounds since it was asked; else empty.
        trained_here: With split, what is added to sites' updates.
    """

    def __init__(
        self,
        study: StudyConfig,
        conversation: Conversation,
        trainers: Sequence[Participant],
        *,
        parameters: Collection[str],
        variates: Variates | None,
    ) -> None:
        self._study = study
        self._conversation = conversation
        self._trainers = trainers
        self._parameters = frozenset(parameters)
        self._variates = variates
        self._steps: dict[str, float] = {}
        self._losses: dict[str, float] = {}
        self.weights: StateDict = {}
        self.staleness: Mapping[str, int] = {}
        self.trained_here = TrainedHere()

    def rule(self) -> Rule:
        """Return the study's rule for a round that starts from `weights`, with nothing in it."""
        return rule_for(
            self._study,
            self.weights,
            self._parameters,
            self._steps,
            self.staleness,
            self._losses,
        )

    def fold_all(self, rule: Rule, replies: Iterable[Message]) -> None:
        """Fold replies into `rule` as they come; what cannot be used is noted."""
        # A filter holds no message while the next one is fetched, as a generator would.
        for site, reply in self._conversation.opened(filter(self._fits, replies)):
            if self._conversation.round_of(site.name).status != "failed":
                log.warning("%s was not asked, or answered twice: ignored.", site.name)
            elif isinstance(reply, TrainReply):
                self._fold(rule, site, reply)
            else:
                self._conversation.reject(
                    site.name, f"answered training with {type(reply).__name__}"
                )

    def _fits(self, message: Message) -> bool:
        """Whether a reply is no larger than one with an update; others are let go unread."""
        num_bytes = messages.num_bytes(message.content)
        name = self._conversation.name_of(message.metadata.src_node_id)
        try:
            screen_size(num_bytes, self._travelling())
        except UpdateError as error:
            if name:
                self._conversation.round_of(name).bytes_up += num_bytes
                self._conversation.reject(name, str(error))
            return False
        return True

    def _fold(self, rule: Rule, site: Participant, reply: TrainReply) -> None:
        try:
            self._conversation.note_head(site, reply.ledger_head)
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
            self._conversation.reject(site.name, str(error))
            return
        if self._variates is not None:
            self._variates.note(site.name, variate)
        self._conversation.accept(site, reply, weight)

    def _travelling(self) -> StateDict:
        """Return what an update looks like on its way."""
        here = self.trained_here.names
        weights = {name: array for name, array in self.weights.items() if name not in here}
        return compression.template(weights, self._parameters, self._study.compression)

    def _decoded(self, travelled: StateDict, site: str) -> StateDict:
        """Return the update of the whole model."""
        section = self._study.compression
        if not self.trained_here.names:
            return compression.decode(travelled, self.weights, self._parameters, section)
        both = travelled | self.trained_here.updates.pop(site)
        return {name: both[name] for name in self.weights}

    def _variate_of(self, site: str, reply: TrainReply) -> StateDict:
        """Return what follows of a site's drift; empty but for scaffold."""
        if self._variates is None:
            return {}
        return self._variates.next_of(
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
