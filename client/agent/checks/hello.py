"""The coordinator's answer to GET /health: who it is, until when, and what time it has."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from medfed.common.tls import explain, trust_only

_TIMEOUT_S = 5.0
# Flower takes a signature that is up to 5 s in the server's future and 305 s in its past.
_MOST_AHEAD_S, _MOST_BEHIND_S = 5.0, 300.0


@dataclass(frozen=True)
class Hello:
    """The coordinator's answer to GET /health.

    Attributes:
        status: HTTP.
        headers: Of the answer.
        expires: When its certificate does; None if that could not be seen.
        ahead_s: How far this machine's clock is ahead of its, to a second or so; None if unknown.
    """

    status: int
    headers: Mapping[str, str]
    expires: datetime | None
    ahead_s: float | None


def say_hello(url: str, ca: bytes) -> Hello:
    """Ask for `url` over TLS that trusts `ca` alone.

    Raises:
        FederationError: `ca` holds no certificate.
        httpx.HTTPError: No answer, or not from who it should be.
    """
    with (
        httpx.Client(verify=trust_only(ca), timeout=_TIMEOUT_S) as client,
        client.stream("GET", url) as answer,
    ):
        now = datetime.now(UTC)
        stream = answer.extensions.get("network_stream")
        tls = stream.get_extra_info("ssl_object") if stream is not None else None
        expires = _expiry(tls.getpeercert()) if tls is not None else None
        headers = dict(answer.headers)
        return Hello(answer.status_code, headers, expires, _ahead_s(headers.get("date"), now))


def _expiry(certificate: Mapping[str, Any] | None) -> datetime | None:
    if not certificate or "notAfter" not in certificate:
        return None
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC)


def _ahead_s(date: str | None, now: datetime) -> float | None:
    try:
        there = parsedate_to_datetime(date or "")
    except ValueError:
        return None
    # The header has whole seconds, cut off.
    return (now - there.astimezone(UTC)).total_seconds() - 0.5


def is_clock_refused(ahead_s: float) -> bool:
    """Whether the coordinator takes nothing from a machine whose clock is so far ahead of its."""
    return not -_MOST_BEHIND_S <= ahead_s <= _MOST_AHEAD_S


def explain_clock(ahead_s: float) -> str:
    """Say how far this machine's clock is off, how far it may be, and what to do."""
    off, limit_s = ("ahead of", _MOST_AHEAD_S) if ahead_s > 0 else ("behind", _MOST_BEHIND_S)
    return (
        f"{abs(ahead_s):.0f} s {off} the coordinator's, which takes up to {limit_s:.0f}. "
        "Set this machine's clock: timedatectl set-ntp true."
    )


def why_no_hello(error: Exception, host: str, where: str) -> str:
    """Say why there was none, and what to do."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):  # TLS' errors are of them too
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"The certificate of {where} is not accepted: {explain(cause, host)}. If clock and "
            "address are right, ask the coordinator; a network that opens TLS connections (an "
            "inspecting proxy) must leave this address alone."
        )
    if isinstance(cause, ssl.SSLError):
        return f"{where} does not speak TLS as expected ({cause.reason}). Check the port."
    if isinstance(error, httpx.HTTPError):
        return (
            f"{where} takes connections but gives no answer ({type(error).__name__}). Ask the "
            "coordinator whether its server runs; look for a proxy in between."
        )
    return f"The pinned authority cannot be used: {error}"
