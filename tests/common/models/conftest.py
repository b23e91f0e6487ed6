"""A VGG-16 that fits a test, and a web server on loopback."""

import dataclasses
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@pytest.fixture
def small_vgg(monkeypatch: pytest.MonkeyPatch) -> None:
    """VGG-16 with dense layers of 8 instead of 4096: 15 million parameters instead of 134."""
    monkeypatch.setattr("medfed.common.models.vgg._DENSE", 8)


@dataclasses.dataclass
class Server:
    """What the server offers and does, and the Range headers that it was asked with."""

    url: str = ""
    content: bytes = b""
    status: int | None = None
    break_after: list[int] = dataclasses.field(default_factory=list)  # bytes of each answer
    asked: list[str | None] = dataclasses.field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.asked.append(asked)
            if state.status is not None:
                self.send_error(state.status)
                return
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0  # type: ignore[index]
            total = len(state.content)
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            self.send_header("Content-Length", str(total - start))
            self.end_headers()
            body = state.content[start:]
            if state.break_after:
                body = body[: state.break_after.pop(0)]
                self.close_connection = True
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_address[1]}/files/resnet18-f37072fd.pth"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        http.shutdown()
        thread.join()
