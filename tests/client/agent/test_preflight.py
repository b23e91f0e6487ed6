"""Preflight: every line is right about what it looked at, and none is a traceback."""

import json
import os
import shutil
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

from medfed.client.agent import preflight as module
from medfed.client.agent.checks import machine, network
from medfed.client.agent.enrol import enroll
from medfed.client.agent.preflight import Finding, preflight
from medfed.client.audit_log import AuditLog
from medfed.common.ledger import Ledger
from medfed.common.study_file import study_to_toml
from medfed.server.federation import pki
from medfed.server.federation.certificates import ServerCertificate
from medfed.server.federation.enrolment import EnrolmentDesk
from medfed.server.federation.home import FederationConfig, FederationHome, init_home
from medfed.server.federation.membership import approve_site, invite_site, revoke_site
from medfed.server.federation.pki import Authority, issue, own_certificate, read_authority
from medfed.server.federation.registry import Registry

sys.path.insert(0, str(Path(__file__).parent))

from trial_hospital import PLANTED, make_site, make_store, make_study


@dataclass
class Coordinator:
    """A coordinator's home and its desk behind TLS, on a server of the standard library."""

    home: FederationHome
    ahead_s: float = 0.0
    health: int = 200
    context: ssl.SSLContext = field(default_factory=lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))

    @property
    def authority(self) -> Authority:
        return read_authority(self.home.ca, self.home.ca_key)

    def show(self, certificate: ServerCertificate) -> None:
        """Show another certificate from now on."""
        self.home.certificate.write_bytes(certificate.chain)
        self.home.key.write_bytes(certificate.key)
        self.context.load_cert_chain(self.home.certificate, self.home.key)

    def serve(self) -> ThreadingHTTPServer:
        desk, coordinator = EnrolmentDesk(self.home), self

        class Handler(BaseHTTPRequestHandler):
            def date_time_string(self, timestamp: float | None = None) -> str:
                now = datetime.now(UTC).timestamp()
                return super().date_time_string(now + coordinator.ahead_s)

            def do_GET(self) -> None:
                self._answer(coordinator.health, b"")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status, table = desk.handle(self.path, body)
                self._answer(status, json.dumps(table).encode())

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass

        self.context.load_cert_chain(self.home.certificate, self.home.key)
        # 127.0.0.2 too: an address that its certificate is not for.
        server = Server(("0.0.0.0", self.home.config.port), Handler)
        server.socket = self.context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    def approve(self) -> None:
        registry = Registry(self.home.sites_folder)
        approve_site(registry, "clinic", registry.get("clinic").fingerprint)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    port = free_port()
    config = FederationConfig(
        name="trial", address=f"127.0.0.1:{port}", port=port, control_port=free_port()
    )
    made = Coordinator(init_home(tmp_path / "federation", config))
    server = made.serve()
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("stores"))


@pytest.fixture
def site_file(tmp_path: Path, store: Path) -> Path:
    return make_site(tmp_path / "clinic", store)


@pytest.fixture
def enrolled(coordinator: Coordinator, site_file: Path) -> Path:
    enroll(site_file, invite_site(coordinator.home, "clinic", 14))
    return site_file


@pytest.fixture
def approved(coordinator: Coordinator, enrolled: Path) -> Path:
    coordinator.approve()
    return enrolled


def checked(site_file: Path, study: Path | None = None) -> dict[str, Finding]:
    """The worst finding of each check."""
    order = ("skipped", "ok", "warning", "failed")
    worst: dict[str, Finding] = {}
    for finding in preflight(site_file, study):
        assert finding.text
        known = worst.get(finding.check)
        if known is None or order.index(finding.level) > order.index(known.level):
            worst[finding.check] = finding
    return worst


def change(site_file: Path, old: str, new: str) -> None:
    text = site_file.read_text()
    assert text.count(old) == 1, old
    site_file.write_text(text.replace(old, new))


def failed(found: dict[str, Finding]) -> set[str]:
    return {name for name, finding in found.items() if finding.level == "failed"}


