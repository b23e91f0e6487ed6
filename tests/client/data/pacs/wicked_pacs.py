"""Servers of bytes, and of DICOMweb and DIMSE answers that no PACS should give."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def serving_bytes(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Yield the port of a server that does `answer` with every connection."""
    ended = threading.Event()
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.1)
    opened: list[socket.socket] = []

    def serve() -> None:
        while not ended.is_set():
            try:
                one, _ = server.accept()
            except TimeoutError:
                continue
            opened.append(one)
            one.settimeout(5)
            threading.Thread(target=quietly, args=(one,), daemon=True).start()

    def quietly(one: socket.socket) -> None:
        try:
            answer(one)
        except OSError:
            pass
        finally:
            one.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        ended.set()
        thread.join()
        for one in opened:
            one.close()
        server.close()


@contextmanager
def serving_web(answers: Callable[[str], tuple[int, str, bytes]]) -> Iterator[int]:
    """Yield the port of a web server; `answers` gives status, content type and body of a path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, kind, body = answers(self.path)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def element(tag: str, vr: str, *values: object) -> dict[str, Any]:
    return {tag: {"vr": vr, "Value": list(values)}}


def study_json(uid: str) -> dict[str, Any]:
    return element("0020000D", "UI", uid) | element("00080020", "DA", "20200101")


def series_json(uid: str, number: object = 1) -> dict[str, Any]:
    return (
        element("0020000E", "UI", uid)
        | element("00080060", "CS", "CT")
        | element("00201209", "IS", number)
    )


def instance_json(uid: str) -> dict[str, Any]:
    return element("00080018", "UI", uid) | element("00080016", "UI", "1.2.840.10008.5.1.4.1.1.2")
