"""What this site answers: judged by the policy gate, charged to the ledger, then worked out.

Plain functions from a request to a reply; `client.app` connects them to Flower, and lists what
leaves. The study was held to the policy before any of them is called (`policy.check_study`).
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from medfed.client import policy
from medfed.client.annotating import annotated
from medfed.client.compression import compressed
from medfed.client.data.site_data import check_population
from medfed.client.evaluation import Evaluation, evaluate_for_release
from medfed.client.groundwork import (
    keep_countersignature,
    round_of,
    said_of,
    spend_of,
    workspace_of,
)
from medfed.client.personal import own_part, own_weights
from medfed.client.releases import COUNTS_OF_PLUGIN, Cost
from medfed.client.replies import KeptReply, ReplyJournal, identify
from medfed.client.scaffold import check_correction
from medfed.client.secure_answers import MaskedTraining, Memory
from medfed.client.site import SiteConfig
from medfed.client.statistics import least_count
from medfed.client.training import TrainingResult, train_with_privacy, train_without_privacy
from medfed.client.words import release_words, reports_by_patient
from medfed.client.workspace import Workspace, site_data
from medfed.common.errors import StudyError
from medfed.common.ledger import Spend
from medfed.common.messages import (
    EvaluateReply,
    JoinReply,
    JoinRequest,
    ModelRequest,
    Reply,
    StatisticsReply,
    StatisticsRequest,
    TrainReply,
    WordsReply,
    WordsRequest,
)
from medfed.common.state_dicts import StateDict

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What is about to leave.

    Attributes:
        reply: The reply.
        costs: What the site paid for its quantities, by name.
        withheld: What stays, and why.
    """

    reply: Reply
    costs: Mapping[str, Cost] = field(default_factory=dict)
    withheld: Mapping[str, str] = field(default_factory=dict)


def join(request: JoinRequest, site: SiteConfig) -> Answer:
    """Say who this site is and that it takes part."""
    check_population(site_data(site, request.study), request.study, site)
    reply = JoinReply(site=site.name, public_num_patients=site.data.public_num_patients)
    return Answer(reply)


def name_words(request: WordsRequest, site: SiteConfig) -> Answer:
    """Name the words of this site's training reports that its policy lets out."""
    policy.check_words(request.study, site.policy)
    reports = reports_by_patient(site_data(site, request.study).train)
    named = release_words(reports, request.study, site, run=request.run)
    reply = WordsReply(
        site=site.name, words=named.words, epsilon=named.epsilon, ledger_head=named.head
    )
    least = request.study.task.report.min_patients
    cost = Cost("none", f"exact: words of {least} or more patients, no DP")
    if named.epsilon is not None:
        unit = "record" if request.study.privacy.unit == "record" else "patient"
        cost = _paid(named.epsilon, unit, site)
    return Answer(reply, {"words": cost})


def describe_data(request: StatisticsRequest, site: SiteConfig) -> Answer:
    """Say of this site's training data what its policy lets out; asked again, the same again."""
    study = request.study
    said = said_of(study, site, request.run)
    reply = StatisticsReply(
        site=site.name,
        values={**said.values},
        min_count=said.min_count,
        noise=said.noise,
        epsilon=said.epsilon,
        ledger_head=said.head,
    )
    cost = Cost("none", f"exact: about {least_count(study, site.policy)} or more patients, no DP")
    if said.epsilon is not None:
        unit = "record" if study.privacy.unit == "record" else "patient"
        cost = _paid(said.epsilon, unit, site, seeded=said.noise == "seeded")
    return Answer(reply, dict.fromkeys(said.values, cost), said.withheld)


def train(request: ModelRequest, site: SiteConfig, memory: Memory) -> Answer:
    """Charge one round, train it and return the update; masked if the study says so.

    Without masks, a round that is asked for again gets the update that it got before.
    """
    if request.study.federation.algorithm == "split":
        raise StudyError("Asked to train whole by a study of split learning, which goes by steps.")
    policy.check_participants(request.num_participants, site.policy)
    keep_countersignature(request, site)
    if request.study.secure_aggregation.enabled:
        return _train_masked(request, site, memory)
    spend = spend_of(request, site)
    with _journal(request, site, spend) as journal:
        kept = journal.finished(site.name) if journal else None
        if kept is not None:
            log.info("Round %d is asked for again: the same update leaves.", request.round_number)
            again = f"sent again, bit for bit what it was before: {kept.cost.text}"
            return Answer(kept.reply, {"update": kept.cost._replace(text=again)}, kept.withheld)
        here = annotated(workspace_of(request, site), request, site, round_of(request, site))
        check_correction(request.study.federation.algorithm, request.correction, here.model)
        # Written ahead: a crash from here on can only over-count.
        charge = policy.charge(site, spend, journal)
        result = _trained(here, request, site)
        # Under DP of any unit these are private; the update is what was paid for.
        exact = not request.study.privacy.enabled
        reply = TrainReply(
            site=site.name,
            update=compressed(result.update, here.model, request, site),
            num_examples=len(here.data.train) if exact else None,
            loss=result.loss if exact else None,
            epsilon=charge.epsilon,
            noise=spend.noise,
            ledger_head=charge.head,
        )
        withheld = {} if exact else _withheld("private under DP")
        cost = _cost_of_update(spend, charge, site)
        if journal:
            journal.keep(KeptReply(reply, cost, withheld))
        return Answer(reply, {"update": cost}, withheld)


