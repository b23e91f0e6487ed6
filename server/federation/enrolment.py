"""The desk where sites enrol, ask how they stand, and leave. It knows nothing of HTTP.

    body -> its form -> clock -> signatures -> invite or known key -> registry

Whoever asks learns only how to go on: nothing of what was wrong with a request in detail, and not
whether a site of some name exists.
"""

import hmac
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from medfed.common.bundle import bundle_digest
from medfed.common.enrolment import (
    CLOCK_TOLERANCE_S,
    ENROLL,
    LEAVE,
    MAX_BODY_BYTES,
    STATE,
    Action,
    Answer,
    EnrolRequest,
    SiteRequest,
    fingerprint_of,
    is_signed,
    node_key_line,
    write_moment,
)
from medfed.common.errors import FederationError
from medfed.server.federation.home import FederationHome
from medfed.server.federation.membership import hash_of
from medfed.server.federation.registry import Registry, SiteRecord

_log = logging.getLogger(__name__)

_MAX_NONCES = 128
_NO_TOKEN = "0" * 64

_MESSAGES = {
    "path": (404, "There is nothing here."),
    "size": (413, "The request is too large."),
    "malformed": (400, "The request cannot be read. Use `medfed site enroll`."),
    "clock": (400, "The request's time is off. Set the clock of your machine."),
    "signature": (400, "The request's signatures do not hold. Run the command again."),
    "changed": (
        400,
        "The site was told to trust something else than this coordinator. Its invite was changed "
        "on the way: telephone the coordinator.",
    ),
    "refused": (403, "Not accepted. Ask the coordinator for a new invite."),
    "expired": (410, "The invite has expired. Ask the coordinator for a new one."),
    "used": (
        409,
        "The invite was used already, with other keys. If that was not you, telephone the "
        "coordinator at once.",
    ),
    "key": (409, "This key cannot be used. Make a new one."),
    "repeated": (409, "This request was heard before. Run the command again."),
    "busy": (429, "Too many requests. Wait five minutes."),
    "unavailable": (503, "The coordinator cannot answer now. Try again later."),
}


class _Refused(Exception):  # noqa: N818 - an answer, not a failure
    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


_Request = TypeVar("_Request", bound=SiteRequest)


@dataclass(frozen=True)
class _Outcome:
    """What a request makes of a record, and what is answered."""

    record: SiteRecord
    refused: str = ""


