"""The gate in front of Flower's real application: who may ask what, and how much."""

import socket
import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

sys.path.insert(0, str(Path(__file__).parent))

from coordinator import (
    PROTOBUF,
    Hospital,
    make_home,
    make_hospital,
    public_client,
    superlink,
)

from medfed.server.federation.control import ControlClient, read_token
from medfed.server.federation.fleet_requests import FLEET_PATHS
from medfed.server.federation.home import FederationHome
from medfed.server.federation.registry import Registry

ALICE, BOB, EVE, NOBODY = map(make_hospital, ("alice", "bob", "eve", "nobody"))
PULL = "/v1/fleet/pull-messages"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FederationHome]:
    """A SuperLink in its own process. alice and bob are approved, eve was revoked."""
    home = make_home(tmp_path_factory.mktemp("gate") / "federation", max_upload_mb=20)
    ALICE.record(home, "approved")
    BOB.record(home, "approved")
    EVE.record(home, "revoked")
    with superlink(home):
        control = ControlClient(home)
        for hospital in (ALICE, BOB, EVE):
            control.register_node(hospital.line, hospital.name)
        control.close()
        yield home


@pytest.fixture
def client(home: FederationHome) -> Iterator[httpx.Client]:
    with public_client(home) as client:
        yield client


@pytest.fixture
def inside(home: FederationHome) -> Iterator[httpx.Client]:
    address = f"http://127.0.0.1:{home.config.control_port}"
    with httpx.Client(base_url=address, trust_env=False) as client:
        yield client


def node_id(home: FederationHome, name: str) -> int:
    control = ControlClient(home)
    [found] = [node.node_id for node in control.nodes() if node.name == name]
    control.close()
    return found


def pull(home: FederationHome, name: str) -> bytes:
    request = PullMessagesRequest()
    request.node.node_id = node_id(home, name)
    return bytes(request.SerializeToString())


