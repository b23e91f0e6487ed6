"""The two faces of Flower's SuperLink: what the internet reaches, and what this machine does.

Flower serves its sites, its administration and the programs that train on one port, and protects
only the first. Here everything is closed that is not on a list:

    public    POST /v1/fleet/*      of an approved site, signed with its node key
              POST /medfed/v1/*     joining and leaving; signed or with an invite's token
              GET  /health
    loopback  /v1/runtime/*         Flower's own tokens protect these
              everything else       with this federation's control token
"""

import asyncio
import hmac
import ipaddress
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medfed.server.federation.admission import Admission, Spool
from medfed.server.federation.enrolment import EnrolmentDesk
from medfed.server.federation.fleet_requests import (
    FLEET_PATHS,
    MAX_REQUEST_BYTES,
    PULL_MESSAGES,
    PUSH_MESSAGES,
    RefusedError,
    Uploads,
    check_headers,
    check_push,
    sender,
)
from medfed.server.federation.http import (
    ClientGoneError,
    TooLargeError,
    answer,
    header,
    read_body,
)
from medfed.server.federation.registry import Registry
from medfed.server.federation.rejections import Rejections

_log = logging.getLogger(__name__)

_DESK_PATH = re.compile(r"/medfed/v1/[a-z]{1,32}", re.ASCII)
_MAX_DESK_BYTES = 64 * 1024
_MAX_DESK_REQUESTS = 8
_DESK_PATIENCE_S = 30.0
# A chunk of 5 MB over a slow line.
_FLEET_PATIENCE_S = 600.0
# Flower sends two objects at a time beside its polls. Each may hold a whole body on disk.
_MAX_REQUESTS_A_SITE = 8
# An answer to a site that asks for messages and gets none; one alone takes hundreds.
_EMPTY_BYTES = 64
# Of messages, as this machine's programs send and fetch them.
_PIECES = frozenset({"/v1/runtime/push-object", "/v1/runtime/pull-object"})
# Of Flower's answers: what no program that follows its protocol gets.
_STRANGE = frozenset({400, 401, 404, 405, 415, 422, 500})


@dataclass
class PublicGate:
    """ASGI application for the public port."""

    fleet: Admission
    registry: Registry
    desk: EnrolmentDesk
    rejections: Rejections
    uploads: Uploads
    _open: Counter[str] = field(default_factory=Counter)
    _desk_queue: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(_MAX_DESK_REQUESTS)
    )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; whatever goes wrong is told to the log alone."""
        if scope["type"] != "http":
            return
        path, watched = _plain_path(scope), _Watched(send)
        try:
            if (scope["method"], path) == ("GET", "/health"):
                await answer(watched, 200)
            elif scope["method"] == "POST" and path in FLEET_PATHS:
                await self._fleet(path, scope, receive, watched)
            elif scope["method"] == "POST" and _DESK_PATH.fullmatch(path):
                await self._enrol(path, scope, receive, watched)
            else:
                raise RefusedError(404, "closed")
        except RefusedError as error:
            what = path or str(scope.get("raw_path", b""))
            self.rejections.add(error.site, what, error.reason)
            if not watched.status:
                await _last_word(send, error.status)
        except ClientGoneError:
            pass
        except Exception:
            _log.exception("A request to %s could not be answered", path)
            if not watched.status:
                await _last_word(send, 500)

    async def _fleet(self, path: str, scope: Scope, receive: Receive, send: "_Watched") -> None:
        site = sender(scope, self.registry)
        check_headers(scope, site)
        if self._open[site] >= _MAX_REQUESTS_A_SITE:
            raise RefusedError(503, "too many requests at a time", site)
        self._open[site] += 1
        try:
            async with self._body(scope, receive, site) as body:
                self.uploads.count(site, path, body.tell())
                if path == PUSH_MESSAGES:
                    body.seek(0)
                    check_push(body.read(), site)
                await self.fleet.answer(scope, body, receive, send)
        finally:
            self._open[site] -= 1
        if path == PULL_MESSAGES and send.num_bytes > _EMPTY_BYTES:
            self.uploads.allow(site)
        if send.status in _STRANGE:
            self.rejections.add(site, path, f"Flower answered {send.status}")

    @asynccontextmanager
    async def _body(self, scope: Scope, receive: Receive, site: str) -> AsyncIterator[Spool]:
        with _none_too_large(MAX_REQUEST_BYTES, site):
            async with self.fleet.body(
                scope, receive, MAX_REQUEST_BYTES, _FLEET_PATIENCE_S
            ) as body:
                yield body

    async def _enrol(self, path: str, scope: Scope, receive: Receive, send: "_Watched") -> None:
        with _none_too_large(_MAX_DESK_BYTES, ""):
            body = await read_body(scope, receive, _MAX_DESK_BYTES, _DESK_PATIENCE_S)
        async with self._desk_queue:
            status, table = await asyncio.to_thread(self.desk.handle, path, body)
        if status >= 400:
            self.rejections.add("", path, str(table.get("error", f"the desk answered {status}")))
        await answer(send, status, table)


@dataclass
class LoopbackGate:
    """ASGI application for this machine's own programs."""

    app: ASGIApp
    pieces: Admission
    token: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what Flower protects by itself; ask for the token for everything else."""
        if scope["type"] != "http":
            return
        path = _plain_path(scope)
        if not _is_loopback(header(scope, b"host") or b""):
            # A web page that was given this machine's address under its own name.
            await answer(send, 403, close=True)
        elif path in _PIECES:
            async with self.pieces.body(
                scope, receive, MAX_REQUEST_BYTES, _FLEET_PATIENCE_S
            ) as body:
                await self.pieces.answer(scope, body, receive, send)
        elif path.startswith("/v1/runtime/") or path == "/health" or self._has_token(scope):
            await self.app(scope, receive, send)
        else:
            await answer(send, 401, close=True)

    def _has_token(self, scope: Scope) -> bool:
        given = header(scope, b"authorization") or b""
        return hmac.compare_digest(given, f"Bearer {self.token}".encode())


class _Watched:
    """A `send` that remembers the status of the response that was begun, 0 before, and its size."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.num_bytes = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        if self.status == 200:
            self.num_bytes += len(message.get("body", b""))
        await self._send(message)


async def _last_word(send: Send, status: int) -> None:
    try:
        await answer(send, status, close=True)
    except Exception:
        # Who sent no whole request may not hear it. A line for each would fill the disk.
        _log.debug("A connection takes no answer", exc_info=True)


@contextmanager
def _none_too_large(limit: int, site: str) -> Iterator[None]:
    try:
        yield
    except TooLargeError:
        raise RefusedError(413, f"a request of more than {limit} bytes", site) from None


def _plain_path(scope: Scope) -> str:
    """Return the path if it was written as itself, without escapes and query; else nothing."""
    path = str(scope["path"])
    raw = scope.get("raw_path")
    plain = path.encode() == raw and not scope["query_string"] and "//" not in path
    return path if plain and ".." not in path else ""


def _is_loopback(host: bytes) -> bool:
    name = re.sub(r":\d+$", "", host.decode("latin-1"))
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
