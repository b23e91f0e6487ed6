"""Asks the coordinator's enrolment desk over TLS, and says in plain words why it did not answer."""

import json
import socket
import ssl
from datetime import UTC, datetime

import httpx
from pydantic import ValidationError

from medfed.common.addresses import join_address, split_address
from medfed.common.enrolment import MAX_BODY_BYTES, Answer, SiteRequest
from medfed.common.errors import FederationError
from medfed.common.tls import explain, trust_only

_TIMEOUT_S = 20.0

_WAYS_OUT = {
    "refused": "The coordinator does not accept it: the invite is not (or no longer) good, or this "
    "site's key is not known there. Ask the coordinator for a new invite.",
    "expired": "The invite has expired. Ask the coordinator for a new one.",
    "used": "The invite was used already, with other keys than this site's. If it was not you (on "
    "another machine, or before the keys were removed), somebody else has it: telephone the "
    "coordinator at once. In any case ask for a new invite.",
    "key": "The coordinator has seen this site's node key before, and a key is used for one "
    "membership only. Move keys/node.key aside and run the command again: it makes a new one.",
    "changed": "This site was told to trust another authority or coordinator than the one that "
    "answers: the invite was changed on its way. Telephone the coordinator, and get a new invite "
    "in another way.",
    "repeated": "The coordinator has heard this very request before. Run the command again.",
    "busy": "The coordinator got too many requests from this site. Wait five minutes.",
    "unavailable": "The coordinator cannot answer now. Try again later; if it stays so, tell the "
    "coordinator to look into its log.",
    "malformed": "The coordinator does not understand this release of medfed. Install the release "
    "that the coordinator uses.",
}


class DeclinedError(FederationError):
    """The coordinator answered no.

    Attributes:
        code: Why, one word.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def ask(address: str, ca: bytes, path: str, request: SiteRequest) -> Answer:
    """Post a signed request to the coordinator and return its answer.

    Args:
        address: Its host:port.
        ca: The authority that its certificate must come from, PEM.
        path: What is asked for.
        request: Signed.

    Raises:
        DeclinedError: The coordinator answered no.
        FederationError: It did not answer, or is not who it should be; with the way out.
    """
    host, port = split_address(address)
    where = join_address(host, port)
    try:
        status, body = _post(f"https://{where}{path}", trust_only(ca), request)
    except httpx.HTTPError as error:
        raise FederationError(_describe(error, host, where)) from None
    if status == httpx.codes.OK:
        try:
            return Answer.model_validate_json(body)
        except ValidationError:
            raise _stranger(where, status) from None
    raise _declined(where, status, body)


def _post(url: str, context: ssl.SSLContext, request: SiteRequest) -> tuple[int, bytes]:
    with (
        httpx.Client(verify=context, timeout=_TIMEOUT_S) as client,
        client.stream(
            "POST",
            url,
            content=request.model_dump_json(),
            headers={"content-type": "application/json", "accept-encoding": "identity"},
        ) as response,
    ):
        body = b""
        for part in response.iter_raw():
            body += part
            if len(body) > MAX_BODY_BYTES:
                return response.status_code, b""  # no answer of ours is as long
    return response.status_code, body


def _declined(where: str, status: int, body: bytes) -> FederationError:
    try:
        table = json.loads(body)
        code, time = table["error"], table.get("time", "")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return _stranger(where, status)
    if code == "clock":
        return DeclinedError(code, _describe_clock(time))
    if isinstance(code, str) and code in _WAYS_OUT:
        return DeclinedError(code, _WAYS_OUT[code])
    return _stranger(where, status)


def _stranger(where: str, status: int) -> FederationError:
    if status == httpx.codes.TOO_MANY_REQUESTS or status >= httpx.codes.INTERNAL_SERVER_ERROR:
        return FederationError(f"{_WAYS_OUT['unavailable']} ({where}, HTTP {status})")
    return FederationError(
        f"What answers at {where} does not speak as a medfed coordinator does (HTTP {status}). "
        "Check the address; the coordinator's medfed may also be of another release."
    )


def _describe_clock(time: object) -> str:
    here = datetime.now(UTC)
    try:
        there = datetime.fromisoformat(str(time))
        apart = f"{abs((here - there).total_seconds()) / 60:,.0f} minutes"
        clocks = f"here it is {here:%Y-%m-%d %H:%M} UTC, at the coordinator {there:%Y-%m-%d %H:%M}"
    except (ValueError, TypeError, OverflowError):
        apart, clocks = "more than five minutes", f"here it is {here:%Y-%m-%d %H:%M} UTC"
    return (
        f"The clocks of this machine and of the coordinator are {apart} apart ({clocks}). Set "
        "this machine's clock (timedatectl set-ntp true), or tell the coordinator to set its own."
    )


def _describe(error: httpx.HTTPError, host: str, where: str) -> str:
    cause = _root(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"The certificate that {where} shows is not accepted: {explain(cause, host)}. Nothing "
            "was sent. If the clock and the address are right, ask the coordinator; a network "
            "that opens TLS connections (an inspecting proxy) must leave this address alone."
        )
    if isinstance(cause, ssl.SSLError):
        return f"{where} does not speak TLS as expected ({cause.reason}). Check the port."
    if isinstance(cause, socket.gaierror):
        return f"The name {host} is not known to this network's DNS. Check the address."
    if isinstance(error, httpx.TimeoutException | httpx.ProxyError):
        return (
            f"No answer from {where} ({type(error).__name__}). A firewall may be in the way: this "
            f"machine needs outgoing TCP to {where}, and nothing incoming."
        )
    if isinstance(cause, ConnectionRefusedError):
        return f"Nothing listens at {where}. Is the coordinator's server running? Try again later."
    why = getattr(cause, "strerror", None) or type(cause).__name__
    return (
        f"The connection to {where} failed ({why}). Check this machine's network, then try again."
    )


def _root(error: BaseException) -> BaseException:
    """Return the operating system's or TLS's own error behind one of httpx."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, OSError):
        link = link.__cause__ or link.__context__
    return link or error
