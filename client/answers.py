"""What this site answers: judged by the policy gate, charged to the ledger, then worked out.

Plain functions from a request to a reply; `client.app` connects them to Flower, and lists what
leaves. The study was held to the policy before any of them is called (`policy.check_study`).
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from medfed.client import policy
from medfed.client.annotating import annotated
from medfed.client.compression import compressed
from medfed.client.data.site_data import check_population
from medfed.client.evaluation import Evaluation, evaluate_for_release
from medfed.client.personal import own_part, own_weights
from medfed.client.releases import COUNTS_OF_PLUGIN, Cost
from medfed.client.replies import KeptReply, ReplyJournal, identify
from medfed.client.scaffold import check_correction
from medfed.client.secure_answers import MaskedTraining, Memory
from medfed.client.site import SiteConfig
from medfed.client.statistics import (
    SaidStatistics,
    harmonising_tables,
    least_count,
    release_statistics,
)
from medfed.client.training import (
    Round,
    TrainingResult,
    train_with_privacy,
    train_without_privacy,
)
from medfed.client.words import release_words, reports_by_patient
from medfed.client.workspace import Workspace, pick_device, site_data, workspace
from medfed.common.errors import LedgerError, RefusalReason, SiteRefusal, StudyError
from medfed.common.ledger import Countersignature, Ledger, Spend
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
from medfed.common.models import shared_names
from medfed.common.state_dicts import StateDict, check_fits, digest
from medfed.common.study import StudyConfig

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
    said = _said(study, site, request.run)
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


def _said(study: StudyConfig, site: SiteConfig, run: str) -> SaidStatistics:
    # Of the images as they are: a table of grey levels is made from this.
    return release_statistics(site_data(site, study).train, study, site, run=run)


def train(request: ModelRequest, site: SiteConfig, memory: Memory) -> Answer:
    """Charge one round, train it and return the update; masked if the study says so.

    Without masks, a round that is asked for again gets the update that it got before.
    """
    policy.check_participants(request.num_participants, site.policy)
    _keep_countersignature(request, site)
    if request.study.secure_aggregation.enabled:
        return _train_masked(request, site, memory)
    spend = _spend(request, site)
    with _journal(request, site, spend) as journal:
        kept = journal.finished(site.name) if journal else None
        if kept is not None:
            log.info("Round %d is asked for again: the same update leaves.", request.round_number)
            again = f"sent again, bit for bit what it was before: {kept.cost.text}"
            return Answer(kept.reply, {"update": kept.cost._replace(text=again)}, kept.withheld)
        here = annotated(_workspace(request, site), request, site, _round(request, site))
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
    """Do the same under masks. They are for one time: nothing is kept to be sent again."""
    here = annotated(_workspace(request, site), request, site, _round(request, site))
    check_correction(request.study.federation.algorithm, request.correction, here.model)
    masking = MaskedTraining(request, site, memory)
    spend = _spend(request, site)
    charge = policy.charge(site, spend)
    result = _trained(here, request, site)
    reply = TrainReply(
        site=site.name,
        update=masking.mask(result.update),
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
    return Answer(reply, {"update": masked}, _withheld(why))


def _withheld(why: str) -> dict[str, str]:
    return {"num_examples": why, "loss": why}


def evaluate(request: ModelRequest, site: SiteConfig) -> Answer:
    """Return the metric sums over held-out images, as far as they may leave.

    They are the global model's, or that of it which this site uses (`client.personal`).
    """
    _keep_countersignature(request, site)
    if not site.policy.release_evaluation:
        reply = EvaluateReply(site=site.name, sums=None)
        why = {"evaluation": "policy.release_evaluation is off"}
        return Answer(reply, withheld=why)
    here = _workspace(request, site)

    def evaluated(weights: StateDict) -> Evaluation:
        this = _round(request, site)
        return evaluate_for_release(
            here.model, weights, here.data.test, here.task, this, site.policy
        )

    found = evaluated(own_weights(here, request, site))
    with_global = request.study.federation.has_personal_models
    of_global = evaluated(request.weights).sums if with_global else None
    reply = EvaluateReply(site=site.name, sums=found.sums, global_sums=of_global)
    own = (found.sums or ()) if request.study.task.plugin else ()
    return Answer(reply, dict.fromkeys(own, COUNTS_OF_PLUGIN), found.withheld)


def _keep_countersignature(request: ModelRequest, site: SiteConfig) -> None:
    """Keep what the server signed about this ledger; a wrong one means that one of us is lying."""
    if not request.countersignature:
        return
    try:
        signed = Countersignature.from_json(request.countersignature)
        Ledger(site.state_folder).keep_countersignature(signed)
    except LedgerError as error:
        raise SiteRefusal(RefusalReason.LEDGER, str(error)) from error


def _trained(here: Workspace, request: ModelRequest, site: SiteConfig) -> TrainingResult:
    """Train with noise where this site is to add it; else the server does, or nobody."""
    data, this = here.data.train, _round(request, site)
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


def _workspace(request: ModelRequest, site: SiteConfig) -> Workspace:
    """Return what the round needs, sure that its weights are of this very model.

    Checked before any charge: weights of another model must not cost the patients anything.
    """
    tables = b""
    if request.study.data.harmonise != "none":
        said = _said(request.study, site, request.run)
        tables = harmonising_tables(said, request.study, request.reference)
    here = workspace(site, request.study, request.words, tables)
    names = shared_names(here.model, request.study)
    check_fits({name: here.network.start[name] for name in names}, request.weights)
    if here.network.frozen_sha256 != request.frozen_sha256:
        raise StudyError(
            "The frozen part of the model differs from the coordinator's: another weights file, "
            "or another version of torch. Place the file that model.weights_sha256 names."
        )
    return here


def _round(request: ModelRequest, site: SiteConfig) -> Round:
    device = pick_device(request.study, site)
    return Round(request.study, site.name, request.round_number, device, request.correction)


def _spend(request: ModelRequest, site: SiteConfig) -> Spend:
    """What the round will have cost, under a name that only the very same release shares."""
    parts = [
        request.study.digest(),
        request.run,
        str(request.round_number),
        digest(request.weights),
    ]
    if request.study.secure_aggregation.distributed_noise != "none":
        # Each site's share of the noise, and so the very bits, depend on how many share it.
        parts.append(str(request.num_participants))
    if request.correction is not None:
        # Another correction, another update: one that was not paid for.
        parts.append(digest(request.correction))
    return policy.spend_of_round(
        request.study,
        site.policy,
        run=request.run,
        round_number=request.round_number,
        release=hashlib.sha256("\x1f".join(parts).encode()).hexdigest(),
    )
