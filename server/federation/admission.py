"""Lets a few large requests into Flower at a time, from disk and back to disk.

Flower holds a piece of a message, 5 MB, several times over while it stores it or hands it out, and
as many pieces at a time as there are sites that send and fetch. Sites on slow lines would hold them
for minutes. Here a body waits on disk until it is whole and its turn comes, and what Flower answers
lies on disk until the site has fetched it: the server's memory does not grow with its sites.

Nor does a piece end with its request: what Starlette makes of one refers to itself in circles, so
it stays until Python looks for such garbage, which a program of many objects does rarely. At 16
sites that came to 400 MB. So it is looked for here, each time a few pieces have passed.
"""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import SpooledTemporaryFile

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medfed.server.federation.http import read_body_into, replay

# Polls and acknowledgements are far smaller and never touch the disk.
_IN_MEMORY_BYTES = 256 * 1024
_PIECE_BYTES = 256 * 1024
# More than two cores can work at, few enough that a hundred sites need no more memory than four.
_AT_A_TIME = 4
# Of bodies and answers between two searches for garbage: three pieces or so. A search takes 3 ms
# once `settle` was called, 140 ms else.
_SEARCH_EVERY_BYTES = 16 * 1024 * 1024

Spool = SpooledTemporaryFile[bytes]


@dataclass
class Admission:
    """A queue before an ASGI application.

    Attributes:
        app: What answers.
        folder: Where bodies wait, in files without a name.
    """

    app: ASGIApp
    folder: Path
    _turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_A_TIME))
    _passed: int = 0

    @asynccontextmanager
    async def body(
        self, scope: Scope, receive: Receive, limit: int, patience_s: float
    ) -> AsyncIterator[Spool]:
        """Yield the request's body; see `read_body` for the errors."""
        with self._spool() as spool:
            await read_body_into(spool, scope, receive, limit, patience_s)
            yield spool

    async def answer(self, scope: Scope, body: Spool, receive: Receive, send: Send) -> None:
        """Have the request answered when its turn comes, then send the answer at the site's pace.

        Args:
            scope: ASGI's.
            body: The request's.
            receive: ASGI's.
            send: ASGI's.
        """
        begun: list[Message] = []
        with self._spool() as answered:

            async def keep(message: Message) -> None:
                if message["type"] == "http.response.body":
                    answered.write(message.get("body", b""))
                else:
                    begun.append(message)

            async with self._turns:
                body.seek(0)
                try:
                    await self.app(scope, replay(body.read(), receive), keep)
                finally:
                    self._clear_away(body.tell() + answered.tell())
            for message in begun:
                await send(message)
            await _send_body(answered, send)

    def _clear_away(self, num_bytes: int) -> None:
        """Search for garbage once enough bytes have passed since the last time."""
        self._passed += num_bytes
        if self._passed >= _SEARCH_EVERY_BYTES:
            self._passed = 0
            gc.collect()

    def _spool(self) -> Spool:
        return SpooledTemporaryFile(_IN_MEMORY_BYTES, dir=str(self.folder))


def settle() -> None:
    """Take what there is for good out of the searches for garbage. Call once all is imported."""
    gc.collect()
    gc.freeze()


async def _send_body(spool: Spool, send: Send) -> None:
    size = spool.tell()
    spool.seek(0)
    while True:
        piece = spool.read(_PIECE_BYTES)
        more = spool.tell() < size
        await send({"type": "http.response.body", "body": piece, "more_body": more})
        if not more:
            return
