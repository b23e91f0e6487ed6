"""`enroll` against a real TLS server on loopback with the coordinator's real enrolment desk."""

import asyncio
import contextlib
import json
import re
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
import uvicorn
from ports import free_port
from typer.testing import CliRunner

from medfed.cli import site_enroll
from medfed.client.agent import asking, enrol
from medfed.client.agent.enrol import Enrolment, ask_state, enroll, read_enrolment, tell_leaving
from medfed.client.agent.site_file import add_address
from medfed.client.audit_log import AuditLog
from medfed.client.site import load_site
from medfed.common.bundle import bundle_digest
from medfed.common.enrolment import write_moment
from medfed.common.errors import FederationError, LedgerError, SiteConfigError
from medfed.common.invite import Invite
from medfed.server.federation import pki
from medfed.server.federation.enrolment import EnrolmentDesk
from medfed.server.federation.home import FederationConfig, FederationHome, init_home
from medfed.server.federation.membership import approve_site, invite_site, revoke_site
from medfed.server.federation.pki import issue, own_certificate, read_authority
from medfed.server.federation.registry import Registry

SITE_TOML = """\
# Our clinic.
name = "north"  # as agreed by telephone

[data]
stores = ["store"]  # prepared in May
"""

Reply = tuple[int, bytes]


@dataclass
class Coordinator:
    """A coordinator's home, and its desk behind TLS.

    Attributes:
        heard: (path, body) of every request that arrived.
        instead: Answers in the desk's place; raises to cut the connection.
    """

    home: FederationHome
    heard: list[tuple[str, bytes]] = field(default_factory=list)
    instead: Callable[[str, bytes], Reply] | None = None

    def __post_init__(self) -> None:
        self.desk = EnrolmentDesk(self.home)

    @property
    def registry(self) -> Registry:
        return Registry(self.home.sites_folder)

    @property
    def port(self) -> int:
        return self.home.config.port

    def invite(self, site: str = "north") -> Invite:
        return invite_site(self.home, site, 14)

    def approve(self, site: str = "north") -> None:
        approve_site(self.registry, site, self.registry.get(site).fingerprint)

    def answer(self, path: str, body: bytes) -> Reply:
        self.heard.append((path, body))
        if self.instead is not None:
            return self.instead(path, body)
        status, table = self.desk.handle(path, body)
        return status, json.dumps(table).encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        status, answer = await asyncio.to_thread(self.answer, scope["path"], body)
        headers = [(b"location", b"/elsewhere")] if status == 307 else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


