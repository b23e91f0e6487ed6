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
from medfed.client.ledger import Spend
from medfed.client.site import SiteConfig, load_site
from medfed.client.training import Round, train_with_privacy, train_without_privacy
from medfed.client.workspace import pick_device, workspace
from medfed.common import messages
from medfed.common.errors import DataError, MedfedError, RefusalReason, SiteRefusal, StudyError
from medfed.common.messages import EvaluateReply, JoinReply, ModelRequest, Refusal, TrainReply
from medfed.common.state_dicts import check_fits, digest

log = logging.getLogger(__name__)

app = ClientApp()

Answer = Callable[[Message, SiteConfig], RecordDict]


@app.query("join")
def join(message: Message, context: Context) -> Message:
    """Say who this site is and whether it takes part."""
    return _answer(message, context, _join)


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
    check_population(workspace(site, request.study).data, request.study, site)
    reply = JoinReply(site=site.name, public_num_patients=site.data.public_num_patients)
    return messages.pack_join_reply(reply)


def _train(message: Message, site: SiteConfig) -> RecordDict:
    request = messages.unpack_model_request(message.content)
    policy.check_study(request.study, site.policy)
    here = workspace(site, request.study)
    # Before the charge: weights of another model must not cost the patients anything.
    check_fits(here.model, request.weights)
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
        here = workspace(site, request.study)
        check_fits(here.model, request.weights)
        sums = evaluate(
            here.model, request.weights, here.data.test, here.task, _round(request, site)
        )
    return messages.pack_evaluate_reply(EvaluateReply(site=site.name, sums=sums))


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