class EnrolmentDesk:
    """Answers sites. Any number of threads and processes may do so at the same time."""

    def __init__(self, home: FederationHome) -> None:
        self._registry = Registry(home.sites_folder)
        self._ca = home.ca.read_bytes()
        self._coordinator = home.coordinator_key().public_key
        self._bundle = bundle_digest()
        self._version = version("medfed")
        self._nobody = node_key_line(ec.generate_private_key(ec.SECP384R1()).public_key())

    def handle(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Answer one request.

        Args:
            path: Of the URL: `/medfed/v1/enroll`, `.../state` or `.../leave`.
            body: JSON, as it came.

        Returns:
            HTTP status, and what goes back as JSON: an `Answer`, or `error` (a code), `message`
            (the way out) and `time` (the coordinator's).
        """
        try:
            record = self._heard(path, body)
        except _Refused as refused:
            return _refusal(refused.code)
        except (FederationError, OSError) as error:
            _log.error("A site's request could not be answered: %s", error)
            return _refusal("unavailable")
        answer = Answer(
            state=record.state,
            fingerprint=record.fingerprint,
            bundle=self._bundle,
            coordinator=self._coordinator,
            version=self._version,
        )
        return 200, answer.model_dump()

    def _heard(self, path: str, body: bytes) -> SiteRecord:
        if path not in (ENROLL, STATE, LEAVE):
            raise _Refused("path")
        if len(body) > MAX_BODY_BYTES:
            raise _Refused("size")
        if path == ENROLL:
            return self._enroll(_parse(EnrolRequest, body))
        action: Action = "state" if path == STATE else "leave"
        return self._known(action, _parse(SiteRequest, body))

    def _enroll(self, request: EnrolRequest) -> SiteRecord:
        _check_clock(request)
        if not is_signed("enroll", request, request.node_key):
            raise _Refused("signature")
        expected = fingerprint_of(
            site=request.site,
            node_key=request.node_key,
            ledger_key=request.ledger_key,
            coordinator=self._coordinator,
            ca=self._ca,
        )
        if request.fingerprint != expected:
            raise _Refused("changed")
        return self._decide(request, lambda record: self._admit(request, record))

    def _admit(self, request: EnrolRequest, record: SiteRecord | None) -> _Outcome:
        known = record.token_sha256 if record is not None else _NO_TOKEN
        fits = hmac.compare_digest(known, hash_of(request.token))
        if record is None or not fits or record.state in ("revoked", "left"):
            raise _Refused("refused")
        if record.state != "invited":
            if (record.node_key, record.ledger_key) == (request.node_key, request.ledger_key):
                return _Outcome(record)  # it did not get our first answer
            _log.warning("The invite of %s was used a second time, with other keys.", record.name)
            when = datetime.now(UTC).isoformat(" ", "minutes")[:16]
            note = f"invite used again with other keys, {when} UTC: stolen?"
            return _Outcome(replace(record, note=note), "used")
        if datetime.now(UTC) > datetime.fromisoformat(record.expires):
            raise _Refused("expired")
        if self._is_taken(request.node_key, record):
            raise _Refused("key")
        enrolled = replace(
            record,
            node_key=request.node_key,
            ledger_key=request.ledger_key,
            fingerprint=request.fingerprint,
            version=request.version,
        )
        return _Outcome(enrolled.to("enrolled"))

    def _is_taken(self, node_key: str, record: SiteRecord) -> bool:
        """Whether the key is, or ever was, in use. Flower registers a key once and for ever."""
        return any(
            node_key in (other.node_key, *other.retired_keys)
            for other in (record, *self._registry.records())
        )

    def _known(self, action: Action, request: SiteRequest) -> SiteRecord:
        _check_clock(request)

        def edit(record: SiteRecord | None) -> _Outcome:
            known = record.node_key if record is not None else ""
            # For a site that is not known too: how long it takes must not tell.
            signed = is_signed(action, request, known or self._nobody)
            if record is None or not known or not signed:
                raise _Refused("refused")
            if request.coordinator != self._coordinator:
                raise _Refused("changed")
            if action == "leave" and record.state in ("enrolled", "approved"):
                _log.info("%s has left.", record.name)
                record = record.to("left")
            return _Outcome(record)

        return self._decide(request, edit)

    def _decide(
        self, request: SiteRequest, decide: Callable[[SiteRecord | None], _Outcome]
    ) -> SiteRecord:
        """Let `decide` change the site's record, with no other request between; once a request."""
        refused = ""

        def edit(record: SiteRecord | None) -> SiteRecord:
            nonlocal refused
            outcome = decide(record)
            refused = outcome.refused
            # Who is refused must not use up the requests that a site has.
            return outcome.record if refused else _remember(outcome.record, request)

        record = self._registry.change(request.site, edit)
        if refused or record is None:
            raise _Refused(refused or "refused")
        return record


def _parse(kind: type[_Request], body: bytes) -> _Request:
    try:
        return kind.model_validate_json(body)
    except (ValidationError, ValueError, RecursionError):
        raise _Refused("malformed") from None


def _check_clock(request: SiteRequest) -> None:
    off = datetime.now(UTC) - datetime.fromisoformat(request.time)
    if abs(off.total_seconds()) > CLOCK_TOLERANCE_S:
        raise _Refused("clock")


def _remember(record: SiteRecord, request: SiteRequest) -> SiteRecord:
    """Note the request's nonce, until its time is refused anyway."""
    oldest = datetime.now(UTC) - timedelta(seconds=CLOCK_TOLERANCE_S)
    recent = [(n, at) for n, at in record.nonces if datetime.fromisoformat(at) >= oldest]
    if any(nonce == request.nonce for nonce, _ in recent):
        raise _Refused("repeated")
    if len(recent) >= _MAX_NONCES:
        raise _Refused("busy")
    return replace(record, nonces=(*recent, (request.nonce, request.time)))


def _refusal(code: str) -> tuple[int, dict[str, Any]]:
    status, message = _MESSAGES[code]
    return status, {"error": code, "message": message, "time": write_moment(datetime.now(UTC))}