@contextlib.contextmanager
def serving(app: Any, home: FederationHome, *, tls: bool = True) -> Iterator[None]:
    certificate = {"ssl_certfile": home.certificate, "ssl_keyfile": home.key} if tls else {}
    config = uvicorn.Config(
        app, host="127.0.0.1", port=home.config.port, lifespan="off", http="h11", ws="none",
        log_config=None, timeout_graceful_shutdown=1, **certificate,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        thread.join()


def make_home(folder: Path) -> FederationHome:
    port = free_port()
    config = FederationConfig(
        name="demo", address=f"127.0.0.1:{port}", port=port, control_port=1 + port % 60000
    )
    return init_home(folder, config)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    coordinator = Coordinator(make_home(tmp_path / "federation"))
    with serving(coordinator, coordinator.home):
        yield coordinator


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return make_site(tmp_path / "north")


def make_site(folder: Path, text: str = SITE_TOML) -> Path:
    folder.mkdir()
    (folder / "site.toml").write_text(text)
    return folder / "site.toml"


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# It works


def test_site_enrols_is_approved_and_knows_it(coordinator: Coordinator, site: Path) -> None:
    invite = coordinator.invite()
    joined = enroll(site, invite)
    record = coordinator.registry.get("north")
    assert joined.state == record.state == "enrolled"
    assert joined.fingerprint == record.fingerprint
    assert joined.bundle == bundle_digest()
    assert joined.coordinator == coordinator.home.coordinator_key().public_key
    assert read_enrolment(load_site(site)) == joined
    coordinator.approve()
    assert enroll(site, invite).state == "approved"
    assert enroll(site, None).state == "approved"
    assert enrolment_of(site).state == "approved"


def enrolment_of(site: Path) -> Enrolment:
    known = read_enrolment(load_site(site))
    assert known is not None
    return known


def test_site_holds_what_it_needs_to_connect(coordinator: Coordinator, site: Path) -> None:
    invite = coordinator.invite()
    enroll(site, invite)
    config = load_site(site)
    assert config.connection.address == coordinator.home.config.address
    assert config.path(config.connection.ca).read_bytes() == coordinator.home.ca.read_bytes()
    pinned = (config.state_folder / "coordinator.pub").read_text().strip()
    assert pinned == coordinator.home.coordinator_key().public_key
    text = site.read_text()
    assert text.startswith(SITE_TOML)
    [entry] = [e for e in AuditLog(config.state_folder).entries() if e.event == "enrolled"]
    assert entry.facts["fingerprint"] == enrolment_of(site).fingerprint
    assert entry.facts["address"] == coordinator.home.config.address


def test_nothing_private_leaves_the_site(coordinator: Coordinator, site: Path) -> None:
    invite = coordinator.invite()
    enroll(site, invite)
    enroll(site, invite)
    private = {n: c for n, c in files(site.parent).items() if b"PRIVATE KEY" in c}
    assert sorted(private) == ["keys/node.key", "state/ledger.key"]
    there = [*files(coordinator.home.folder).values(), *(body for _, body in coordinator.heard)]
    for name, content in private.items():
        assert stat.S_IMODE((site.parent / name).stat().st_mode) == 0o600
        for line in content.splitlines()[1:-1]:
            # The first lines of OpenSSH's format hold the public key: its secret comes later.
            if name == "state/ledger.key" or line not in content.splitlines()[:6]:
                assert not any(line in sent for sent in there)
    assert not any(b"PRIVATE" in body for _, body in coordinator.heard)


def test_token_is_sent_once_and_kept_nowhere(coordinator: Coordinator, site: Path) -> None:
    invite = coordinator.invite()
    for _ in range(3):
        enroll(site, invite)
    assert [path for path, _ in coordinator.heard] == [
        "/medfed/v1/enroll", "/medfed/v1/state", "/medfed/v1/state",
    ]  # fmt: skip
    token = invite.token.encode()
    assert [token in body for _, body in coordinator.heard] == [True, False, False]
    everywhere = {**files(site.parent), **files(coordinator.home.folder)}
    assert not [name for name, content in everywhere.items() if token in content]


def test_keys_that_site_init_made_are_used(coordinator: Coordinator, site: Path) -> None:
    from medfed.client.agent.keys import load_or_make_ledger_key, load_or_make_node_key

    load_or_make_node_key(site.parent / "keys" / "node.key")
    load_or_make_ledger_key(site.parent / "state")
    before = files(site.parent)
    enroll(site, coordinator.invite())
    after = files(site.parent)
    assert {name for name in before if after[name] != before[name]} == {"site.toml"}


def test_files_lie_where_site_toml_says(coordinator: Coordinator, tmp_path: Path) -> None:
    connection = '\n[connection]\nca = "trust/ca.pem"\nkey = "secret/n.key"\n'
    site = make_site(tmp_path / "site", SITE_TOML + connection)
    enroll(site, coordinator.invite())
    assert (site.parent / "trust" / "ca.pem").exists()
    assert (site.parent / "secret" / "n.key").exists()
    assert (site.parent / "secret" / "enrolment.json").exists()
    assert not (site.parent / "keys").exists()
    assert enroll(site, None).state == "enrolled"


def test_address_in_site_toml_goes_before_the_invites(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    text = f'{SITE_TOML}\n[connection]\naddress = "localhost:{coordinator.port}"\n'
    site = make_site(tmp_path / "site", text)
    invite = coordinator.invite().model_copy(update={"address": "nowhere.invalid:1"})
    assert enroll(site, invite).address == f"localhost:{coordinator.port}"
    assert site.read_text() == text


def test_site_leaves(coordinator: Coordinator, site: Path) -> None:
    enroll(site, coordinator.invite())
    coordinator.approve()
    assert tell_leaving(load_site(site)).state == "left"
    assert coordinator.registry.get("north").state == "left"
    assert enrolment_of(site).state == "left"


# It is interrupted, or done again


def test_site_that_got_no_answer_goes_on_with_the_same_keys(
    coordinator: Coordinator, site: Path
) -> None:
    invite = coordinator.invite()

    def lose_answer(path: str, body: bytes) -> Reply:
        coordinator.desk.handle(path, body)
        raise RuntimeError

    coordinator.instead = lose_answer
    with pytest.raises(FederationError):
        enroll(site, invite)
    assert coordinator.registry.get("north").state == "enrolled"
    assert enrolment_of(site).state == "asked"
    with pytest.raises(FederationError, match="has not enrolled yet"):
        ask_state(load_site(site))
    coordinator.instead = None
    assert enroll(site, invite).state == "enrolled"
    assert coordinator.registry.get("north").note == ""


@pytest.mark.parametrize("end", ["revoke", "leave", "leave and remove the key"])
def test_site_comes_back_with_a_new_invite_and_a_new_key(
    coordinator: Coordinator, site: Path, end: str
) -> None:
    first = coordinator.invite()
    enroll(site, first)
    coordinator.approve()
    key = site.parent / "keys" / "node.key"
    before = key.read_bytes()
    if end == "revoke":
        revoke_site(coordinator.registry, "north")
    else:
        tell_leaving(load_site(site))
    if end == "leave and remove the key":
        key.unlink()
    else:
        assert enroll(site, first).state == ("revoked" if end == "revoke" else "left")
        assert key.read_bytes() == before
    second = coordinator.invite()
    assert enroll(site, second).state == "enrolled"
    assert key.read_bytes() != before
    coordinator.approve()
    assert enroll(site, second).state == "approved"


def test_member_needs_no_second_invite(coordinator: Coordinator, site: Path) -> None:
    invite = coordinator.invite()
    enroll(site, invite)
    coordinator.approve()
    before = (site.parent / "keys" / "node.key").read_bytes()
    stray = invite.model_copy(update={"token": "B" * 43})
    assert enroll(site, stray).state == "approved"
    assert (site.parent / "keys" / "node.key").read_bytes() == before


def test_key_is_not_given_up_while_the_coordinator_cannot_be_asked(
    coordinator: Coordinator, site: Path
) -> None:
    invite = coordinator.invite()
    enroll(site, invite)
    before = files(site.parent)
    coordinator.instead = lambda path, body: (503, b"")
    with pytest.raises(FederationError, match="cannot answer now"):
        enroll(site, invite.model_copy(update={"token": "B" * 43}))
    assert files(site.parent) == before


# It is refused, before anything is sent


def refused_unsent(coordinator: Coordinator, site: Path, invite: Invite, match: str) -> None:
    kind = LedgerError if "bound" in match else FederationError
    with pytest.raises(kind, match=match):
        enroll(site, invite)
    assert coordinator.heard == []
    assert coordinator.registry.get("north").state == "invited"


def test_coordinator_with_another_authority_gets_nothing(
    coordinator: Coordinator, site: Path
) -> None:
    other = own_certificate("demo", ["127.0.0.1"]).ca.decode()
    invite = coordinator.invite().model_copy(update={"ca": other})
    refused_unsent(coordinator, site, invite, "another authority signed it")
    assert not (site.parent / "keys" / "ca.pem").exists()


def test_coordinator_under_another_name_gets_nothing(coordinator: Coordinator, site: Path) -> None:
    # All of 127.0.0.0/8 is this machine; the certificate is for 127.0.0.1.
    with socket.socket() as probe:
        probe.bind(("127.0.0.2", coordinator.port))
        probe.listen()
        other = f"127.0.0.2:{coordinator.port}"
        invite = coordinator.invite().model_copy(update={"address": other})
        relay = threading.Thread(target=_relay, args=(probe, coordinator.port))
        relay.start()
        refused_unsent(coordinator, site, invite, r"not made out for 127\.0\.0\.2")
        relay.join()


def _relay(listener: socket.socket, port: int) -> None:
    """Pass one connection on to the coordinator, byte by byte."""
    client, _ = listener.accept()
    with client, socket.create_connection(("127.0.0.1", port)) as server:

        def pump(source: socket.socket, target: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while content := source.recv(4096):
                    target.sendall(content)
                target.shutdown(socket.SHUT_WR)

        back = threading.Thread(target=pump, args=(server, client))
        back.start()
        pump(client, server)
        back.join()


@pytest.mark.parametrize(
    ("days", "backdated", "message"),
    [(0.01, timedelta(hours=1), "it has expired"), (1, timedelta(hours=-1), "not valid yet")],
)
def test_coordinator_whose_certificate_is_out_of_date_gets_nothing(
    tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch, days: float,
    backdated: timedelta, message: str,
) -> None:  # fmt: skip
    coordinator = Coordinator(make_home(tmp_path / "federation"))
    monkeypatch.setattr(pki, "SERVER_DAYS", days)
    monkeypatch.setattr(pki, "_BACKDATED", backdated)
    home = coordinator.home
    made = issue(read_authority(home.ca, home.ca_key), ["127.0.0.1"])
    home.certificate.write_bytes(made.chain)
    home.key.write_bytes(made.key)
    with serving(coordinator, home):
        refused_unsent(coordinator, site, coordinator.invite(), message)


def test_expired_invite_is_not_sent(coordinator: Coordinator, site: Path) -> None:
    ended = write_moment(datetime.now(UTC) - timedelta(minutes=1))
    invite = coordinator.invite().model_copy(update={"expires": ended})
    refused_unsent(coordinator, site, invite, "The invite expired")


def test_invite_for_another_site_is_not_sent(coordinator: Coordinator, site: Path) -> None:
    coordinator.invite()
    south = coordinator.invite("south")
    refused_unsent(coordinator, site, south, 'set name = "south"')
    assert not (site.parent / "keys").exists()


def test_ledger_bound_to_another_coordinator_is_not_taken_over(
    coordinator: Coordinator, site: Path
) -> None:
    (site.parent / "state").mkdir()
    (site.parent / "state" / "coordinator.pub").write_text("a" * 64 + "\n")
    refused_unsent(coordinator, site, coordinator.invite(), "bound to the coordinator's key aaaa")


def test_site_without_site_toml_is_told_so(coordinator: Coordinator, tmp_path: Path) -> None:
    with pytest.raises(SiteConfigError, match="Expected a site file"):
        enroll(tmp_path / "site.toml", coordinator.invite())


# It is refused by the coordinator


def test_used_invite_is_refused_and_a_thief_noticed(
    coordinator: Coordinator, site: Path, tmp_path: Path
) -> None:
    invite = coordinator.invite()
    enroll(make_site(tmp_path / "thief"), invite)
    with pytest.raises(FederationError, match="telephone the coordinator at once"):
        enroll(site, invite)
    assert "used again" in coordinator.registry.get("north").note
    assert enrolment_of(site).state == "asked"


def test_unknown_token_is_refused(coordinator: Coordinator, site: Path) -> None:
    invite = coordinator.invite().model_copy(update={"token": "B" * 43})
    with pytest.raises(FederationError, match="Ask the coordinator for a new invite"):
        enroll(site, invite)


def test_invite_changed_on_its_way_is_found(coordinator: Coordinator, site: Path) -> None:
    """A man in the middle gave the site his own key as the coordinator's, and passes it on."""
    invite = coordinator.invite().model_copy(update={"coordinator": "b" * 64})
    with pytest.raises(FederationError, match="the invite was changed on its way"):
        enroll(site, invite)
    assert not (site.parent / "state" / "coordinator.pub").exists()


def test_clocks_apart_are_named(
    coordinator: Coordinator, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medfed.common import enrolment

    class Late(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) - timedelta(minutes=47)

    make = enrol.make_enrol_request

    def make_late(**arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(enrolment, "datetime", Late)
            return make(**arguments)

    monkeypatch.setattr(enrol, "make_enrol_request", make_late)
    coordinator.instead = _from_tomorrow(coordinator)
    with pytest.raises(FederationError, match=r"47 minutes apart .*timedatectl"):
        enroll(site, coordinator.invite())


def _from_tomorrow(coordinator: Coordinator) -> Callable[[str, bytes], Reply]:
    def answer(path: str, body: bytes) -> Reply:
        status, table = coordinator.desk.handle(path, body)
        assert table["error"] == "clock"
        table["time"] = write_moment(datetime.now(UTC) + timedelta(minutes=47))
        return status, json.dumps(table).encode()

    return answer


# What answers is no coordinator, or nothing does


def good(**changed: object) -> bytes:
    table = {
        "state": "approved", "fingerprint": "0000-0000-0000-0000-0000-0000", "bundle": "0" * 64,
        "coordinator": "0" * 64, "version": "0.1.0",
    }  # fmt: skip
    return json.dumps({**table, **changed}).encode()


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((200, b"<html>Login</html>"), "does not speak as a medfed coordinator"),
        ((200, b""), "does not speak"),
        ((200, b"[" * 50_000), "does not speak"),
        ((200, b'"approved"'), "does not speak"),
        ((200, good(state="root")), "does not speak"),
        ((200, good(version="1\x1b[2J")), "does not speak"),
        ((200, good(more=1)), "does not speak"),
        ((200, good() + b" " * 70_000), "does not speak"),
        ((200, good()), "Do not go on: telephone"),
        ((307, b""), "does not speak"),
        ((403, b"Forbidden"), "does not speak"),
        ((403, b'{"error": "\\u001b[2J"}'), "does not speak"),
        ((403, b'{"error": ["refused"]}'), "does not speak"),
        ((400, b'{"error": "clock", "time": [1]}'), "more than five minutes apart"),
        ((404, b""), "does not speak"),
        ((429, b""), "cannot answer now"),
        ((502, b"<html>Bad gateway</html>"), "cannot answer now"),
    ],
)
def test_strange_answer_ends_in_words(
    coordinator: Coordinator, site: Path, reply: Reply, message: str
) -> None:
    coordinator.instead = lambda path, body: reply
    with pytest.raises(FederationError, match=message) as caught:
        enroll(site, coordinator.invite())
    assert "\x1b" not in str(caught.value)
    assert len(coordinator.heard) == 1
    assert enrolment_of(site).state == "asked"
    assert site.read_text() == SITE_TOML
    assert not (site.parent / "state" / "coordinator.pub").exists()


def test_closed_port_is_named(tmp_path: Path, site: Path) -> None:
    coordinator = Coordinator(make_home(tmp_path / "federation"))
    with pytest.raises(FederationError, match="Nothing listens at 127"):
        enroll(site, coordinator.invite())


def test_unknown_host_is_named(coordinator: Coordinator, site: Path) -> None:
    invite = coordinator.invite().model_copy(update={"address": "coordinator.invalid:8443"})
    with pytest.raises(FederationError, match=r"coordinator\.invalid is not known"):
        enroll(site, invite)


def test_server_without_tls_is_named(tmp_path: Path, site: Path) -> None:
    coordinator = Coordinator(make_home(tmp_path / "federation"))
    with serving(coordinator, coordinator.home, tls=False):
        refused_unsent(coordinator, site, coordinator.invite(), "does not speak TLS")


def test_silent_server_is_given_up(
    tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_TIMEOUT_S", 0.5)
    coordinator = Coordinator(make_home(tmp_path / "federation"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", coordinator.port))
        listener.listen()
        with pytest.raises(FederationError, match="A firewall may be in the way"):
            enroll(site, coordinator.invite())


# Files


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a = 1\n", 'a = 1\n\n[connection]\naddress = "h:1"\n'),
        ("a = 1", 'a = 1\n\n[connection]\naddress = "h:1"\n'),
        ("", '\n[connection]\naddress = "h:1"\n'),
        ("a = 1\r\n# x\r\n", 'a = 1\r\n# x\r\n\r\n[connection]\r\naddress = "h:1"\r\n'),
        (
            "[ connection ] # to the world\nca = 'c'\n[data]\nx = 1\n",
            "[ connection ] # to the world\naddress = \"h:1\"\nca = 'c'\n[data]\nx = 1\n",
        ),
        (
            "[connection]\n# ours\n  address = ''  # soon\n",
            '[connection]\n# ours\n  address = "h:1"  # soon\n',
        ),
        (
            '[data]\naddress = ""\n[connection]\naddress = ""\n[x]\naddress = ""\n',
            '[data]\naddress = ""\n[connection]\naddress = "h:1"\n[x]\naddress = ""\n',
        ),
        ("[connection]", '[connection]\naddress = "h:1"'),
    ],
)
def test_address_is_added_and_nothing_else_is_changed(
    tmp_path: Path, before: str, after: str
) -> None:
    path = tmp_path / "site.toml"
    path.write_bytes(before.encode())
    path.chmod(0o640)
    assert add_address(path, "h:1")
    assert path.read_bytes().decode() == after
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert not add_address(path, "other:2")
    assert path.read_bytes().decode() == after


@pytest.mark.parametrize(
    "text",
    ["connection = {ca = 'c'}\n", "connection.ca = 'c'\n", "x = '''\n[connection]\n'''\n",
     '[connection]\naddress = """"""\n'],
)  # fmt: skip
def test_file_that_cannot_be_extended_stays_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "site.toml"
    path.write_text(text)
    with pytest.raises(FederationError, match='address = "h:1"'):
        add_address(path, "h:1")
    assert path.read_text() == text


def test_link_to_site_toml_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.toml").write_text("a = 1\n")
    (tmp_path / "site.toml").symlink_to(tmp_path / "real.toml")
    assert add_address(tmp_path / "site.toml", "h:1")
    assert (tmp_path / "site.toml").is_symlink()
    assert "h:1" in (tmp_path / "real.toml").read_text()


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"site": 1}'])
def test_damaged_enrolment_file_is_named(site: Path, content: bytes) -> None:
    (site.parent / "keys").mkdir()
    (site.parent / "keys" / "enrolment.json").write_bytes(content)
    with pytest.raises(FederationError, match=r"enrolment\.json|recursion"):
        read_enrolment(load_site(site))


# The command


def command(*arguments: object) -> tuple[str, BaseException | None]:
    app = typer.Typer()
    site_enroll.add_to(app)
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.output, done.exception


def test_command_shows_what_the_coordinator_sees(
    coordinator: Coordinator, site: Path, tmp_path: Path
) -> None:
    invite = tmp_path / "invite"
    invite.write_text(coordinator.invite().to_text() + "\n")
    said, error = command(invite, site)
    assert error is None
    shown = re.findall(r"Fingerprint +(\S+)", said)
    assert shown == [coordinator.registry.get("north").fingerprint]
    assert "waits for approval" in said
    coordinator.approve()
    said, _ = command(invite.read_text(), site)
    assert "north is approved by demo" in said
    said, _ = command(invite, site, "--json")
    assert json.loads(said)["state"] == "approved"
    revoke_site(coordinator.registry, "north")
    said, _ = command(invite, site)
    assert "was shut out" in said
    assert "medfed site start" not in said


def test_command_warns_of_another_release(
    coordinator: Coordinator, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator.desk, "_bundle", "b" * 64)
    said, _ = command(coordinator.invite().to_text(), site)
    assert "studies would be refused here" in said
    assert f'bundles = ["{"b" * 64}"]' in said


@pytest.mark.parametrize("invite", ["", "absent/file", "hello", "medfed-invite-1.AAAA"])
def test_command_refuses_what_is_no_invite(site: Path, invite: str) -> None:
    _, error = command(invite, site)
    assert isinstance(error, FederationError)
    assert "invite" in str(error)


def test_command_says_which_file_cannot_be_written(coordinator: Coordinator, site: Path) -> None:
    (site.parent / "keys").write_text("a file where a folder should be")
    _, error = command(coordinator.invite().to_text(), site)
    assert isinstance(error, FederationError)
    assert "keys" in str(error)
