"""From a message's values to Flower records and back."""

from collections.abc import Sequence
from typing import Protocol, cast

from flwr.app import ArrayRecord, RecordDict

from medfed.common.errors import MessageError, RefusalReason
from medfed.common.messages.kinds import (
    ACTIVATIONS,
    GRADIENT,
    Array,
    EvaluateReply,
    JoinReply,
    JoinRequest,
    ModelRequest,
    Refusal,
    Reply,
    SecureReply,
    SecureRequest,
    SplitReply,
    StatisticsReply,
    StatisticsRequest,
    TrainReply,
    WordsReply,
    WordsRequest,
)
from medfed.common.messages.records import (
    arrays_of,
    at_least_one,
    bytes_of,
    listed,
    listed_numbers,
    model_arrays_of,
    number_of,
    numbers_of,
    pack,
    pack_arrays,
    present,
    text_of,
    text_or_empty,
    texts_of,
    unpack,
)
from medfed.common.metrics import MetricSums
from medfed.common.state_dicts import StateDict
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study_json

CORRECTION = "correction"
# Before the name of each sum that is the global model's, where a site uses a personal one.
_OF_GLOBAL = "global "


def pack_join_request(request: JoinRequest) -> RecordDict:
    """Pack a `JoinRequest`."""
    return pack("join", {"study": request.study.for_sites().to_json(), "run": request.run})


def unpack_join_request(content: RecordDict) -> JoinRequest:
    """Unpack a `JoinRequest`."""
    values = unpack(content, "join")
    return JoinRequest(study=parse_study_json(text_of(values, "study")), run=text_of(values, "run"))


def pack_words_request(request: WordsRequest) -> RecordDict:
    """Pack a `WordsRequest`."""
    return pack("ask words", {"study": request.study.for_sites().to_json(), "run": request.run})


def unpack_words_request(content: RecordDict) -> WordsRequest:
    """Unpack a `WordsRequest`."""
    values = unpack(content, "ask words")
    return WordsRequest(
        study=parse_study_json(text_of(values, "study")), run=text_of(values, "run")
    )


def pack_statistics_request(request: StatisticsRequest) -> RecordDict:
    """Pack a `StatisticsRequest`."""
    values = {"study": request.study.for_sites().to_json(), "run": request.run}
    return pack("ask statistics", values)


def unpack_statistics_request(content: RecordDict) -> StatisticsRequest:
    """Unpack a `StatisticsRequest`."""
    values = unpack(content, "ask statistics")
    return StatisticsRequest(
        study=parse_study_json(text_of(values, "study")), run=text_of(values, "run")
    )


def pack_secure_request(request: SecureRequest) -> RecordDict:
    """Pack a `SecureRequest`."""
    values = {
        "study": request.study.for_sites().to_json(),
        "run": request.run,
        "round_number": request.round_number,
        "num_participants": request.num_participants,
    }
    return pack("secure", values | present(payload=request.payload or None))


def unpack_secure_request(content: RecordDict) -> SecureRequest:
    """Unpack a `SecureRequest`."""
    values = unpack(content, "secure")
    return SecureRequest(
        study=parse_study_json(text_of(values, "study")),
        run=text_of(values, "run"),
        round_number=at_least_one(values, "round_number"),
        num_participants=at_least_one(values, "num_participants"),
        payload=bytes_of(values, "payload"),
    )


class ModelContents(Protocol):
    """Makes the content for one site."""

    def __call__(
        self,
        countersignature: str = "",
        *,
        parcels: bytes = b"",
        weight: int = 1,
        correction: StateDict | None = None,
        counted_round: int = 0,
    ) -> RecordDict:
        """Return a content with what is this site's own; the rest is everyone's."""
        ...


def pack_model(
    study: StudyConfig,
    run: str,
    round_number: int,
    arrays: ArrayRecord,
    *,
    frozen_sha256: str,
    words: Sequence[str] = (),
    reference: Sequence[float] = (),
    num_participants: int = 1,
    total_weight: int = 1,
) -> ModelContents:
    """Return a maker of train or evaluate contents; all of them share the arrays' bytes."""
    values = {
        "study": study.for_sites().to_json(),
        "run": run,
        "round_number": round_number,
        "frozen_sha256": frozen_sha256,
        "num_participants": num_participants,
        "total_weight": total_weight,
        **listed(words=words),
        **listed_numbers(reference=reference),
    }

    def content(
        countersignature: str = "",
        *,
        parcels: bytes = b"",
        weight: int = 1,
        correction: StateDict | None = None,
        counted_round: int = 0,
    ) -> RecordDict:
        # Flower's records cannot tell the size of an empty text.
        own = present(countersignature=countersignature or None, parcels=parcels or None)
        own |= present(counted_round=counted_round or None)
        packed = pack("model", {**values, **own, "weight": weight})
        packed["arrays"] = arrays
        if correction is not None:
            packed[CORRECTION] = pack_arrays(correction)
        return packed

    return content


