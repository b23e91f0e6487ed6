"""The ClientApp: the same object at a hospital, on Ray and in one process.

A message is judged (policy gate), charged (ledger), answered, and what leaves is listed before it
does (release list). What goes wrong at a site leaves it as a reason code only; the detail is in the
site's own log.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from medfed.client import answers, policy, secure_answers, split_answers
from medfed.client.answers import Answer
from medfed.client.releases import Release, list_quantities, now, write_release
from medfed.client.secure import SiteState
from medfed.client.secure_answers import Memory
from medfed.client.site import SiteConfig, load_site
from medfed.client.split import SplitState
from medfed.client.split_answers import SplitMemory
from medfed.common import messages
from medfed.common.errors import (
    DataError,
    MedfedError,
    RefusalReason,
    SiteConfigError,
    SiteRefusal,
    StudyError,
)
from medfed.common.messages import (
    EvaluateReply,
    JoinReply,
    JoinRequest,
    ModelRequest,
    Refusal,
    SecureReply,
    SecureRequest,
    SplitReply,
    SplitRequest,
    StatisticsReply,
    StatisticsRequest,
    TrainReply,
    WordsReply,
    WordsRequest,
)

log = logging.getLogger(__name__)

app = ClientApp()

Request = TypeVar(
    "Request",
    JoinRequest,
    WordsRequest,
    StatisticsRequest,
    ModelRequest,
    SplitRequest,
    SecureRequest,
)
SecureAnswer = Callable[[SecureRequest, SiteConfig, Memory], SecureReply]
SplitAnswer = Callable[[SplitRequest, SiteConfig, SplitMemory], Answer]
_MEMORY = "medfed.secure"
_SPLIT_MEMORY = "medfed.split"

_PACK: dict[type, Callable[[Any], RecordDict]] = {
    JoinReply: messages.pack_join_reply,
    WordsReply: messages.pack_words_reply,
    StatisticsReply: messages.pack_statistics_reply,
    TrainReply: messages.pack_train_reply,
    SplitReply: messages.pack_split_reply,
    EvaluateReply: messages.pack_evaluate_reply,
    SecureReply: messages.pack_secure_reply,
    Refusal: messages.pack_refusal,
}


@dataclass(frozen=True)
class _About:
    """What a message is about, as far as it could be read."""

    run: str = ""
    study: str = ""
    round_number: int = 0


@dataclass(frozen=True)
class _ContextMemory:
    """Secrets between messages, in Flower's context: at a SuperNode it is memory, and stays."""

    context: Context

    def read(self) -> SiteState | None:
        """Return what was kept last."""
        record = self.context.state.get(_MEMORY)
        if not isinstance(record, ConfigRecord) or not isinstance(record.get("state"), bytes):
            return None
        return SiteState.from_bytes(cast(bytes, record["state"]))

    def keep(self, state: SiteState) -> None:
        """Replace it."""
        self.context.state[_MEMORY] = ConfigRecord({"state": state.to_bytes()})


@dataclass(frozen=True)
class _SplitMemory:
    """A site's own parts of a network between half steps, in the same place."""

    context: Context

    def read(self) -> SplitState | None:
        """Return what was kept last."""
        record = self.context.state.get(_SPLIT_MEMORY)
        if not isinstance(record, ConfigRecord):
            return None
        return SplitState.from_values(cast(str, record["facts"]), cast(bytes, record["arrays"]))

    def keep(self, state: SplitState | None) -> None:
        """Replace it; None to forget it."""
        if state is not None:
            self.context.state[_SPLIT_MEMORY] = _packed(state)
        elif _SPLIT_MEMORY in self.context.state:
            del self.context.state[_SPLIT_MEMORY]


def _packed(state: SplitState) -> ConfigRecord:
    values = state.to_values()
    return ConfigRecord({"facts": values["facts"], "arrays": values["arrays"]})


@app.query("join")
def join(message: Message, context: Context) -> Message:
    """Say who this site is and whether it takes part."""
    return _answer(message, context, messages.unpack_join_request, answers.join)


@app.query("words")
def name_words(message: Message, context: Context) -> Message:
    """Name the words of this site's reports that its policy lets out."""
    return _answer(message, context, messages.unpack_words_request, answers.name_words)


@app.query("statistics")
def describe_data(message: Message, context: Context) -> Message:
    """Say of this site's training data what its policy lets out."""
    return _answer(message, context, messages.unpack_statistics_request, answers.describe_data)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one round and send the update."""

    def trained(request: ModelRequest, site: SiteConfig) -> Answer:
        return answers.train(request, site, _ContextMemory(context))

    return _answer(message, context, messages.unpack_model_request, trained)


@app.train("split_front")
def go_forward(message: Message, context: Context) -> Message:
    """Split learning: send the activations of the next batch, or at last the update."""
    return _answer_step(message, context, split_answers.go_forward)


@app.train("split_back")
def go_back(message: Message, context: Context) -> Message:
    """Split learning: send the gradient for the server's part."""
    return _answer_step(message, context, split_answers.go_back)