@contextmanager
def _journal(
    request: ModelRequest, site: SiteConfig, spend: Spend
) -> Iterator[ReplyJournal | None]:
    """Hold the journal of what this site sent last; None where training again gives the same."""
    if site.policy.allow_seeded_noise:
        yield None
        return
    with ReplyJournal.opened(site.state_folder, identify(request, spend.release)) as journal:
        yield journal


def _train_masked(request: ModelRequest, site: SiteConfig, memory: Memory) -> Answer:
    """Do the same under masks, which are for one time: what leaves again, leaves under others."""
    masking = MaskedTraining(request, site, memory)
    spend = spend_of(request, site)
    with _journal(request, site, spend) as journal:
        kept = journal.finished(site.name) if journal else None
        again = "" if kept is None else "sent again, the same under other masks: "
        if kept is None:
            kept = _trained_for_masks(request, site, spend, journal)
        reply = replace(kept.reply, update=masking.mask(kept.reply.update))
        cost = kept.cost._replace(text=again + kept.cost.text)
        return Answer(reply, {"update": cost}, kept.withheld)


def _trained_for_masks(
    request: ModelRequest, site: SiteConfig, spend: Spend, journal: ReplyJournal | None
) -> KeptReply:
    """Charge and train; the update is not masked yet, and from here on it may leave."""
    here = annotated(workspace_of(request, site), request, site, round_of(request, site))
    check_correction(request.study.federation.algorithm, request.correction, here.model)
    charge = policy.charge(site, spend, journal)
    reply = TrainReply(
        site=site.name,
        update=_trained(here, request, site).update,
        # These would tell the server what it must not see of one site.
        num_examples=None,
        loss=None,
        epsilon=charge.epsilon,
        noise=spend.noise,
        ledger_head=charge.head,
    )
    why = "private under DP" if request.study.privacy.enabled else "secure aggregation"
    cost = _cost_of_update(spend, charge, site)
    masked = Cost(cost.protection, f"masked: the server sees sums over sites; {cost.text}")
    kept = KeptReply(reply, masked, _withheld(why))
    if journal and request.study.secure_aggregation.distributed_noise == "none":
        journal.keep(kept)
    elif journal:
        journal.let_go()
    return kept


def _withheld(why: str) -> dict[str, str]:
    return {"num_examples": why, "loss": why}


def evaluate(request: ModelRequest, site: SiteConfig) -> Answer:
    """Return the metric sums over held-out images, as far as they may leave.

    They are the global model's, or that of it which this site uses (`client.personal`).
    """
    keep_countersignature(request, site)
    if not site.policy.release_evaluation:
        reply = EvaluateReply(site=site.name, sums=None)
        why = {"evaluation": "policy.release_evaluation is off"}
        return Answer(reply, withheld=why)
    here = workspace_of(request, site)

    def evaluated(weights: StateDict) -> Evaluation:
        this = round_of(request, site)
        return evaluate_for_release(
            here.model, weights, here.data.test, here.task, this, site.policy
        )

    found = evaluated(own_weights(here, request, site))
    with_global = request.study.federation.has_personal_models
    of_global = evaluated(request.weights).sums if with_global else None
    reply = EvaluateReply(site=site.name, sums=found.sums, global_sums=of_global)
    own = (found.sums or ()) if request.study.task.plugin else ()
    return Answer(reply, dict.fromkeys(own, COUNTS_OF_PLUGIN), found.withheld)


def _trained(here: Workspace, request: ModelRequest, site: SiteConfig) -> TrainingResult:
    """Train with noise where this site is to add it; else the server does, or nobody."""
    data, this = here.data.train, round_of(request, site)
    with own_part(here, request, site) as beside:
        if not request.study.privacy.at_sites:
            return train_without_privacy(
                here.model,
                request.weights,
                data,
                here.task,
                this,
                unlabelled=here.data.unlabelled,
                beside=beside,
            )
        return train_with_privacy(
            here.model,
            request.weights,
            data,
            here.task,
            this,
            seeded=site.policy.allow_seeded_noise,
            public_num_patients=site.data.public_num_patients,
            unlabelled=here.data.unlabelled,
        )


def _cost_of_update(spend: Spend, charge: policy.Charge, site: SiteConfig) -> Cost:
    if charge.epsilon is None:
        return Cost("none", "exact, no DP")
    if spend.noise == "none":
        paid = _paid(charge.epsilon, spend.unit, site).text
        return Cost("none", f"exact: the server is trusted to add the noise; then {paid}")
    return _paid(charge.epsilon, spend.unit, site, seeded=spend.noise == "seeded")


def _paid(epsilon: float, unit: str, site: SiteConfig, *, seeded: bool = False) -> Cost:
    text = (
        f"epsilon {epsilon:.3f} of {site.policy.max_epsilon:g} at delta "
        f"{site.policy.target_delta:g} after this ({unit})"
    )
    return Cost("dp", text + ("; seeded noise: a simulation, not private" if seeded else ""))