def raw_exchange(home: FederationHome, request: bytes) -> bytes:
    """Send bytes that no HTTP client would; return the answer's first line."""
    context = ssl.create_default_context(cafile=str(home.ca))
    with (
        socket.create_connection(("127.0.0.1", home.config.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall(request)
        return connection.recv(65536).split(b"\r\n")[0]


def test_gate_passes_an_approved_site(client: httpx.Client, home: FederationHome) -> None:
    answer = client.post(PULL, content=pull(home, "alice"), headers=ALICE.headers())
    assert answer.status_code == 200
    assert answer.headers["content-type"] == PROTOBUF


def test_gate_tells_that_it_lives(client: httpx.Client) -> None:
    answer = client.get("/health")
    assert (answer.status_code, answer.content) == (200, b"")
    assert "server" not in answer.headers


@pytest.mark.parametrize("hospital", [NOBODY, EVE], ids=["unknown", "revoked"])
def test_gate_refuses_who_is_not_approved(
    client: httpx.Client, home: FederationHome, hospital: Hospital
) -> None:
    answer = client.post(PULL, content=pull(home, "alice"), headers=hospital.headers())
    assert (answer.status_code, answer.content) == (401, b"")


def test_gate_refuses_a_site_from_the_moment_it_is_revoked(
    client: httpx.Client, home: FederationHome
) -> None:
    registry = Registry(home.sites_folder)
    body = pull(home, "bob")
    assert client.post(PULL, content=body, headers=BOB.headers()).status_code == 200
    try:
        registry.put(registry.get("bob").to("revoked"))
        assert client.post(PULL, content=body, headers=BOB.headers()).status_code == 401
    finally:
        registry.put(registry.get("bob").to("approved"))


@pytest.mark.parametrize(
    "change",
    [
        {"flwr-signature": BOB.headers()["flwr-signature"]},
        {"flwr-signature": "AAAA"},
        {"flwr-signature": "not base64!"},
        {"flwr-public-key": "not base64!"},
        {"flwr-timestamp": "2026-01-01T00:00:00"},
        {"flwr-timestamp": ""},
        {"flwr-timestamp": "x" * 5000},
    ],
)
def test_gate_refuses_a_bad_signature(
    client: httpx.Client, home: FederationHome, change: dict[str, str]
) -> None:
    headers = {**ALICE.headers(), **change}
    answer = client.post(PULL, content=pull(home, "alice"), headers=headers)
    assert (answer.status_code, answer.content) == (401, b"")


@pytest.mark.parametrize("name", ["flwr-public-key", "flwr-timestamp", "flwr-signature"])
def test_gate_refuses_headers_that_are_missing_or_there_twice(
    client: httpx.Client, home: FederationHome, name: str
) -> None:
    body, headers = pull(home, "alice"), ALICE.headers()
    twice = [*headers.items(), (name, headers[name])]
    assert client.post(PULL, content=body, headers=twice).status_code == 401
    del headers[name]
    assert client.post(PULL, content=body, headers=headers).status_code == 401


def test_gate_refuses_a_site_that_speaks_for_another(
    client: httpx.Client, home: FederationHome
) -> None:
    answer = client.post(PULL, content=pull(home, "bob"), headers=ALICE.headers())
    assert answer.status_code == 401
    push = PushMessagesRequest()
    push.node.node_id = node_id(home, "alice")
    message = push.messages_list.add()
    message.metadata.src_node_id = node_id(home, "bob")
    message.metadata.reply_to_message_id = "f" * 64
    push.message_object_trees.add()
    body = push.SerializeToString()
    answer = client.post("/v1/fleet/push-messages", content=body, headers=ALICE.headers())
    assert answer.status_code == 400


def test_gate_lists_exactly_flowers_own_fleet_paths() -> None:
    known = {path for _, path in PROTOBUF_REQUEST_TYPES if path.startswith("/v1/fleet/")}
    closed = {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}
    assert known - closed == FLEET_PATHS


OTHERS = [path for _, path in PROTOBUF_REQUEST_TYPES if not path.startswith("/v1/fleet/")]


@pytest.mark.parametrize(
    "path",
    [
        *sorted(OTHERS),
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/",
        "/docs",
        "/openapi.json",
        "/v1/responses",
        "/v1/fleet/",
        "/v1/fleet",
        "/medfed/v1/",
        "/medfed/v2/enroll",
        "/health/",
    ],
)
def test_gate_closes_everything_else(client: httpx.Client, path: str) -> None:
    headers = ALICE.headers()
    for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
        answer = client.request(method, path, headers=headers)
        assert (answer.status_code, answer.content) == (404, b""), method


@pytest.mark.parametrize(
    "target",
    [
        b"//v1/control/list-runs",
        b"/v1/fleet/../control/list-runs",
        b"/v1/fleet/%2e%2e/control/list-runs",
        b"/v1/fleet/%2E%2E/control/list-runs",
        b"/v1/fleet/..%2fcontrol/list-runs",
        b"/v1%2fcontrol%2flist-runs",
        b"/v1/fleet/pull-messages/../../control/list-runs",
        b"/v1/fleet/pull-messages;/v1/control/list-runs",
        b"/v1/fleet/pull%2Dmessages",
        b"/V1/FLEET/PULL-MESSAGES",
        b"/v1/fleet/pull-messages?x=1",
        b"/v1/fleet//pull-messages",
        b"http://127.0.0.1/v1/control/list-runs",
        b"https://127.0.0.1/v1/fleet/pull-messages",
        b"/medfed/v1/../../v1/control/list-runs",
        b"/medfed/v1/enroll%00",
        b"*",
    ],
)
def test_gate_sees_through_tricks_with_paths(home: FederationHome, target: bytes) -> None:
    headers = "".join(f"{name}: {value}\r\n" for name, value in ALICE.headers().items()).encode()
    request = b"POST " + target + b" HTTP/1.1\r\nHost: x\r\ncontent-length: 0\r\n" + headers
    assert raw_exchange(home, request + b"\r\n") == b"HTTP/1.1 404 Not Found"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00 nonsense\r\n\r\n",
        b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 100_000,
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_gate_survives_what_is_no_http(home: FederationHome, request_bytes: bytes) -> None:
    assert raw_exchange(home, request_bytes) == b"HTTP/1.1 400 Bad Request"
    with public_client(home) as client:
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize("path", sorted(FLEET_PATHS))
def test_gate_answers_malformed_protobuf_with_4xx(client: httpx.Client, path: str) -> None:
    for body in (b"\xff" * 64, b"{}", b"\x0a\xff\xff\xff\xff\x0f", b"\x80\x04\x95cposix\nsystem\n"):
        answer = client.post(path, content=body, headers=ALICE.headers())
        assert 400 <= answer.status_code < 500
        assert "Traceback" not in answer.text


def test_gate_answers_another_media_type_with_415(
    client: httpx.Client, home: FederationHome
) -> None:
    headers = {**ALICE.headers(), "content-type": "application/json"}
    assert client.post(PULL, content=b"{}", headers=headers).status_code == 415


@pytest.mark.parametrize(
    "body", [b"", b"\xff\xfe", b"[]", b"{", b"[" * 60_000, b'{"site": "../../etc"}', b"null"]
)
def test_gate_answers_malformed_json_with_4xx(client: httpx.Client, body: bytes) -> None:
    for path in ("/medfed/v1/enroll", "/medfed/v1/state", "/medfed/v1/leave"):
        answer = client.post(path, content=body)
        assert 400 <= answer.status_code < 500
        assert answer.json()["error"] == "malformed"


def test_gate_reads_no_large_body_of_a_stranger(client: httpx.Client) -> None:
    body = b"{" + b" " * (64 * 1024)
    assert client.post("/medfed/v1/enroll", content=body).status_code == 413


def test_gate_refuses_a_stranger_before_the_body(home: FederationHome) -> None:
    # The body never comes: whoever waited for it would not answer.
    head = (
        b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\ncontent-length: 5000000\r\n"
        b"content-type: application/protobuf\r\n\r\n"
    )
    assert raw_exchange(home, head) == b"HTTP/1.1 401 Unauthorized"


def test_gate_bounds_a_request(home: FederationHome) -> None:
    headers = "".join(f"{name}: {value}\r\n" for name, value in ALICE.headers().items()).encode()
    head = b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\n" + headers
    size = 16 * 1024 * 1024
    stated = head + f"content-length: {size + 1}\r\n\r\n".encode()
    assert raw_exchange(home, stated) == b"HTTP/1.1 413 Request Entity Too Large"
    chunk = b"800000\r\n" + b"\0" * 0x800000 + b"\r\n"
    streamed = head + b"transfer-encoding: chunked\r\n\r\n" + chunk + chunk + b"1\r\n"
    assert raw_exchange(home, streamed + b"\0\r\n") == b"HTTP/1.1 413 Request Entity Too Large"


def test_gate_bounds_a_message_of_many_requests(client: httpx.Client, home: FederationHome) -> None:
    path, body = "/v1/fleet/push-object", b"\x0a" + b"\0" * 8_000_000

    def push() -> int:
        return client.post(path, content=body, headers=ALICE.headers()).status_code

    client.post("/v1/fleet/push-messages", content=b"", headers=ALICE.headers())
    assert [push(), push(), push()] == [400, 400, 413]  # 8, 16, 24 of 20 MB
    # Bob's share is his own.
    assert client.post(path, content=body, headers=BOB.headers()).status_code == 400
    # To announce it again is no way to send more; she still hears what is asked next.
    client.post("/v1/fleet/push-messages", content=b"", headers=ALICE.headers())
    assert push() == 413
    assert client.post(PULL, content=b"", headers=ALICE.headers()).status_code != 413


@pytest.mark.slow
def test_gate_closes_a_connection_on_which_no_request_comes(
    home: FederationHome,
) -> None:
    context = ssl.create_default_context(cafile=str(home.ca))
    with (
        socket.create_connection(("127.0.0.1", home.config.port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        began = time.monotonic()
        connection.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\n")
        assert connection.recv(1) == b""
        assert time.monotonic() - began > 5  # not at once either: lines are slow


def test_public_port_speaks_no_old_tls(home: FederationHome) -> None:
    context = ssl.create_default_context(cafile=str(home.ca))
    # This side would speak it.
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED

    def version() -> str | None:
        address = ("127.0.0.1", home.config.port)
        with (
            socket.create_connection(address, timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
        ):
            return connection.version()

    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert version() == "TLSv1.2"
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        version()


def test_public_port_refuses_plain_http(home: FederationHome) -> None:
    with pytest.raises(httpx.HTTPError), httpx.Client(trust_env=False) as client:
        client.get(f"http://127.0.0.1:{home.config.port}/health")


CONTROL = "/v1/control/list-runs"


def test_loopback_face_needs_the_token(inside: httpx.Client, home: FederationHome) -> None:
    token = read_token(home.control_token)
    media = {"content-type": PROTOBUF}
    good = {**media, "authorization": f"Bearer {token}"}
    assert inside.post(CONTROL, headers=good).status_code == 200
    for value in (f"Bearer {token}x", "Bearer", f"bearer {token}", token, f"Basic {token}", ""):
        answer = inside.post(CONTROL, headers={**media, "authorization": value})
        assert (answer.status_code, answer.content) == (401, b"")
    assert inside.post(CONTROL, headers=media).status_code == 401
    twice = [*good.items(), ("authorization", f"Bearer {token}")]
    assert inside.post(CONTROL, headers=twice).status_code == 401


@pytest.mark.parametrize(
    "path", ["/docs", "/openapi.json", "//v1/control/list-runs", "/v1/runtime/../control/list-runs"]
)
def test_loopback_face_closes_other_paths(inside: httpx.Client, path: str) -> None:
    request = inside.build_request("POST", "/x")
    request.url = request.url.copy_with(raw_path=path.encode())
    assert inside.send(request).status_code == 401


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:1", 200),
        ("[::1]:80", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("127.0.0.1@evil.example", 403),
        ("", 403),
    ],
)
def test_loopback_face_answers_its_own_names_only(
    inside: httpx.Client, home: FederationHome, host: str, status: int
) -> None:
    headers = {
        "host": host,
        "content-type": PROTOBUF,
        "authorization": f"Bearer {read_token(home.control_token)}",
    }
    assert inside.post(CONTROL, headers=headers).status_code == status


def test_loopback_face_leaves_the_runtime_to_flowers_own_secret(inside: httpx.Client) -> None:
    answer = inside.post("/v1/runtime/acquire-task", headers={"content-type": PROTOBUF})
    assert answer.status_code == 401
    assert answer.json()["detail"] == "Authentication failed."
