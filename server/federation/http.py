"""The few things that the gate does with HTTP by itself: read a bounded body, answer."""

import asyncio
import json
from io import BytesIO
from typing import Any, Protocol

from starlette.types import Message, Receive, Scope, Send

_CHUNK_PATIENCE_S = 30.0


class TooLargeError(Exception):
    """The body is larger than allowed."""


class ClientGoneError(Exception):
    """The client went away, or sent too slowly."""


def header(scope: Scope, name: bytes) -> bytes | None:
    """Return a header that stands there exactly once, else None."""
    found = [value for key, value in scope["headers"] if key == name]
    return found[0] if len(found) == 1 else None


class Sink(Protocol):
    """What takes bytes."""

    def write(self, content: bytes, /) -> int:
        """Take some more."""
        ...


async def read_body(scope: Scope, receive: Receive, limit: int, patience_s: float) -> bytes:
    """Return the request's body; errors as of `read_body_into`."""
    sink = BytesIO()
    await read_body_into(sink, scope, receive, limit, patience_s)
    return sink.getvalue()


async def read_body_into(
    sink: Sink, scope: Scope, receive: Receive, limit: int, patience_s: float
) -> None:
    """Write the request's body to `sink` as it comes.

    Raises:
        TooLargeError: It is, or says it is, larger than `limit` bytes.
        ClientGoneError: It did not come within `patience_s`, or stopped coming.
    """
    stated = header(scope, b"content-length")
    if stated is not None and int(stated) > limit:
        raise TooLargeError
    size = 0
    try:
        async with asyncio.timeout(patience_s):
            more = True
            while more:
                event = await asyncio.wait_for(receive(), _CHUNK_PATIENCE_S)
                if event["type"] == "http.disconnect":
                    raise ClientGoneError
                piece = event.get("body", b"")
                more = event.get("more_body", False)
                size += len(piece)
                if size > limit:
                    raise TooLargeError
                sink.write(piece)
    except TimeoutError:
        raise ClientGoneError from None


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that hands over a body that was read already."""
    # What was handed over is let go of: the receiver may be kept long after its request.
    left = [body]

    async def receive_again() -> Message:
        if not left:
            return await receive()  # waits until the client is gone
        return {"type": "http.request", "body": left.pop(), "more_body": False}

    return receive_again


async def answer(
    send: Send, status: int, table: dict[str, Any] | None = None, *, close: bool = False
) -> None:
    """Send a whole response: JSON, or no body.

    Args:
        send: ASGI's.
        status: HTTP's.
        table: The JSON; None for none.
        close: End the connection: some of the request was not read.
    """
    body = b"" if table is None else json.dumps(table).encode()
    headers = [(b"content-length", str(len(body)).encode()), (b"cache-control", b"no-store")]
    if body:
        headers.append((b"content-type", b"application/json"))
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
