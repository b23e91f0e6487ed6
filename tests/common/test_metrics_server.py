"""Prometheus metrics: the text that Prometheus reads, served on this machine alone."""

import math
from collections.abc import Iterator

import httpx
import pytest

from medfed.common.metrics_server import Family, exposition, serve_metrics


@pytest.fixture
def text() -> list[str]:
    """What the server tells: may be changed."""
    return ["medfed_up 1.0\n"]


@pytest.fixture
def url(text: list[str]) -> Iterator[str]:
    server = serve_metrics(0, lambda: text[0])
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_exposition_follows_the_format() -> None:
    families = [
        Family("medfed_up", "gauge", "Whether\nit runs.", [({}, 1)]),
        Family(
            "medfed_refusals_total",
            "counter",
            "By reason.",
            [({"reason": 'a"b\\c\nd', "x": "y"}, 2.5), ({"reason": "e"}, math.inf)],
        ),
        Family("medfed_nothing", "gauge", "No value.", []),
    ]
    assert exposition(families) == (
        "# HELP medfed_up Whether\\nit runs.\n"
        "# TYPE medfed_up gauge\n"
        "medfed_up 1.0\n"
        "# HELP medfed_refusals_total By reason.\n"
        "# TYPE medfed_refusals_total counter\n"
        'medfed_refusals_total{reason="a\\"b\\\\c\\nd",x="y"} 2.5\n'
        'medfed_refusals_total{reason="e"} Inf\n'
    )


def test_server_answers_with_what_is_true_now(url: str, text: list[str]) -> None:
    answer = httpx.get(f"{url}/metrics", trust_env=False)
    assert answer.text == "medfed_up 1.0\n"
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    text[0] = "medfed_up 0.0\n"
    assert httpx.get(f"{url}/metrics?x=1", trust_env=False).text == "medfed_up 0.0\n"


@pytest.mark.parametrize("path", ["/", "/metrics/..", "/../../etc/passwd", "/metric"])
def test_server_has_nothing_else(url: str, path: str) -> None:
    assert httpx.get(url + path, trust_env=False).status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
def test_server_only_tells(url: str, method: str) -> None:
    answer = httpx.request(method, f"{url}/metrics", trust_env=False)
    assert answer.status_code == 501
    assert "medfed_up" not in answer.text


def test_server_survives_what_cannot_be_told(
    text: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> str:
        if not text[0]:
            raise RuntimeError("the disk is on fire")
        return text[0]

    text[0] = ""
    server = serve_metrics(0, fail)
    url = f"http://127.0.0.1:{server.server_port}/metrics"
    try:
        answer = httpx.get(url, trust_env=False)
        assert answer.status_code == 500
        assert "fire" not in answer.text
        assert "the disk is on fire" in caplog.text
        text[0] = "medfed_up 1.0\n"
        assert httpx.get(url, trust_env=False).status_code == 200
    finally:
        server.shutdown()
        server.server_close()


def test_server_is_on_this_machine_alone(url: str) -> None:
    assert url.startswith("http://127.0.0.1:")
    server = serve_metrics(0, str)
    assert server.server_address[0] == "127.0.0.1"
    taken = int(server.server_port)
    with pytest.raises(OSError, match="in use"):
        serve_metrics(taken, str)
    server.shutdown()
    server.server_close()
