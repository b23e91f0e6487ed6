"""What the gate writes down and counts, in this process, before a stand-in for Flower."""

import asyncio
import json
import sys
from pathlib import Path

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

sys.path.insert(0, str(Path(__file__).parent))

from coordinator import Hospital, make_home, make_hospital

from medfed.server.federation.admission import Admission
from medfed.server.federation.fleet_requests import RefusedError, Uploads
from medfed.server.federation.home import FederationHome
from medfed.server.federation.rejections import LINES_A_MINUTE, MAX_BYTES, Rejections
from medfed.server.federation.superlink import public_gate

ALICE, EVE, NOBODY = map(make_hospital, ("alice", "eve", "nobody"))
PULL = "/v1/fleet/pull-messages"


class Alone:
    """A gate in this process before a stand-in for Flower; what it turned down can be read."""

    def __init__(self, home: FederationHome, app: ASGIApp) -> None:
        self.path = home.rejections_file
        self.gate = public_gate(home, Admission(app, home.superlink_folder))

    def post(self, path: str, content: bytes, headers: dict[str, str]) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.gate)
            async with httpx.AsyncClient(transport=transport, base_url="https://x") as client:
                return await client.post(path, content=content, headers=headers)

        return asyncio.run(ask())

    @property
    def lines(self) -> list[dict[str, str]]:
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        return [json.loads(line) for line in text.splitlines()]


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": (await receive())["body"]})


async def burst(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("of Jane Doe")


def alone(tmp_path: Path, app: ASGIApp = echo) -> Alone:
    home = make_home(tmp_path / "federation", max_upload_mb=1)
    ALICE.record(home, "approved")
    EVE.record(home, "left")
    return Alone(home, app)


def test_gate_hands_the_body_on_unchanged(tmp_path: Path) -> None:
    gate = alone(tmp_path)
    body = bytes(range(256)) * 3000
    assert gate.post("/v1/fleet/push-object", body, ALICE.headers()).content == body
    assert gate.lines == []


@pytest.mark.parametrize(
    ("hospital", "off_s", "site", "reason"),
    [
        (NOBODY, 0, "", "unknown node key"),
        (EVE, 0, "eve", "the site is left"),
        (ALICE, 3600, "alice", "the site's clock differs by +3600 s"),
        (ALICE, -3600, "alice", "the site's clock differs by -3600 s"),
    ],
)
def test_gate_notes_why_it_refused(
    tmp_path: Path, hospital: Hospital, off_s: float, site: str, reason: str
) -> None:
    gate = alone(tmp_path)
    assert gate.post(PULL, b"secret", hospital.headers(off_s=off_s)).status_code == 401
    [line] = gate.lines
    assert {**line, "time": ""} == {"time": "", "site": site, "what": PULL, "reason": reason}


def test_gate_blames_no_site_whose_signature_is_forged(tmp_path: Path) -> None:
    gate = alone(tmp_path)
    forged = {**ALICE.headers(), "flwr-signature": NOBODY.headers()["flwr-signature"]}
    assert gate.post(PULL, b"", forged).status_code == 401
    [line] = gate.lines
    assert line["site"] == ""
    assert line["reason"] == "the signature is not that of site alice"


def test_gate_notes_a_message_that_is_too_large(tmp_path: Path) -> None:
    gate = alone(tmp_path)
    path, body = "/v1/fleet/push-object", b"\0" * 600_000
    assert gate.post(path, body, ALICE.headers()).status_code == 200
    assert gate.post(path, body, ALICE.headers()).status_code == 413
    [line] = gate.lines
    assert (line["site"], line["reason"]) == ("alice", "a message of more than 1 MB")


def test_gate_tells_nothing_of_an_unexpected_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answer = alone(tmp_path, burst).post(PULL, b"", ALICE.headers())
    assert (answer.status_code, answer.content) == (500, b"")
    assert "could not be answered" in caplog.text


def test_gate_turns_down_too_many_requests_at_a_time(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await release.wait()
        await echo(scope, receive, send)

    gate = alone(tmp_path, slow).gate

    async def ask() -> list[int]:
        transport = httpx.ASGITransport(gate)
        async with httpx.AsyncClient(transport=transport, base_url="https://x") as client:
            headers = ALICE.headers()
            asked = [client.post(PULL, content=b"", headers=headers) for _ in range(12)]
            tasks = [asyncio.ensure_future(one) for one in asked]
            await asyncio.wait(tasks, timeout=30, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0.5)
            release.set()
            return [answer.status_code for answer in await asyncio.gather(*tasks)]

    statuses = asyncio.run(ask())
    assert (statuses.count(200), statuses.count(503)) == (8, 4)


def test_rejections_bound_each_senders_lines(tmp_path: Path) -> None:
    time_now = 0.0
    log = Rejections(tmp_path / "rejections.jsonl", clock=lambda: time_now)
    for _ in range(1000):
        log.add("", "/x", "closed")
    log.add("alice", "/y", "signature")
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert len(lines) == LINES_A_MINUTE + 1
    assert lines[-1] == {"time": lines[-1]["time"], "site": "alice", "what": "/y"} | {
        "reason": "signature"
    }
    time_now = 61.0
    log.add("", "/x" * 1000, "closed")
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert lines[-2]["reason"] == f"{1000 - LINES_A_MINUTE} more in the minute before"
    assert len(lines[-1]["what"]) == 200


def test_rejections_bound_the_file(tmp_path: Path) -> None:
    log = Rejections(tmp_path / "rejections.jsonl")
    log.path.write_bytes(b"x" * (MAX_BYTES + 1))
    log.add("", "/x", "closed")
    assert len(log.path.read_text().splitlines()) == 1
    assert (tmp_path / "rejections.jsonl.1").stat().st_size == MAX_BYTES + 1


def test_uploads_count_an_answer_until_the_next_message() -> None:
    uploads = Uploads(limit_bytes=10)
    uploads.count("alice", "/v1/fleet/push-messages", 4)
    uploads.count("alice", "/v1/fleet/push-object", 6)
    # Announcing it again is no way to send more.
    for path in ("/v1/fleet/push-object", "/v1/fleet/push-messages"):
        with pytest.raises(RefusedError, match="more than"):
            uploads.count("alice", path, 1)
    # It can go on asking for messages, for as long as it likes.
    for _ in range(20):
        uploads.count("alice", "/v1/fleet/pull-messages", 1)
    uploads.count("bob", "/v1/fleet/push-messages", 10)
    uploads.allow("alice")
    uploads.count("alice", "/v1/fleet/push-messages", 10)
