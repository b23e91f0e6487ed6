"""What travels between server and sites. The only place that packs and unpacks Flower records.

Requests: `JoinRequest` (query.join), `WordsRequest` (query.words), `ModelRequest` (train and
evaluate), `SecureRequest` (a phase of secure aggregation). Replies: `JoinReply`, `WordsReply`,
`TrainReply`, `EvaluateReply`, `SecureReply`, or a `Refusal` with a reason code.

A message holds one ConfigRecord "medfed" (version, kind and small values) and at most one
ArrayRecord "arrays". Arrays are NumPy's own format read with pickle off; only the types below pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from medfed.common.errors import MessageError, RefusalReason
from medfed.common.metrics import MetricSums
from medfed.common.state_dicts import StateDict
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study_json

MESSAGE_VERSION = 3
JOIN = "query.join"
WORDS = "query.words"
SECURE_KEYS = "query.secure_keys"
SECURE_SHARES = "query.secure_shares"
SECURE_REVEAL = "query.secure_reveal"
TRAIN = "train"
EVALUATE = "evaluate"
MASKED = "masked"
MAX_WORDS = 100_000
_Number = TypeVar("_Number", int, float)
_ALLOWED_TYPES = ("float32", "float64", "float16", "int64", "int32", "uint32", "uint8", "bool")


@dataclass(frozen=True, kw_only=True)
class JoinRequest:
    """The server asks who a site is and whether it will take part in `study`."""

    study: StudyConfig
    run: str


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """Train or evaluate `weights`.

    Attributes:
        study: The whole study.
        run: The run's identifier.
        round_number: 1-based.
        weights: What trains of the global model.
        frozen_sha256: Hash of all the rest of it, which every site has by itself.
        words: The vocabulary of a report task.
        num_participants: Sites that take part in this round, this one included.
        countersignature: The server's countersignature of the ledger head that this site last
            sent, as JSON; empty if there is none to send.
        parcels: Under secure aggregation, the other sites' shares for this one
            (`secure_sum.wire`); empty without.
        weight: Under secure aggregation, this site's public weight in the mean.
        total_weight: The weights of all participants together.
    """

    study: StudyConfig
    run: str
    round_number: int
    weights: StateDict
    frozen_sha256: str
    words: tuple[str, ...] = ()
    num_participants: int = 1
    countersignature: str = ""
    parcels: bytes = b""
    weight: int = 1
    total_weight: int = 1


@dataclass(frozen=True, kw_only=True)
class WordsRequest:
    """The server asks which words of its reports a site will name."""

    study: StudyConfig
    run: str


@dataclass(frozen=True, kw_only=True)
class SecureRequest:
    """A phase of secure aggregation before or after training (`client.secure`).

    Attributes:
        study: The whole study.
        run: The run's identifier.
        round_number: 1-based.
        num_participants: Sites asked in the round's first phase.
        payload: The phase's content in `secure_sum.wire`'s format; empty when keys are asked for.
    """

    study: StudyConfig
    run: str
    round_number: int
    num_participants: int
    payload: bytes = b""


@dataclass(frozen=True, kw_only=True)
class JoinReply:
    """The site takes part."""

    site: str
    public_num_patients: int | None


@dataclass(frozen=True, kw_only=True)
class WordsReply:
    """The words that a site names, in alphabetical order.

    Attributes:
        site: The site's name.
        words: What its policy lets out.
        epsilon: What this data set has spent in all, after this; None if it cost nothing.
        ledger_head: Hash of the ledger entry that the words were charged to; empty without.
    """

    site: str
    words: tuple[str, ...]
    epsilon: float | None = None
    ledger_head: str = ""


@dataclass(frozen=True, kw_only=True)
class TrainReply:
    """A site's update.

    Attributes:
        site: The site's name.
        update: New minus global weights; under secure aggregation one masked vector, `MASKED`.
        num_examples: Training images; None under DP, where it is private.
        loss: Mean training loss; None under DP.
        epsilon: What this data set has spent in all, after this round; None without DP.
        noise: secure, seeded or none.
        ledger_head: Hash of the last entry of the site's ledger, for the server to countersign.
    """

    site: str
    update: StateDict
    num_examples: int | None
    loss: float | None
    epsilon: float | None
    noise: str
    ledger_head: str = ""


@dataclass(frozen=True, kw_only=True)
class SecureReply:
    """A site's part in a phase of secure aggregation, in `secure_sum.wire`'s format."""

    site: str
    payload: bytes


@dataclass(frozen=True, kw_only=True)
class EvaluateReply:
    """A site's metric sums over its held-out images; None where its policy releases none."""

    site: str
    sums: MetricSums | None


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """The site said no."""

    site: str
    reason: RefusalReason


def pack_join_request(request: JoinRequest) -> RecordDict:
    """Pack a `JoinRequest`."""
    return _pack("join", {"study": request.study.for_sites().to_json(), "run": request.run})


