"""Rounds as a Flower `Strategy`: the plumbing between messages and the pure aggregation rules.

Our round loop (`server.loop`) drives it, with deadline, quorum, checkpoint and records; Flower's
own `Strategy.start` can drive it too, but for algorithms that the server keeps a state for: that
moves once a round counts (`server.progress`), which only our loop decides; and for those in which
sites do not train all at once, or not the whole model (`server.cyclic`, `server.buffered`,
`server.split`).
"""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from medfed.common import messages
from medfed.common.state_dicts import StateDict, digest
from medfed.common.study import StudyConfig
from medfed.common.tasks import make_task
from medfed.server.aggregation.choice import check_number
from medfed.server.aggregation.scaffold import Variates
from medfed.server.conversation import Absence, Conversation
from medfed.server.figures import Figures
from medfed.server.participants import Participant, draw_evaluators, draw_participants
from medfed.server.released_sums import ReleasedSums
from medfed.server.site_privacy import SitePrivacy, noised_by_server
from medfed.server.updates import TrainedHere, Updates

log = logging.getLogger(__name__)


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
        self._trainers = list(trainers)
        self._evaluators = list(evaluators)
        self.absent: dict[str, Absence] = {}
        self.training: frozenset[str] = frozenset()
        self.variates = variates
        self.conversation = Conversation(
            study,
            run,
            [*trainers, *evaluators],
            words=words,
            reference=reference,
            frozen_sha256=frozen_sha256,
            stated_participants=privacy.stated_participants if privacy else None,
        )
        self._updates = Updates(
            study, self.conversation, self._trainers, parameters=parameters, variates=variates
        )
        self._figures = Figures(study, self.conversation, make_task(study, words))

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
        """Draw the participants of a round, and begin it.

        Raises:
            RunError: More than one round can hold.
        """
        if self._privacy is None:
            chosen = draw_participants(self.present, self._study, server_round)
            check_number(self._study, len(chosen))
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
        self._updates.weights, self._updates.staleness = weights, staleness
        self._updates.trained_here = trained_here or TrainedHere()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return one training message for each participant of the round."""
        self._updates.weights = messages.unpack_arrays(arrays)
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
        found = self.variates.correction(site, self._updates.weights)
        self.conversation.round_of(site).correction_sha256 = digest(found)
        return found

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold replies in as they come; None if too few were usable for the study's rule.

        Under site-level privacy there is always a result, if need be of noise alone, and no count.
        """
        if self._privacy is not None:
            start = self._updates.weights
            noisy = self._privacy.rule(start, server_round)
            self._updates.fold_all(noisy, replies)
            new = self._privacy.release(noisy, start, server_round)
            return messages.pack_arrays(new), MetricRecord()
        section = self._study.aggregation
        rule = self._updates.rule()
        self._updates.fold_all(rule, replies)
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
        self._figures.start()
        others = self.absent.keys() | self.training
        present = [site for site in self._evaluators if site.name not in others]
        asked = draw_evaluators(present, self._study, server_round)
        return self.conversation.model_messages(messages.EVALUATE, server_round, arrays, asked)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Add the sites' sums; None if no site released any."""
        self._figures.take(replies)
        found = self._figures.metrics
        return None if found is None else MetricRecord(dict(found))

    @property
    def sums(self) -> ReleasedSums:
        """What sites released of the last evaluation."""
        return self._figures.sums

    @property
    def global_sums(self) -> ReleasedSums:
        """With personal models, the same of the global model."""
        return self._figures.global_sums

    @property
    def global_metrics(self) -> dict[str, float] | None:
        """With personal models, the global model's figures over all held-out images."""
        return self._figures.global_metrics

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
