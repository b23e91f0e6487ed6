"""The ClientApp: the same object at a hospital, on Ray and in one process.

A message is judged (policy gate), charged (ledger), then answered. What goes wrong at a site leaves
it as a reason code only; the detail is in the site's own log.
"""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from medfed.client import policy
from medfed.client.data.site_data import check_population
from medfed.client.evaluation import evaluate
from medfed.client.site import SiteConfig, load_site
from medfed.client.training import Round, train_with_privacy, train_without_privacy
from medfed.client.words import release_words, reports_by_patient
from medfed.client.workspace import Workspace, pick_device, site_data, workspace
from medfed.common import messages
from medfed.common.errors import DataError, MedfedError, RefusalReason, SiteRefusal, StudyError
from medfed.common.ledger import Spend
from medfed.common.messages import (
    EvaluateReply,
    JoinReply,
    ModelRequest,
    Refusal,
    TrainReply,
    WordsReply,
)
from medfed.common.state_dicts import check_fits, digest

log = logging.getLogger(__name__)

app = ClientApp()

Answer = Callable[[Message, SiteConfig], RecordDict]


@app.query("join")
def join(message: Message, context: Context) -> Message:
    """Say who this site is and whether it takes part."""
    return _answer(message, context, _join)


@app.query("words")
def name_words(message: Message, context: Context) -> Message:
    """Name the words of this site's reports that its policy lets out."""
    return _answer(message, context, _name_words)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one round and send the update."""
    return _answer(message, context, _train)


@app.evaluate()
def evaluate_model(message: Message, context: Context) -> Message:
    """Evaluate the global model on the held-out images."""
    return _answer(message, context, _evaluate)


def _answer(message: Message, context: Context, answer: Answer) -> Message:
    site = load_site(Path(str(context.node_config["site"])))
    try:
        content = answer(message, site)
    except SiteRefusal as refusal:
        log.warning("Refused (%s): %s", refusal.reason, refusal)
        content = _refuse(site, refusal.reason)
    except StudyError as error:
        log.warning("Refused (study): %s", error)
        content = _refuse(site, RefusalReason.STUDY)
    except DataError as error:
        log.warning("Refused (data): %s", error)
        content = _refuse(site, RefusalReason.DATA)
    except (MedfedError, OSError, RuntimeError, ValueError) as error:
        # The traceback may hold paths or values of patients: it stays in this log.
        log.exception("Failed: %s", error)
        content = _refuse(site, RefusalReason.INTERNAL)
    return Message(content, reply_to=message)


def _refuse(site: SiteConfig, reason: RefusalReason) -> RecordDict:
    return messages.pack_refusal(Refusal(site=site.name, reason=reason))


def _join(message: Message, site: SiteConfig) -> RecordDict:
    request = messages.unpack_join_request(message.content)
    policy.check_study(request.study, site.policy)
    check_population(site_data(site, request.study), request.study, site)
    reply = JoinReply(site=site.name, public_num_patients=site.data.public_num_patients)
    return messages.pack_join_reply(reply)


def _name_words(message: Message, site: SiteConfig) -> RecordDict:
    request = messages.unpack_words_request(message.content)
    policy.check_study(request.study, site.policy)
    policy.check_words(request.study, site.policy)
    reports = reports_by_patient(site_data(site, request.study).train)
    named = release_words(reports, request.study, site, run=request.run)
    reply = WordsReply(site=site.name, words=named.words, epsilon=named.epsilon)
    return messages.pack_words_reply(reply)


def _train(message: Message, site: SiteConfig) -> RecordDict:
    request = messages.unpack_model_request(message.content)
    policy.check_study(request.study, site.policy)
    here = _workspace(request, site)
    private = request.study.privacy.enabled
    if private:
        seeded = site.policy.allow_seeded_noise
        # Written ahead: a crash from here on can only over-count.
        epsilon = policy.charge(site, _spend(request, site))
        result = train_with_privacy(
            here.model,
            request.weights,
            here.data.train,
            here.task,
            _round(request, site),
            seeded=seeded,
            public_num_patients=site.data.public_num_patients,
        )
        noise = "seeded" if seeded else "secure"
    else:
        epsilon, noise = None, "none"
        result = train_without_privacy(
            here.model, request.weights, here.data.train, here.task, _round(request, site)
        )
    reply = TrainReply(
        site=site.name,
        update=result.update,
        num_examples=None if private else len(here.data.train),
        loss=result.loss,
        epsilon=epsilon,
        noise=noise,
    )
    return messages.pack_train_reply(reply)


def _evaluate(message: Message, site: SiteConfig) -> RecordDict:
    request = messages.unpack_model_request(message.content)
    policy.check_study(request.study, site.policy)
    sums = None
    if site.policy.release_evaluation:
        here = _workspace(request, site)
        sums = evaluate(
            here.model, request.weights, here.data.test, here.task, _round(request, site)
        )
    return messages.pack_evaluate_reply(EvaluateReply(site=site.name, sums=sums))


def _workspace(request: ModelRequest, site: SiteConfig) -> Workspace:
    """Return what the round needs, sure that its weights are of this very model.

    Checked before any charge: weights of another model must not cost the patients anything.
    """
    here = workspace(site, request.study, request.words)
    check_fits(here.network.start, request.weights)
    if here.network.frozen_sha256 != request.frozen_sha256:
        raise StudyError(
            "The frozen part of the model differs from the coordinator's: another weights file, "
            "or another version of torch. Place the file that model.weights_sha256 names."
        )
    return here


def _round(request: ModelRequest, site: SiteConfig) -> Round:
    device = pick_device(request.study, site)
    return Round(request.study, site.name, request.round_number, device)


def _spend(request: ModelRequest, site: SiteConfig) -> Spend:
    """What the round will have cost, under a name that only the very same release shares."""
    parts = (
        request.study.digest(),
        request.run,
        str(request.round_number),
        digest(request.weights),
    )
    return policy.spend_of_round(
        request.study,
        site.policy,
        run=request.run,
        round_number=request.round_number,
        release=hashlib.sha256("\x1f".join(parts).encode()).hexdigest(),
    )
