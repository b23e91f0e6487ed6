"""What sites release of an evaluation: screened, added up, and made into the figures of a round."""

from collections.abc import Iterable

from flwr.app import Message

from medfed.common.errors import UpdateError
from medfed.common.messages import EvaluateReply
from medfed.common.study import StudyConfig
from medfed.common.tasks import Task, pooled_metrics
from medfed.server.conversation import Conversation
from medfed.server.participants import Participant
from medfed.server.released_sums import ReleasedSums
from medfed.server.screening import screen_sums


class Figures:
    """The sums of one evaluation after the other.

    Args:
        study: The study.
        conversation: Notes what each site sent.
        task: Makes figures of sums.

    Attributes:
        sums: What sites released of the last evaluation.
        global_sums: With personal models, the same of the global model.
    """

    def __init__(self, study: StudyConfig, conversation: Conversation, task: Task) -> None:
        self._study = study
        self._conversation = conversation
        self._task = task
        self.start()

    def start(self) -> None:
        """Begin an evaluation."""
        self.sums, self.global_sums = ReleasedSums(), ReleasedSums()

    def take(self, replies: Iterable[Message]) -> None:
        """Add the sites' sums as they come; what cannot be used is noted."""
        for site, reply in self._conversation.opened(replies):
            if not isinstance(reply, EvaluateReply) or reply.sums is None:
                continue
            try:
                screen_sums(reply.sums, self._task.sum_shapes())
                self._note_global(site, reply)
            except UpdateError as error:
                self._conversation.reject(site.name, str(error))
                continue
            self.sums.add(site.name, reply.sums)
            self._conversation.round_of(site.name).metrics = self._task.metrics(reply.sums)

    @property
    def metrics(self) -> dict[str, float] | None:
        """The figures over all held-out images; None if no site released any."""
        return dict(pooled_metrics(self._task, self.sums.parts)) if self.sums else None

    @property
    def global_metrics(self) -> dict[str, float] | None:
        """With personal models, the global model's figures over all held-out images."""
        if not self.global_sums:
            return None
        return dict(pooled_metrics(self._task, self.global_sums.parts))

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
        self._conversation.round_of(site.name).global_metrics = found