def unpack_join_request(content: RecordDict) -> JoinRequest:
    """Unpack a `JoinRequest`."""
    values = _unpack(content, "join")
    return JoinRequest(study=parse_study_json(_text(values, "study")), run=_text(values, "run"))


def pack_words_request(request: WordsRequest) -> RecordDict:
    """Pack a `WordsRequest`."""
    return _pack("ask words", {"study": request.study.for_sites().to_json(), "run": request.run})


def unpack_words_request(content: RecordDict) -> WordsRequest:
    """Unpack a `WordsRequest`."""
    values = _unpack(content, "ask words")
    return WordsRequest(study=parse_study_json(_text(values, "study")), run=_text(values, "run"))


def pack_secure_request(request: SecureRequest) -> RecordDict:
    """Pack a `SecureRequest`."""
    values = {
        "study": request.study.for_sites().to_json(),
        "run": request.run,
        "round_number": request.round_number,
        "num_participants": request.num_participants,
    }
    return _pack("secure", values | _present(payload=request.payload or None))


def unpack_secure_request(content: RecordDict) -> SecureRequest:
    """Unpack a `SecureRequest`."""
    values = _unpack(content, "secure")
    return SecureRequest(
        study=parse_study_json(_text(values, "study")),
        run=_text(values, "run"),
        round_number=_at_least_one(values, "round_number"),
        num_participants=_at_least_one(values, "num_participants"),
        payload=_bytes(values, "payload"),
    )


class ModelContents(Protocol):
    """Makes the content for one site."""

    def __call__(
        self, countersignature: str = "", *, parcels: bytes = b"", weight: int = 1
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
        **_listed(words=words),
    }

    def content(countersignature: str = "", *, parcels: bytes = b"", weight: int = 1) -> RecordDict:
        # Flower's records cannot tell the size of an empty text.
        own = _present(countersignature=countersignature or None, parcels=parcels or None)
        packed = _pack("model", {**values, **own, "weight": weight})
        packed["arrays"] = arrays
        return packed

    return content


def unpack_model_request(content: RecordDict) -> ModelRequest:
    """Unpack a `ModelRequest`."""
    values = _unpack(content, "model")
    return ModelRequest(
        study=parse_study_json(_text(values, "study")),
        run=_text(values, "run"),
        round_number=_at_least_one(values, "round_number"),
        weights=_arrays_of(content),
        frozen_sha256=_text(values, "frozen_sha256"),
        words=_texts(values, "words"),
        num_participants=_at_least_one(values, "num_participants"),
        countersignature=_text_or_empty(values, "countersignature"),
        parcels=_bytes(values, "parcels"),
        weight=_at_least_one(values, "weight"),
        total_weight=_at_least_one(values, "total_weight"),
    )


def pack_join_reply(reply: JoinReply) -> RecordDict:
    """Pack a `JoinReply`."""
    return _pack("joined", _present(site=reply.site, public_num_patients=reply.public_num_patients))


def pack_words_reply(reply: WordsReply) -> RecordDict:
    """Pack a `WordsReply`."""
    return _pack(
        "words",
        _present(site=reply.site, epsilon=reply.epsilon, ledger_head=reply.ledger_head or None)
        | _listed(words=reply.words),
    )


