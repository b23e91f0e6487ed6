"""Garbage on every port: the processes live, say nothing of themselves, and a run works afterwards.

Public port (TLS), the coordinator's loopback port, the SuperNode's port at a site, and the ports
for Prometheus. All processes are real.
"""

import json
import random
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from attacks import Signed, exchange, public_client, write_study
from deployment import Deployment
from fake_server import runtime_client
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import (
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from garbage import JSON_BODIES, protobufs, raw_requests
from ports import free_port
from wicked import Member, light_federation, members

from medfed.common.tls import trust_only
from medfed.server.federation.fleet_requests import FLEET_PATHS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REAL = "scanner-3"
LIGHT = ("scanner-1", "scanner-2")
DESK = ("/medfed/v1/enroll", "/medfed/v1/state", "/medfed/v1/leave")
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"


class Watched:
    """A federation under attack, and how its processes were before.

    Attributes:
        ports: By name; those that TLS is spoken on are in `secure`.
    """

    def __init__(self, deployed: Deployment, ports: dict[str, int]) -> None:
        self.deployed = deployed
        self.ports = ports
        self.before = self.processes()

    def processes(self) -> dict[str, int]:
        """Return the processes that serve, by name."""
        table = json.loads((self.deployed.home / "supervisor.json").read_text())
        status = self.deployed.site_status(REAL)
        coordinator = {name: child["pid"] for name, child in table["processes"].items()}
        return {**coordinator, **{name: status[name] for name in ("supernode_pid", "worker_pid")}}

    def context(self, port: str) -> ssl.SSLContext | None:
        """How to speak to a port; None in plain text."""
        if port != "public":
            return None
        return trust_only((self.deployed.home / "pki" / "ca.pem").read_bytes())

    def logs(self) -> str:
        """Return what the processes that serve have written."""
        site = self.deployed.sites[REAL] / "state" / "agent" / "logs" / "supernode.log"
        return (self.deployed.home / "logs" / "superlink.log").read_text() + site.read_text()

    def check(self) -> None:
        """All processes are the same, and none has stumbled."""
        assert self.processes() == self.before
        assert "Traceback" not in self.logs()


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("ports")
    metrics, site_metrics = free_port(), free_port()
    with light_federation(folder, *LIGHT, metrics_port=metrics) as deployed:
        study = write_study(folder, "after")
        deployed.medfed("data", "trial", study, "--out", folder / "hospitals")
        file = folder / "hospitals" / REAL / "site.toml"
        file.write_text(f"{file.read_text()}\n[connection]\nmetrics_port = {site_metrics}\n")
        deployed.enrol({REAL: file.parent})
        deployed.start_site(REAL)
        deployed.wait_for("the site", lambda: deployed.is_ready(REAL), 240)
        ports = {
            "public": deployed.port,
            "control": deployed.control_port,
            "supernode": supernode_port(deployed),
            "metrics": metrics,
            "site's metrics": site_metrics,
        }
        yield Watched(deployed, ports)


def supernode_port(deployed: Deployment) -> int:
    pid = deployed.site_status(REAL)["supernode_pid"]
    command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return int(command[command.index("--port") + 1])


def signed(attacked: Watched) -> Signed:
    key = attacked.deployed.sites[LIGHT[0]] / "keys" / "node.key"
    return Signed(attacked.deployed, key)


def node_id(attacked: Watched) -> int:
    nodes = json.loads((attacked.deployed.home / "superlink" / "nodes.json").read_text())["nodes"]
    return int(nodes[LIGHT[0]]["node_id"])


def check_answer(answer: httpx.Response, *, most: int = 499) -> None:
    """No stumbling, and nothing of the inside."""
    assert answer.status_code <= most, (answer.request.url, answer.status_code, answer.text[:500])
    assert "Traceback" not in answer.text
    assert "site-packages" not in answer.text


# Bodies


@pytest.mark.parametrize("is_member", [False, True], ids=["stranger", "member"])
def test_fleet_paths_take_any_bytes(is_member: bool, attacked: Watched) -> None:
    with signed(attacked) if is_member else Signed(attacked.deployed) as sender:
        for path in sorted(FLEET_PATHS):
            for body in protobufs(node_id(attacked)):
                answer = sender.post(path, body)
                check_answer(answer)
                if not is_member:
                    assert (answer.status_code, answer.content) == (401, b"")
    attacked.check()


def test_desk_takes_any_bytes(attacked: Watched) -> None:
    draw = random.Random(6)
    bodies = JSON_BODIES + [draw.randbytes(2**size) for size in range(17)]
    with public_client(attacked.deployed) as client:
        for path in DESK:
            for body in bodies:
                answer = client.post(path, content=body)
                assert answer.status_code in (400, 413), (path, body[:40], answer.text)
                check_answer(answer)
            assert client.get(path).status_code == 404
    attacked.check()


def test_loopback_ports_take_any_bytes(attacked: Watched) -> None:
    token = (attacked.deployed.home / "control.token").read_text().strip()
    headers = {"authorization": f"Bearer {token}", "content-type": "application/protobuf"}
    some = protobufs(node_id(attacked))[::6] + JSON_BODIES[::4]
    paths = [path for method, path in PROTOBUF_REQUEST_TYPES if method == "POST"]
    for port in ("control", "supernode"):
        address = f"http://127.0.0.1:{attacked.ports[port]}"
        with httpx.Client(base_url=address, headers=headers, timeout=60) as client:
            for path in paths:
                if path.startswith(("/v1/fleet", "/v1/control/start-run")):
                    continue
                for body in some:
                    check_answer(client.post(path, content=body), most=501)
    attacked.check()


# What is closed


def closed_paths() -> list[str]:
    paths = [path for _, path in PROTOBUF_REQUEST_TYPES if not path.startswith("/v1/fleet/")]
    paths += ["/v1/fleet/register-node", "/v1/fleet/unregister-node", "/v1/fleet/x", "/"]
    paths += ["/docs", "/docs/oauth2-redirect", "/openapi.json", "/redoc", "/metrics", "/v1"]
    return paths


CROOKED = (
    "//v1/control/list-runs",
    "/v1/fleet/../control/list-runs",
    "/v1/fleet/%2e%2e/control/list-runs",
    "/%761/control/list-runs",
    "/v1/control/list-runs/",
    "/V1/CONTROL/LIST-RUNS",
    "/v1/fleet/pull-messages/../../control/list-runs",
    "/health/../docs",
    "/health?x=/docs",
    "/medfed/v1/../../docs",
    "/medfed/v1/enroll%00",
    "/docs#/health",
    "http://127.0.0.1/v1/control/list-runs",
    "/v1/control/list-runs;/health",
    "\\v1\\control\\list-runs",
)


def test_public_port_serves_sites_alone(attacked: Watched) -> None:
    token = (attacked.deployed.home / "control.token").read_text().strip()
    more = {"authorization": f"Bearer {token}"}
    with public_client(attacked.deployed) as client, signed(attacked) as member:
        for path in closed_paths():
            for answer in (
                client.get(path),
                client.post(path, headers={**member.headers(), **more}),
            ):
                assert (answer.status_code, answer.content) == (404, b""), path
    context = attacked.context("public")
    for path in CROOKED:
        for method in ("GET", "POST"):
            request = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n"
            said = exchange(attacked.ports["public"], f"{request}\r\n".encode(), context)
            first = said.split(b"\r\n")[0]
            assert first.split(b" ")[1] in (b"400", b"404", b"401"), (method, path, first)


def test_control_port_asks_for_the_token(attacked: Watched) -> None:
    token = (attacked.deployed.home / "control.token").read_text().strip()
    address = f"http://127.0.0.1:{attacked.ports['control']}"
    wrong = ["", "Bearer", f"Bearer {token}x", f"Bearer {token[:-1]}", f"Basic {token}"]
    paths = [path for path in closed_paths() if not path.startswith("/v1/runtime/")]
    with httpx.Client(base_url=address, timeout=30) as client:
        for path in paths:
            assert client.post(path).status_code == 401, path
        for header in wrong:
            answer = client.post("/v1/control/list-runs", headers={"authorization": header})
            assert (answer.status_code, answer.content) == (401, b""), header
        # A web page in a browser on this machine comes with its own name for it.
        good = {"authorization": f"Bearer {token}", "content-type": "application/protobuf"}
        assert client.post("/v1/control/list-runs", headers=good).status_code == 200
        evil = client.post("/v1/control/list-runs", headers={**good, "host": "evil.example"})
        assert evil.status_code == 403


@pytest.mark.parametrize("port", ["control", "supernode"])
def test_nobody_takes_a_task_without_the_secret(port: str, attacked: Watched) -> None:
    address = f"127.0.0.1:{attacked.ports[port]}"
    version = RuntimeVersionHttpInterceptor(component_name="SuperExec")
    for guess in (None, b"", b"secret", b"0" * 64):
        ways: list[Any] = [version]
        if guess is not None:
            ways.append(
                SuperExecAuthHttpInterceptor(master_secret=guess, protected_methods={_ACQUIRE})
            )
        client = runtime_client(address, *ways)
        for kind in TaskType:
            with pytest.raises(httpx.HTTPStatusError) as refused:
                client.AcquireTask(AcquireTaskRequest(supported_task_types=[kind]))
            assert refused.value.response.status_code in (401, 403)
        client.close()
    with httpx.Client(base_url=f"http://{address}", timeout=30) as plain:
        for method, path in PROTOBUF_REQUEST_TYPES:
            if path.startswith("/v1/runtime/"):
                answer = plain.request(
                    method, path, headers={"content-type": "application/protobuf"}
                )
                assert answer.status_code in (401, 403, 404, 426), (path, answer.status_code)


# Below HTTP


@pytest.mark.parametrize("port", ["public", "control", "supernode", "metrics", "site's metrics"])
def test_port_takes_what_is_no_http(port: str, attacked: Watched) -> None:
    context = attacked.context(port)
    for data in raw_requests():
        said = exchange(attacked.ports[port], data, context)
        assert b"Traceback" not in said
        assert b"site-packages" not in said
        if said.startswith(b"HTTP/1."):
            status = int(said.split(b" ")[1])
            is_served = status < 400 and status != 100
            assert not is_served or data.startswith(b"GET /health"), (data[:60], said[:100])
            assert status < 500 or port.endswith("metrics"), (data[:60], said[:100])
        else:
            # Python's own server answers the HTTP of 1991 in its way.
            assert not said or (port.endswith("metrics") and b"<!DOCTYPE" in said), data[:60]
    if port.endswith("metrics"):
        address = f"http://127.0.0.1:{attacked.ports[port]}"
        assert "medfed" in httpx.get(f"{address}/metrics", timeout=30).text
        assert httpx.get(f"{address}/../../etc/passwd", timeout=30).status_code == 404
    attacked.check()


def test_public_port_takes_what_is_no_tls(attacked: Watched) -> None:
    for data in raw_requests():
        said = exchange(attacked.ports["public"], data)
        # A TLS alert at most: nothing is said in plain text.
        assert not said.startswith(b"HTTP"), data[:60]
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{attacked.ports['public']}/health")
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.minimum_version = old.maximum_version = version
        with (
            socket.create_connection(("127.0.0.1", attacked.ports["public"]), 10) as plain,
            pytest.raises((ssl.SSLError, ConnectionError)),
        ):
            old.wrap_socket(plain)
    attacked.check()


def test_slow_connections_hold_nobody_up_and_are_ended(attacked: Watched) -> None:
    context = attacked.context("public")
    assert context is not None
    slow = []
    for number in range(120):
        plain = socket.create_connection(("127.0.0.1", attacked.ports["public"]), 10)
        if number % 2:
            plain = context.wrap_socket(plain, server_hostname="127.0.0.1")
            plain.sendall(b"POST /medfed/v1/enroll HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")
        slow.append(plain)
    try:
        with public_client(attacked.deployed) as client:
            assert client.get("/health").status_code == 200
        for connection in slow:
            connection.settimeout(90)
            assert connection.recv(1000)[:9] in (b"", b"HTTP/1.1 ")
    finally:
        for connection in slow:
            connection.close()
    attacked.check()


def test_run_works_after_all_of_this(attacked: Watched) -> None:
    deployed = attacked.deployed
    with members(*(Member(deployed, name) for name in LIGHT)):
        arm = deployed.run(deployed.folder / "after.toml", "after")
    [record] = [json.loads(line) for line in (arm / "rounds.jsonl").read_text().splitlines()]
    assert {name: site["status"] for name, site in record["sites"].items()} == {
        name: "ok" for name in (*LIGHT, REAL)
    }
    attacked.check()
