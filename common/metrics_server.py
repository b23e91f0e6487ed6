"""Serves Prometheus metrics on this machine alone: http://127.0.0.1:PORT/metrics."""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, NamedTuple

log = logging.getLogger(__name__)

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PATIENCE_S = 5.0


class Family(NamedTuple):
    """All values of one metric.

    Attributes:
        name: As Prometheus knows it, with its unit at the end.
        kind: gauge goes up and down, counter only up.
        meaning: One line.
        values: Each with its labels.
    """

    name: str
    kind: Literal["gauge", "counter"]
    meaning: str
    values: Iterable[tuple[Mapping[str, str], float]]


def exposition(families: Iterable[Family]) -> str:
    """Return metrics in Prometheus' text format, families without a value left out.

    Reference: https://prometheus.io/docs/instrumenting/exposition_formats/
    """
    lines: list[str] = []
    for family in families:
        values = list(family.values)
        if not values:
            continue
        lines.append(f"# HELP {family.name} {_escaped(family.meaning)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        lines += [f"{family.name}{_labels(labels)} {_number(value)}" for labels, value in values]
    return "".join(f"{line}\n" for line in lines)


def serve_metrics(port: int, text: Callable[[], str]) -> ThreadingHTTPServer:
    """Answer GET /metrics with `text()` on 127.0.0.1, on a daemon thread, until the process ends.

    Args:
        port: 0 for any that is free; the returned server's `server_port` names it.
        text: Called for each request, on another thread. What it raises is logged and gives 500.

    Raises:
        OSError: The port is taken or not allowed.
    """
    server = _Server(("127.0.0.1", port), _handler(text))
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        # A scraper that went away is no news, and the standard library would print it.
        log.debug("A request for metrics broke off.", exc_info=True)


def _handler(text: Callable[[], str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version = "medfed"
        sys_version = ""
        timeout = _PATIENCE_S

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            try:
                content = text().encode()
            except Exception as error:  # whatever it is, the next scrape may work
                log.error("Metrics failed: %s", error, exc_info=error)
                self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", _CONTENT_TYPE)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """A scrape every few seconds is not worth a line."""

    return Handler


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{inside}}}"


def _number(value: float) -> str:
    return repr(float(value)).replace("inf", "Inf").replace("nan", "NaN")


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