def pack_train_reply(reply: TrainReply) -> RecordDict:
    """Pack a `TrainReply`."""
    content = _pack(
        "update",
        _present(
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
    return _pack("secure reply", {"site": reply.site, "payload": reply.payload})


def pack_evaluate_reply(reply: EvaluateReply) -> RecordDict:
    """Pack an `EvaluateReply`."""
    content = _pack("sums", {"site": reply.site})
    if reply.sums is not None:
        content["arrays"] = pack_arrays(cast(StateDict, reply.sums))
    return content


def pack_refusal(refusal: Refusal) -> RecordDict:
    """Pack a `Refusal`."""
    return _pack("refusal", {"site": refusal.site, "reason": refusal.reason.value})


Reply = JoinReply | WordsReply | TrainReply | EvaluateReply | SecureReply | Refusal


def unpack_reply(content: RecordDict) -> Reply:
    """Unpack any reply of a site.

    Raises:
        MessageError: Records missing, of the wrong type or of another version.
    """
    values = _unpack(content)
    site, kind = _text(values, "site"), values["kind"]
    if kind == "joined":
        return JoinReply(site=site, public_num_patients=_number(values, "public_num_patients", int))
    if kind == "words":
        return WordsReply(
            site=site,
            words=_texts(values, "words"),
            epsilon=_number(values, "epsilon", float),
            ledger_head=_text_or_empty(values, "ledger_head"),
        )
    if kind == "refusal":
        reason = _text(values, "reason")
        if reason not in tuple(RefusalReason):
            raise MessageError(f"Expected a refusal's reason code, got {reason!r}.")
        return Refusal(site=site, reason=RefusalReason(reason))
    if kind == "update":
        return TrainReply(
            site=site,
            update=_arrays_of(content),
            num_examples=_number(values, "num_examples", int),
            loss=_number(values, "loss", float),
            epsilon=_number(values, "epsilon", float),
            noise=_text(values, "noise"),
            ledger_head=_text_or_empty(values, "ledger_head"),
        )
    if kind == "secure reply":
        return SecureReply(site=site, payload=_bytes(values, "payload"))
    if kind == "sums":
        sums = _arrays_of(content) if "arrays" in content else None
        return EvaluateReply(site=site, sums=cast(MetricSums | None, sums))
    raise MessageError(f"Expected a reply of a known kind, got {kind!r}.")


def num_bytes(content: RecordDict) -> int:
    """Return the size of a message's content: arrays with their headers, names and values."""
    return sum(record.count_bytes() for record in content.values())


def _listed(**lists: Sequence[str]) -> dict[str, list[str]]:
    """Leave out empty lists: Flower's records cannot tell their size."""
    return {name: list(texts) for name, texts in lists.items() if texts}


def _present(**values: str | bytes | int | float | None) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _pack(kind: str, values: Mapping[str, Any]) -> RecordDict:
    return RecordDict(
        {"medfed": ConfigRecord({"version": MESSAGE_VERSION, "kind": kind, **values})}
    )


def _unpack(content: RecordDict, kind: str | None = None) -> Mapping[str, Any]:
    record = content.get("medfed")
    if not isinstance(record, ConfigRecord) or not isinstance(record.get("kind"), str):
        raise MessageError("Expected a medfed record, got none. Both sides must run medfed.")
    if record.get("version") != MESSAGE_VERSION:
        raise MessageError(
            f"Expected message version {MESSAGE_VERSION}, got {record.get('version')!r}. "
            "Install the same medfed release on both sides."
        )
    if kind is not None and record["kind"] != kind:
        raise MessageError(f"Expected a message of kind {kind!r}, got {record['kind']!r}.")
    return cast(Mapping[str, Any], record)


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str) or not value:
        raise MessageError(f"Expected text under {name!r}, got {type(value).__name__}.")
    return value


def _text_or_empty(values: Mapping[str, Any], name: str) -> str:
    return _text(values, name) if values.get(name, "") != "" else ""


def _bytes(values: Mapping[str, Any], name: str) -> bytes:
    value = values.get(name, b"")
    if not isinstance(value, bytes):
        raise MessageError(f"Expected bytes under {name!r}, got {type(value).__name__}.")
    return value


def _at_least_one(values: Mapping[str, Any], name: str) -> int:
    value = values.get(name)
    if type(value) is not int or value < 1:
        raise MessageError(f"Expected {name} >= 1, got {value!r}.")
    return value


def _texts(values: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = values.get(name, [])
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise MessageError(f"Expected a list of texts under {name!r}, got something else.")
    if len(found) > MAX_WORDS:
        raise MessageError(f"Expected at most {MAX_WORDS} texts under {name!r}, got {len(found)}.")
    return tuple(found)


def _number(values: Mapping[str, Any], name: str, kind: type[_Number]) -> _Number | None:
    value = values.get(name)
    if value is not None and type(value) is not kind:
        raise MessageError(f"Expected {kind.__name__} under {name!r}, got {type(value).__name__}.")
    return value


def pack_arrays(arrays: StateDict) -> ArrayRecord:
    """Pack arrays in NumPy's format, in their order."""
    return ArrayRecord({name: Array(np.asarray(a, order="C")) for name, a in arrays.items()})


def unpack_arrays(record: ArrayRecord) -> StateDict:
    """Unpack arrays.

    Raises:
        MessageError: A type that is not allowed, or damaged bytes.
    """
    return {name: _unpack_array(name, packed) for name, packed in record.items()}


def _arrays_of(content: RecordDict) -> StateDict:
    record = content.get("arrays")
    if not isinstance(record, ArrayRecord):
        raise MessageError("Expected arrays in the message, got none.")
    return unpack_arrays(record)


def _unpack_array(name: str, packed: Array) -> npt.NDArray[np.generic]:
    if packed.stype != "numpy.ndarray" or packed.dtype not in _ALLOWED_TYPES:
        raise MessageError(
            f"Array {name!r}: expected NumPy's format and one of {', '.join(_ALLOWED_TYPES)}, "
            f"got {packed.stype!r} of {packed.dtype!r}."
        )
    try:
        array = packed.numpy()  # reads with allow_pickle=False
    except (ValueError, EOFError, OSError) as error:
        raise MessageError(f"Array {name!r} is damaged: {error}.") from None
    if array.dtype.name != packed.dtype or array.shape != tuple(packed.shape):
        raise MessageError(f"Array {name!r} is not what its header says.")
    return cast(npt.NDArray[np.generic], array)
