"""Large requests wait on disk until their turn: few are in Flower's hands at a time."""

import asyncio
import gc
import weakref
from pathlib import Path

import pytest
from starlette.types import Message, Receive, Scope, Send

from medfed.server.federation.admission import _AT_A_TIME, _SEARCH_EVERY_BYTES, Admission
from medfed.server.federation.http import ClientGoneError, TooLargeError

SCOPE: Scope = {"type": "http", "headers": []}
LARGE = bytes(range(256)) * 4 * 1024 * 5


class Echo:
    """Answers with what it was sent; counts how many it has in hand."""

    def __init__(self) -> None:
        self.in_hand = self.most = self.answered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.in_hand += 1
        self.most = max(self.most, self.in_hand)
        body = (await receive())["body"]
        await asyncio.sleep(0.01)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})
        self.in_hand -= 1
        self.answered += 1


async def exchange(admission: Admission, pieces: list[bytes], limit: int, send: Send) -> None:
    left = list(pieces)

    async def receive() -> Message:
        if not left:
            return {"type": "http.disconnect"}
        piece = left.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(left)}

    async with admission.body(SCOPE, receive, limit, 5) as body:
        await admission.answer(SCOPE, body, receive, send)


class Client:
    """Takes an answer, each piece only when it is `ready`."""

    def __init__(self) -> None:
        self.ready, self.body, self.events = asyncio.Event(), b"", []

    async def send(self, message: Message) -> None:
        await self.ready.wait()
        self.events.append(message["type"])
        self.body += message.get("body", b"")
        if message["type"] == "http.response.body" and not message["more_body"]:
            self.events.append("end")


@pytest.mark.parametrize("content", [b"", b"small", LARGE])
def test_admission_hands_on_what_came_and_sends_what_was_answered(
    tmp_path: Path, content: bytes
) -> None:
    async def run() -> Client:
        client = Client()
        client.ready.set()
        halves = [content[: len(content) // 2], content[len(content) // 2 :]]
        await exchange(Admission(Echo(), tmp_path), halves, len(LARGE), client.send)
        return client

    client = asyncio.run(run())
    assert client.body == content
    assert (client.events[0], client.events[-1]) == ("http.response.start", "end")
    assert not list(tmp_path.iterdir())


def test_admission_lets_few_in_and_waits_for_no_slow_client(tmp_path: Path) -> None:
    async def run() -> Echo:
        echo = Echo()
        admission = Admission(echo, tmp_path)
        clients = [Client() for _ in range(3 * _AT_A_TIME)]
        exchanges = [
            asyncio.create_task(exchange(admission, [LARGE], len(LARGE), client.send))
            for client in clients
        ]
        # Nobody fetches an answer, and yet all are answered.
        while echo.answered < len(clients):
            await asyncio.sleep(0.01)
        for client in clients:
            client.ready.set()
        await asyncio.gather(*exchanges)
        assert all(client.body == LARGE for client in clients)
        return echo

    assert asyncio.run(asyncio.wait_for(run(), 30)).most == _AT_A_TIME


class Ring:
    """A piece that refers to itself, as Starlette's requests do."""

    def __init__(self, body: bytes) -> None:
        self.body, self.itself = body, self


class Circular(Echo):
    """Keeps each body in a ring; counts the bytes of those that Python has not cleared away."""

    def __init__(self) -> None:
        super().__init__()
        self.rings: weakref.WeakSet[Ring] = weakref.WeakSet()
        self.most_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive())["body"]
        self.rings.add(Ring(body))
        self.most_bytes = max(self.most_bytes, sum(len(ring.body) for ring in self.rings))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def test_admission_clears_away_what_refers_to_itself(tmp_path: Path) -> None:
    async def run() -> int:
        app, client = Circular(), Client()
        client.ready.set()
        admission = Admission(app, tmp_path)
        for _ in range(5 * _SEARCH_EVERY_BYTES // len(LARGE)):
            await exchange(admission, [LARGE], len(LARGE), client.send)
        return app.most_bytes

    gc.disable()  # else Python might look by itself
    try:
        assert asyncio.run(run()) <= _SEARCH_EVERY_BYTES + len(LARGE)
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("pieces", "error"), [([LARGE, b"more"], TooLargeError), ([], ClientGoneError)]
)
def test_admission_refuses_before_anything_is_asked(
    tmp_path: Path, pieces: list[bytes], error: type[Exception]
) -> None:
    async def run() -> int:
        echo, client = Echo(), Client()
        with pytest.raises(error):
            await exchange(Admission(echo, tmp_path), pieces, len(LARGE), client.send)
        return echo.most

    assert asyncio.run(run()) == 0
    assert not list(tmp_path.iterdir())