def test_site_that_is_ready_has_nothing_that_failed(approved: Path) -> None:
    found = checked(approved)
    assert failed(found) == set()
    for name in ("name", "connection", "certificate", "clock", "membership", "release"):
        assert found[name].level == "ok", name
    for name in ("site.toml", "programs", "foreign code", "files", "ledger", "audit log"):
        assert found[name].level == "ok", name
    for name in ("writing", "data", "image", "labels", "split"):
        assert found[name].level == "ok", name
    assert "valid for 8" in found["certificate"].text
    assert "48 images of 24 patients" in found["data"].text
    assert found["study"].level == "skipped"


def test_planted_name_is_in_no_line(approved: Path, tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text(study_to_toml(make_study(rounds=50)))
    text = str([vars(finding) for finding in preflight(approved, study)])
    for planted in PLANTED:
        assert planted not in text


def test_site_file_that_cannot_be_read_is_the_only_line(tmp_path: Path) -> None:
    [finding] = preflight(tmp_path / "site.toml")
    assert (finding.check, finding.level) == ("site.toml", "failed")
    (tmp_path / "site.toml").write_text('name = "x"\n[polcy]\n')
    [finding] = preflight(tmp_path / "site.toml")
    assert "Did you mean policy?" in finding.text


def test_check_that_goes_wrong_in_a_new_way_is_a_line(
    site_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(subject: object) -> Finding:
        raise ZeroDivisionError("the check has a mistake")

    monkeypatch.setattr(module, "CHECKS", (("odd", explode), *module.CHECKS))
    found = checked(site_file)
    assert found["odd"].level == "failed"
    assert "ZeroDivisionError: the check has a mistake" in found["odd"].text
    assert found["split"].level == "ok"


# Network


def test_network_is_left_alone_before_enrolment(site_file: Path) -> None:
    found = checked(site_file)
    assert found["network"].level == "skipped"
    assert "medfed site enroll" in found["network"].text
    assert "membership" not in found


def test_site_that_waits_for_approval_is_told_what_to_compare(
    coordinator: Coordinator, enrolled: Path
) -> None:
    found = checked(enrolled)
    record = Registry(coordinator.home.sites_folder).get("clinic")
    assert failed(found) == {"membership"}
    assert record.fingerprint in found["membership"].text
    assert found["release"].level == "ok"


def test_revoked_site_is_told(coordinator: Coordinator, approved: Path) -> None:
    revoke_site(Registry(coordinator.home.sites_folder), "clinic")
    found = checked(approved)
    assert failed(found) == {"membership"}
    assert "new invite" in found["membership"].text


def test_bundle_that_is_not_accepted_is_told(approved: Path) -> None:
    change(approved, "bundles = []", f'bundles = ["{"0" * 64}"]')
    found = checked(approved)
    assert failed(found) == {"release"}
    assert "[connection] bundles" in found["release"].text


def test_closed_port_is_told_and_the_rest_skipped(approved: Path) -> None:
    port = free_port()
    text = approved.read_text()
    [address] = [line for line in text.splitlines() if line.startswith("address")]
    change(approved, address, f'address = "127.0.0.1:{port}"')
    found = checked(approved)
    assert failed(found) == {"connection"}
    assert f"Nothing listens at 127.0.0.1:{port}" in found["connection"].text
    for name in ("certificate", "clock", "membership", "release"):
        assert (found[name].level, found[name].text) == ("skipped", "see connection")


@pytest.mark.parametrize("address", ["nowhere.invalid:8443", "no/host:8443"])
def test_name_that_does_not_resolve_is_told(approved: Path, address: str) -> None:
    text = approved.read_text()
    [line] = [line for line in text.splitlines() if line.startswith("address")]
    change(approved, line, f'address = "{address}"')
    found = checked(approved)
    assert failed(found) == {"name"}
    assert address.partition(":")[0] in found["name"].text


def test_resolver_that_does_not_answer_is_not_waited_for(
    approved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()

    def resolve(*_: object, **__: object) -> list[object]:
        answered.wait(60)
        return []

    monkeypatch.setattr(network, "_TIMEOUT_S", 0.2)
    monkeypatch.setattr(network.socket, "getaddrinfo", resolve)
    text = approved.read_text()
    [line] = [line for line in text.splitlines() if line.startswith("address")]
    change(approved, line, 'address = "fed.example.org:8443"')
    found = checked(approved)
    answered.set()
    assert "no answer from this network's DNS" in found["name"].text


def test_server_that_says_nothing_is_not_waited_for(
    approved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medfed.client.agent.checks.hello._TIMEOUT_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        text = approved.read_text()
        [line] = [line for line in text.splitlines() if line.startswith("address")]
        change(approved, line, f'address = "127.0.0.1:{silent.getsockname()[1]}"')
        found = checked(approved)
    assert failed(found) == {"certificate"}
    assert "gives no answer" in found["certificate"].text


def test_certificate_of_another_authority_is_told(approved: Path) -> None:
    (approved.parent / "keys" / "ca.pem").write_bytes(own_certificate("other", ["127.0.0.1"]).ca)
    found = checked(approved)
    assert failed(found) == {"certificate"}
    assert "another authority" in found["certificate"].text


def test_missing_authority_is_told(approved: Path) -> None:
    (approved.parent / "keys" / "ca.pem").unlink()
    assert "medfed site enroll INVITE" in checked(approved)["certificate"].text
    (approved.parent / "keys" / "ca.pem").write_text("nothing")
    assert "cannot be used" in checked(approved)["certificate"].text


@pytest.mark.parametrize(
    ("days", "level", "text"),
    [(20, "warning", "valid for 19 more days"), (0.03, "failed", "it has expired")],
)
def test_certificate_that_ends_or_has_ended_is_told(
    coordinator: Coordinator,
    approved: Path,
    monkeypatch: pytest.MonkeyPatch,
    days: float,
    level: str,
    text: str,
) -> None:
    # It begins an hour ago.
    monkeypatch.setattr(pki, "SERVER_DAYS", days)
    coordinator.show(issue(coordinator.authority, ["127.0.0.1"]))
    found = checked(approved)
    assert found["certificate"].level == level
    assert text in found["certificate"].text


def test_certificate_for_another_host_is_told(coordinator: Coordinator, approved: Path) -> None:
    text = approved.read_text()
    [line] = [line for line in text.splitlines() if line.startswith("address")]
    change(approved, line, line.replace("127.0.0.1", "127.0.0.2"))
    found = checked(approved)
    assert failed(found) == {"certificate"}
    assert "it is not made out for 127.0.0.2" in found["certificate"].text


@pytest.mark.parametrize(("ahead_s", "level"), [(-3, "warning"), (-8, "failed"), (1, "ok")])
def test_clock_that_is_ahead_is_told(
    coordinator: Coordinator, approved: Path, ahead_s: float, level: str
) -> None:
    coordinator.ahead_s = ahead_s
    found = checked(approved)
    assert found["clock"].level == level
    if level != "ok":
        assert "ahead of the coordinator's" in found["clock"].text
        assert "timedatectl" in found["clock"].text


@pytest.mark.parametrize(("ahead_s", "level"), [(60, "warning"), (400, "failed")])
def test_clock_that_is_behind_is_told(
    coordinator: Coordinator, approved: Path, ahead_s: float, level: str
) -> None:
    coordinator.ahead_s = ahead_s
    found = checked(approved)
    assert found["clock"].level == level
    assert "behind the coordinator's" in found["clock"].text


def test_something_else_behind_the_right_certificate_is_told(
    coordinator: Coordinator, approved: Path
) -> None:
    coordinator.health = 404
    assert "answers /health with 404" in checked(approved)["certificate"].text


def test_proxy_is_named_without_its_password(
    approved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:pass4word@127.0.0.1:{port}")
    text = approved.read_text()
    [line] = [line for line in text.splitlines() if line.startswith("address")]
    change(approved, line, 'address = "fed.example.org:8443"')
    found = checked(approved)
    assert found["name"].text == f"fed.example.org is left to the proxy 127.0.0.1:{port}"
    assert "the proxy, for fed.example.org:8443" in found["connection"].text
    assert "pass4word" not in str(found)
    monkeypatch.setenv("NO_PROXY", "fed.example.org")
    assert network.proxy_for("fed.example.org") == ""


# The site's own papers


@pytest.mark.parametrize(
    ("name", "mode"), [("keys/node.key", 0o644), ("state/ledger.key", 0o640), ("state", 0o755)]
)
def test_file_that_others_can_read_is_told(site_file: Path, name: str, mode: int) -> None:
    (site_file.parent / name).chmod(mode)
    found = checked(site_file)
    assert failed(found) == {"files"}
    assert f"chmod {'700' if name == 'state' else '600'} {site_file.parent / name}" in (
        found["files"].text
    )


def test_site_file_that_others_can_change_is_told(site_file: Path) -> None:
    site_file.chmod(0o666)
    assert failed(checked(site_file)) == {"files"}


def test_ledger_and_audit_log_that_cannot_be_trusted_are_told(site_file: Path) -> None:
    state = site_file.parent / "state"
    (state / "ledger.jsonl").write_text("{}\n")
    audit = AuditLog(state)
    audit.path.write_bytes(audit.path.read_bytes().replace(b"installed", b"enrolled"))
    found = checked(site_file)
    assert failed(found) == {"ledger", "audit log"}
    assert "entry 0 cannot be trusted" in found["ledger"].text


def test_spent_budget_is_told(site_file: Path, store: Path) -> None:
    from medfed.client.spending import spend_of_round

    spend = spend_of_round(
        make_study(),
        module.load_site(site_file).policy,
        run="r",
        round_number=1,
        release="x",
    )
    with Ledger(site_file.parent / "state").locked() as ledger:
        ledger.append(spend)
    assert checked(site_file)["ledger"].level == "ok"
    change(site_file, "max_epsilon = 8.0", "max_epsilon = 0.5")
    found = checked(site_file)
    assert failed(found) == {"ledger"}
    assert "0.00 left" in found["ledger"].text


@pytest.mark.skipif(os.getuid() == 0, reason="root writes everywhere")
def test_state_that_cannot_be_written_is_told(site_file: Path) -> None:
    (site_file.parent / "state").chmod(0o500)
    assert "writing" in failed(checked(site_file))


def test_program_of_another_version_is_told(
    site_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = machine.version
    monkeypatch.setattr(machine, "version", lambda name: "1.40.0" if name == "flwr" else real(name))
    found = checked(site_file)
    assert "flwr is 1.40.0" in found["programs"].text
    assert failed(found) == {"programs"}


def test_gpu_that_is_asked_for_and_missing_is_told(site_file: Path) -> None:
    import torch

    change(site_file, 'device = "study"', 'device = "cuda"')
    expected = set() if torch.cuda.is_available() else {"GPU"}
    assert failed(checked(site_file)) == expected
    change(site_file, 'device = "cuda"', 'device = "cpu"')
    assert "not used" in checked(site_file)["GPU"].text


@pytest.mark.parametrize(("free_gib", "level"), [(0.5, "failed"), (5, "warning"), (50, "ok")])
def test_disk_and_memory_that_are_short_are_told(
    site_file: Path, monkeypatch: pytest.MonkeyPatch, free_gib: float, level: str
) -> None:
    free = int(free_gib * 2**30)
    usage = shutil.disk_usage("/")._replace(free=free)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(machine, "_memory", lambda: (64 * 2**30, free))
    monkeypatch.setattr(machine, "_num_cores", lambda: 8)
    found = checked(site_file)
    assert (found["disk"].level, found["processor"].level) == (level, level)


# Data


def test_missing_store_is_told(site_file: Path, store: Path) -> None:
    change(site_file, str(store), "/nowhere/store")
    found = checked(site_file)
    assert failed(found) == {"data"}
    assert "/nowhere/store" in found["data"].text


def test_damaged_store_is_told(tmp_path: Path, store: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    site_file = make_site(tmp_path / "site", copy)
    content = (copy / "images.npy").read_bytes()
    (copy / "images.npy").write_bytes(content[: len(content) // 2])
    assert failed(checked(site_file)) == {"data"}


def test_grey_images_and_missing_labels_are_told(tmp_path: Path) -> None:
    site_file = make_site(tmp_path, make_store(tmp_path / "stores", "a", "b", grey=True))
    found = checked(site_file)
    assert found["image"].level == "warning"
    assert "one single grey" in found["image"].text
    header = next(tmp_path.glob("stores/*/store.json"))
    table = json.loads(header.read_text())
    header.write_text(json.dumps({**table, "classes": ["a", "b", "c"]}))
    found = checked(site_file)
    assert found["labels"].level == "warning"
    assert "No image shows c." in found["labels"].text


@pytest.mark.parametrize(
    ("subset", "text"),
    [
        ({"train": [[0, 1]], "test": [[1, 2]]}, "a patient is on both sides"),
        ({"train": [[0, 1]], "test": [[]]}, "one side has no patient"),
        ({"train": [[0, 999]], "test": [[2]]}, "names no rows of these stores"),
        ({"train": [[0]]}, "names no rows of these stores"),
        ({"train": [[0], [1]], "test": [[2]]}, "names no rows of these stores"),
    ],
)
def test_subset_with_a_mistake_is_told(
    tmp_path: Path, store: Path, subset: dict[str, Any], text: str
) -> None:
    path = tmp_path / "subset.json"
    path.write_text(json.dumps(subset))
    found = checked(make_site(tmp_path / "site", store, subset=path))
    assert failed(found) == {"split"}
    assert text in found["split"].text


def test_subset_is_counted_by_patient(tmp_path: Path, store: Path) -> None:
    path = tmp_path / "subset.json"
    path.write_text('{"train": [[0, 1, 2, 3]], "test": [[4, 5]]}')
    found = checked(make_site(tmp_path / "site", store, subset=path))
    assert found["split"].text == "2 patients to train on, 1 held out"


# A study


def write_study(folder: Path, **training: Any) -> Path:
    path = folder / "study.toml"
    path.write_text(study_to_toml(make_study(**training)))
    return path


def test_study_that_fits_says_how_long_the_budget_lasts(tmp_path: Path, site_file: Path) -> None:
    found = checked(site_file, write_study(tmp_path, rounds=2))
    assert failed(found) == set()
    assert "lasts for all 2 rounds" in found["budget"].text
    assert "36 images to train on, 12 held out" in found["fit"].text
    found = checked(site_file, write_study(tmp_path, rounds=500))
    assert found["budget"].level == "warning"
    rounds = int(found["budget"].text.split()[2])
    assert 0 < rounds < 500
    change(site_file, "max_epsilon = 8.0", "max_epsilon = 0.1")
    assert checked(site_file, write_study(tmp_path, rounds=500))["budget"].level == "failed"


def test_study_beyond_the_policy_is_told(tmp_path: Path, site_file: Path) -> None:
    found = checked(site_file, write_study(tmp_path, unit="none"))
    assert failed(found) == {"policy", "budget"}
    assert 'this site requires "patient"' in found["policy"].text


def test_study_of_other_labels_is_told(tmp_path: Path) -> None:
    site_file = make_site(tmp_path / "site", make_store(tmp_path / "stores", "a", "c"))
    found = checked(site_file, write_study(tmp_path))
    assert failed(found) == {"fit"}
    assert "Prepare the data for this study." in found["fit"].text


def test_study_that_cannot_be_read_is_told(tmp_path: Path, site_file: Path) -> None:
    found = checked(site_file, tmp_path / "nowhere.toml")
    assert failed(found) == {"study"}
    assert "nowhere.toml" in found["study"].text