def unpack_model_request(content: RecordDict) -> ModelRequest:
    """Unpack a `ModelRequest`."""
    values = unpack(content, "model")
    weights, packed_weights = model_arrays_of(content)
    return ModelRequest(
        study=parse_study_json(text_of(values, "study")),
        run=text_of(values, "run"),
        round_number=at_least_one(values, "round_number"),
        weights=weights,
        packed_weights=packed_weights,
        frozen_sha256=text_of(values, "frozen_sha256"),
        words=texts_of(values, "words"),
        reference=numbers_of(values, "reference"),
        num_participants=at_least_one(values, "num_participants"),
        countersignature=text_or_empty(values, "countersignature"),
        parcels=bytes_of(values, "parcels"),
        weight=at_least_one(values, "weight"),
        total_weight=at_least_one(values, "total_weight"),
        correction=arrays_of(content, CORRECTION) if CORRECTION in content else None,
        counted_round=at_least_one(values, "counted_round") if "counted_round" in values else 0,
    )


def pack_join_reply(reply: JoinReply) -> RecordDict:
    """Pack a `JoinReply`."""
    return pack("joined", present(site=reply.site, public_num_patients=reply.public_num_patients))


def pack_words_reply(reply: WordsReply) -> RecordDict:
    """Pack a `WordsReply`."""
    return pack(
        "words",
        present(site=reply.site, epsilon=reply.epsilon, ledger_head=reply.ledger_head or None)
        | listed(words=reply.words),
    )


def pack_statistics_reply(reply: StatisticsReply) -> RecordDict:
    """Pack a `StatisticsReply`."""
    content = pack(
        "statistics",
        present(
            site=reply.site,
            min_count=reply.min_count,
            noise=reply.noise,
            epsilon=reply.epsilon,
            ledger_head=reply.ledger_head or None,
        ),
    )
    content["arrays"] = pack_arrays(reply.values)
    return content


def pack_train_reply(reply: TrainReply) -> RecordDict:
    """Pack a `TrainReply`."""
    content = pack(
        "update",
        present(
            site=reply.site,
            num_examples=reply.num_examples,
            loss=reply.loss,
            epsilon=reply.epsilon,
            noise=reply.noise,
            ledger_head=reply.ledger_head or None,
        ),
    )
    content["arrays"] = pack_arrays(reply.update)
    return content


def pack_secure_reply(reply: SecureReply) -> RecordDict:
    """Pack a `SecureReply`."""
    return pack("secure reply", {"site": reply.site, "payload": reply.payload})


def pack_evaluate_reply(reply: EvaluateReply) -> RecordDict:
    """Pack an `EvaluateReply`."""
    content = pack("sums", {"site": reply.site})
    if reply.sums is not None:
        of_global = reply.global_sums or {}
        sums = {**reply.sums, **{_OF_GLOBAL + name: array for name, array in of_global.items()}}
        content["arrays"] = pack_arrays(cast(StateDict, sums))
    return content


def pack_refusal(refusal: Refusal) -> RecordDict:
    """Pack a `Refusal`."""
    return pack("refusal", {"site": refusal.site, "reason": refusal.reason.value})


def unpack_reply(content: RecordDict) -> Reply:
    """Unpack any reply of a site.

    Raises:
        MessageError: Records missing, of the wrong type or of another version.
    """
    values = unpack(content)
    site, kind = text_of(values, "site"), values["kind"]
    if kind == "joined":
        return JoinReply(
            site=site, public_num_patients=number_of(values, "public_num_patients", int)
        )
    if kind == "words":
        return WordsReply(
            site=site,
            words=texts_of(values, "words"),
            epsilon=number_of(values, "epsilon", float),
            ledger_head=text_or_empty(values, "ledger_head"),
        )
    if kind == "statistics":
        return StatisticsReply(
            site=site,
            values=arrays_of(content),
            min_count=number_of(values, "min_count", int) or 0,
            noise=text_of(values, "noise"),
            epsilon=number_of(values, "epsilon", float),
            ledger_head=text_or_empty(values, "ledger_head"),
        )
    if kind == "refusal":
        reason = text_of(values, "reason")
        if reason not in tuple(RefusalReason):
            raise MessageError(f"Expected a refusal's reason code, got {reason!r}.")
        return Refusal(site=site, reason=RefusalReason(reason))
    if kind == "update":
        return TrainReply(
            site=site,
            update=arrays_of(content),
            num_examples=number_of(values, "num_examples", int),
            loss=number_of(values, "loss", float),
            epsilon=number_of(values, "epsilon", float),
            noise=text_of(values, "noise"),
            ledger_head=text_or_empty(values, "ledger_head"),
        )
    if kind in (ACTIVATIONS, GRADIENT):
        return SplitReply(site=site, name=str(kind), array=_only(content, str(kind)))
    if kind == "secure reply":
        return SecureReply(site=site, payload=bytes_of(values, "payload"))
    if kind == "sums":
        return _unpack_sums(site, content)
    raise MessageError(f"Expected a reply of a known kind, got {kind!r}.")


def _only(content: RecordDict, name: str) -> Array:
    arrays = arrays_of(content)
    if set(arrays) != {name}:
        raise MessageError(f"Expected {name} and no other arrays, got {len(arrays)} arrays.")
    return arrays[name]


def _unpack_sums(site: str, content: RecordDict) -> EvaluateReply:
    if "arrays" not in content:
        return EvaluateReply(site=site, sums=None)
    sums, of_global = {}, {}
    for name, array in cast(MetricSums, arrays_of(content)).items():
        if name.startswith(_OF_GLOBAL):
            of_global[name.removeprefix(_OF_GLOBAL)] = array
        else:
            sums[name] = array
    return EvaluateReply(site=site, sums=sums, global_sums=of_global or None)