@app.query("secure_keys")
def offer_keys(message: Message, context: Context) -> Message:
    """Secure aggregation, before training: offer public keys."""
    return _answer_phase(message, context, secure_answers.offer_keys)


@app.query("secure_shares")
def share_secrets(message: Message, context: Context) -> Message:
    """Secure aggregation, before training: share the masks' secrets among the sites."""
    return _answer_phase(message, context, secure_answers.share_secrets)


@app.query("secure_reveal")
def reveal(message: Message, context: Context) -> Message:
    """Secure aggregation, after training: reveal what unmasks the sum."""
    return _answer_phase(message, context, secure_answers.reveal)


@app.evaluate()
def evaluate_model(message: Message, context: Context) -> Message:
    """Evaluate the global model on the held-out images."""
    return _answer(message, context, messages.unpack_model_request, answers.evaluate)


def _answer_phase(message: Message, context: Context, phase: SecureAnswer) -> Message:
    def answered(request: SecureRequest, site: SiteConfig) -> Answer:
        return Answer(phase(request, site, _ContextMemory(context)))

    return _answer(message, context, messages.unpack_secure_request, answered)


def _answer_step(message: Message, context: Context, half: SplitAnswer) -> Message:
    def answered(request: SplitRequest, site: SiteConfig) -> Answer:
        return half(request, site, _SplitMemory(context))

    return _answer(message, context, messages.unpack_split_request, answered)


def _answer(
    message: Message,
    context: Context,
    unpack: Callable[[RecordDict], Request],
    answer: Callable[[Request, SiteConfig], Answer],
) -> Message:
    try:
        site = load_site(Path(str(context.node_config["site"])))
    except SiteConfigError as error:
        # Flower would send the message's text, which names a path.
        log.error("Refused (internal): %s", error)
        unknown = Refusal(site="unknown", reason=RefusalReason.INTERNAL)
        return Message(messages.pack_refusal(unknown), reply_to=message)
    about = _About()
    try:
        request = unpack(message.content)
        about = _about(request)
        # Before any data is read, and before the ledger is opened.
        policy.check_study(request.study, site.policy)
        content = _listed(answer(request, site), about, site)
    # Everything: Flower would send the text of what is not caught, and a plug-in's code may raise
    # anything, with anything in its text.
    except Exception as error:
        content = _refuse(_reason(error), about, site)
    return Message(content, reply_to=message)


def _about(
    request: JoinRequest
    | WordsRequest
    | StatisticsRequest
    | ModelRequest
    | SplitRequest
    | SecureRequest,
) -> _About:
    round_number = 0
    if isinstance(request, ModelRequest | SplitRequest | SecureRequest):
        round_number = request.round_number
    return _About(request.run, request.study.study.name, round_number)


def _reason(error: Exception) -> RefusalReason:
    """Write the error into this site's log and return what may leave of it."""
    if isinstance(error, SiteRefusal):
        log.warning("Refused (%s): %s", error.reason, error)
        return error.reason
    if isinstance(error, StudyError):
        log.warning("Refused (study): %s", error)
        return RefusalReason.STUDY
    if isinstance(error, DataError):
        log.warning("Refused (data): %s", error)
        return RefusalReason.DATA
    if isinstance(error, torch.OutOfMemoryError):
        log.error(
            "Failed: the GPU's memory ran out (%s). The study must lower training.batch_size or, "
            "with privacy, privacy.chunk (or evaluation.batch_size, if this was an evaluation); or "
            'set compute.device = "cpu" in site.toml.',
            error,
        )
        return RefusalReason.INTERNAL
    # The traceback may hold paths or values of patients: it stays in this log.
    log.error("Failed: %s", error, exc_info=error)
    return RefusalReason.INTERNAL


def refuse(
    message: Message, site: SiteConfig, reason: RefusalReason, *, run: str, study: str
) -> Message:
    """Answer a message with a refusal without looking into it, and list that it leaves.

    Args:
        message: What is answered.
        site: This site.
        reason: All that leaves.
        run: The run's identifier, for the list; empty if it cannot be read.
        study: The study's name, likewise.
    """
    group = message.metadata.group_id
    about = _About(run, study, int(group) if group.isdecimal() else 0)
    return Message(_refuse(reason, about, site), reply_to=message)


def _refuse(reason: RefusalReason, about: _About, site: SiteConfig) -> RecordDict:
    refusal = Refusal(site=site.name, reason=reason)
    try:
        return _listed(Answer(refusal), about, site)
    # A full disk, say: silence would cost the federation its round.
    except (MedfedError, OSError) as error:
        log.error("A refusal (%s) left that is not on the release list: %s", reason, error)
        return messages.pack_refusal(refusal)


def _listed(answer: Answer, about: _About, site: SiteConfig) -> RecordDict:
    """Pack an answer and write what is in it on the release list, before it leaves."""
    content = _PACK[type(answer.reply)](answer.reply)
    release = Release(
        time=now(),
        run=about.run,
        study=about.study,
        round_number=about.round_number,
        kind=str(content["medfed"]["kind"]),
        quantities=list_quantities(content, answer.costs),
        withheld=answer.withheld,
    )
    write_release(site.state_folder, release)
    return content
