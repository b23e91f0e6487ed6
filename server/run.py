"""What stays the same from round to round: the study, who takes part, and what the server keeps."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from flwr.serverapp import Grid

from medfed.common.models import frozen_state_digest, trained_parameters
from medfed.common.study import StudyConfig
from medfed.server.aggregation.scaffold import Variates
from medfed.server.attendance import Attendance
from medfed.server.checkpoint import Checkpoint
from medfed.server.countersigning import HEADS_FILE, SERVER_KEY, Countersigner
from medfed.server.distributed_privacy import DistributedPrivacy, noised_by_sites
from medfed.server.exchange import Exchange
from medfed.server.joining import Joining
from medfed.server.participants import Participant
from medfed.server.presence import Presence
from medfed.server.progress import Progress, resume
from medfed.server.records import ArmFolder, RunPlan
from medfed.server.site_privacy import SitePrivacy, noised_by_server
from medfed.server.statistics import ask_for_statistics
from medfed.server.strategy import FedAvgStrategy
from medfed.server.turned_away import TurnedAway
from medfed.server.under_way import UnderWay
from medfed.server.watch import Watch
from medfed.server.words import agree_on_words


@dataclass(frozen=True)
class Run:
    """One run of an arm.

    `privacy` is that of privacy.unit = "site", where the server adds the noise or all sites do
    together; None where each site does by itself, or nobody. `under_way` is there with fedbuff.
    """

    grid: Grid
    study: StudyConfig
    plan: RunPlan
    arm: ArmFolder
    strategy: FedAvgStrategy
    countersigner: Countersigner
    privacy: SitePrivacy | DistributedPrivacy | None
    presence: Presence
    attendance: Attendance
    turned_away: TurnedAway
    under_way: UnderWay | None

    @property
    def needed(self) -> int:
        """Updates without which a round does not count; with fedbuff, as many as it takes."""
        if self.study.federation.buffer_size is not None:
            return self.study.federation.buffer_size
        return max(self.plan.min_sites, self.study.aggregation.min_updates)

    def exchange(
        self,
        started: str | Callable[[str], str],
        progress: Progress,
        *,
        asks_again: bool,
        forgets: bool = False,
        away_at_most_s: float = math.inf,
        besides: float = 0.0,
    ) -> Exchange:
        """Return an exchange of the round that began at `started` (ISO), for all or by site.

        Args:
            started: When.
            progress: Of whose weights a reply may hold an update.
            asks_again: See `Exchange`.
            forgets: See `Exchange`.
            away_at_most_s: See `Exchange`.
            besides: Bytes of what else a reply may hold.
        """
        conversation = self.strategy.conversation

        def turned_away_s(node: int) -> float:
            name = conversation.name_of(node)
            since = started if isinstance(started, str) else started(name)
            return self.turned_away.upload_age_s(name, since)

        watch = Watch(
            self.presence,
            self.study.federation.lost_after_s,
            turned_away_s,
        )
        # An update, however it is packed; what it may be exactly is screened once it is read.
        most_bytes = 4 * sum(array.nbytes for array in progress.weights.values()) + besides
        return Exchange(
            self.grid,
            watch,
            asks_again=asks_again,
            forgets=forgets,
            away_at_most_s=away_at_most_s,
            most_bytes=most_bytes,
        )


def begin(
    grid: Grid, study: StudyConfig, plan: RunPlan, arm: ArmFolder, checkpoint: Checkpoint | None
) -> tuple[Run, Progress]:
    """Have the sites join, and return the run and where it stands.

    Raises:
        RunError: Too few joined, named words or released histograms; or the checkpoint is of
            another study.
    """
    presence = Presence(grid)
    joining = Joining(grid, study, plan, arm, presence)
    joining.wait()
    trainers = _named(joining.sites, plan.train_sites)
    evaluators = _named(joining.sites, plan.evaluate_sites)
    state = arm.server_state(plan)
    countersigner = Countersigner(arm.folder / HEADS_FILE, state / SERVER_KEY, plan.run)
    words = agree_on_words(grid, study, plan, arm, trainers, countersigner)
    # Whoever only evaluates has grey levels to be harmonised, too.
    described = {site.name: site for site in (*trainers, *evaluators)}
    reference = ask_for_statistics(
        grid, study, plan, arm, [described[name] for name in sorted(described)], countersigner
    )
    progress = resume(study, words, checkpoint, arm)
    privacy: SitePrivacy | DistributedPrivacy | None = None
    if noised_by_server(study):
        bound = checkpoint.update_bound if checkpoint else None
        privacy = SitePrivacy(study, plan.run, state, seeded=plan.seeded_noise, bound=bound)
    elif noised_by_sites(study):
        privacy = DistributedPrivacy(study, plan.run, state, seeded=plan.seeded_noise)
    parameters = trained_parameters(progress.model)
    scaffold = study.federation.algorithm == "scaffold"
    states = checkpoint.states if checkpoint else {}
    strategy = FedAvgStrategy(
        study,
        plan.run,
        trainers=trainers,
        evaluators=evaluators,
        words=words,
        reference=reference,
        frozen_sha256=frozen_state_digest(progress.model),
        parameters=parameters,
        variates=Variates(parameters, states) if scaffold else None,
        privacy=privacy if isinstance(privacy, SitePrivacy) else None,
    )
    asynchronous = study.federation.algorithm == "fedbuff"
    strategy.summary()
    strategy.conversation.countersignatures = countersigner.latest
    for record in arm.read_rounds() if study.compression.keeps_residual else ():
        strategy.conversation.note_counted(record.round_number, record.sites)
    run = Run(
        grid=grid,
        study=study,
        plan=plan,
        arm=arm,
        strategy=strategy,
        countersigner=countersigner,
        privacy=privacy,
        presence=presence,
        attendance=Attendance(study, plan, arm, presence, joining, strategy),
        turned_away=TurnedAway(plan.rejections),
        under_way=UnderWay(study, plan, checkpoint, arm.read_rounds()) if asynchronous else None,
    )
    return run, progress


def _named(sites: dict[str, Participant], names: tuple[str, ...] | None) -> list[Participant]:
    chosen = sorted(sites) if names is None else [name for name in names if name in sites]
    return [sites[name] for name in chosen]
