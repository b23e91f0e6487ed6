"""The SuperLink as a process of its own, asked by the real control client."""

import hashlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from coordinator import (
    kill,
    make_home,
    make_hospital,
    public_client,
    start_superlink,
    superlink,
)

from medfed.common.bundle import bundle_bytes
from medfed.common.errors import FederationError, RunError
from medfed.common.processes import quiet_flower
from medfed.server.federation.control import ControlClient, ControlError, KeyInUseError
from medfed.server.federation.home import FederationHome
from medfed.server.federation.members import Members, describe_nodes
from medfed.server.federation.processes import flower_home, superlink_command
from medfed.server.federation.registry import Registry

ALICE, BOB = map(make_hospital, ("alice", "bob"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FederationHome]:
    home = make_home(tmp_path_factory.mktemp("superlink") / "federation")
    with superlink(home):
        yield home


@pytest.fixture
def control(home: FederationHome) -> Iterator[ControlClient]:
    client = ControlClient(home)
    yield client
    client.close()


def test_control_client_names_nodes_and_takes_them_away(control: ControlClient) -> None:
    hospital = make_hospital("carol")
    node_id = control.register_node(hospital.line, "carol")
    [node] = [node for node in control.nodes() if node.name == "carol"]
    assert (node.node_id, node.public_key, node.status) == (node_id, hospital.pem, "registered")
    control.unregister_node(node_id)
    [node] = [node for node in control.nodes() if node.name == "carol"]
    assert node.status == "unregistered"
    with pytest.raises(KeyInUseError):
        control.register_node(hospital.line, "carol")


def test_control_client_starts_and_stops_a_run_of_the_release(
    control: ControlClient, tmp_path: Path
) -> None:
    run_id = control.start_run(tmp_path / 'a "quoted" folder')
    run = control.run(run_id)
    assert run is not None
    assert (run.status, run.is_over) == ("pending", False)
    assert [run.run_id for run in control.runs()] == [run_id]
    control.stop_run(run_id)
    run = control.run(run_id)
    assert run is not None
    assert (run.status, run.outcome, run.is_over) == ("finished", "stopped", True)
    control.stop_run(run_id)  # over already: nothing happens
    assert control.run(1234567) is None
    control.stop_run(1234567)


def test_control_client_submits_the_bundle_that_sites_allow(
    home: FederationHome, control: ControlClient, tmp_path: Path
) -> None:
    control.stop_run(control.start_run(tmp_path))
    digest = hashlib.sha256(bundle_bytes()).hexdigest()
    with closing(sqlite3.connect(home.database)) as database:
        found = database.execute("select distinct fab_hash from run").fetchall()
    assert found == [(digest,)]


def test_control_client_says_when_the_token_is_wrong(home: FederationHome, tmp_path: Path) -> None:
    other = FederationHome(tmp_path, home.config)
    other.control_token.write_text("wrong")
    with (
        closing(ControlClient(other)) as client,
        pytest.raises(ControlError, match=r"control\.token"),
    ):
        client.nodes()


def test_control_client_says_when_nobody_answers(tmp_path: Path) -> None:
    home = make_home(tmp_path / "federation")
    with closing(ControlClient(home)) as client:
        assert not client.is_healthy()
        with pytest.raises(RunError, match="medfed federation start"):
            client.nodes()
    home.control_token.unlink()
    with pytest.raises(RunError, match=r"control\.token cannot be read"):
        ControlClient(home)


def test_control_client_talks_past_a_proxy(
    home: FederationHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    with closing(ControlClient(home)) as client:
        assert client.is_healthy()
        client.nodes()
    assert os.environ["NO_PROXY"] == "intranet.example,127.0.0.1"


def test_members_follow_the_registry(home: FederationHome, control: ControlClient) -> None:
    registry = Registry(home.sites_folder)
    members = Members(registry, control)
    ALICE.record(home, "approved")
    BOB.record(home, "enrolled")
    members.sync()
    table = describe_nodes(members.sync())
    assert table == {"alice": {**table["alice"], "online": False, "last_seen": ""}}
    ALICE.record(home, "revoked")
    BOB.record(home, "approved")
    members.sync()
    assert sorted(describe_nodes(members.sync())) == ["bob"]
    assert members.problem == ""
    # Approved again by hand, with the key that Flower was told to forget.
    ALICE.record(home, "approved")
    assert sorted(describe_nodes(members.sync())) == ["bob"]
    assert "alice" in members.problem


def test_members_take_away_a_site_with_another_key(
    home: FederationHome, control: ControlClient
) -> None:
    members = Members(Registry(home.sites_folder), control)
    old, new = make_hospital("dora"), make_hospital("dora")
    old.record(home, "approved")
    members.sync()
    new.record(home, "approved")
    members.sync()
    [node] = [node for node in members.sync() if node.name == "dora"]
    assert node.public_key == new.pem


def test_members_leave_everything_as_it_is_when_a_record_is_damaged(
    home: FederationHome, control: ControlClient
) -> None:
    members = Members(Registry(home.sites_folder), control)
    hospital = make_hospital("frank")
    hospital.record(home, "approved")
    members.sync()
    record = home.sites_folder / "frank.json"
    content = record.read_bytes()
    record.write_bytes(content[:40])
    with pytest.raises(FederationError, match="frank"):
        members.sync()
    record.write_bytes(content)
    assert "frank" in describe_nodes(members.sync())


@pytest.mark.slow
def test_superlink_forgets_nothing_when_it_is_killed(tmp_path: Path) -> None:
    home = make_home(tmp_path / "federation")
    process = start_superlink(home)
    control = ControlClient(home)
    node_id = control.register_node(ALICE.line, "alice")
    run_id = control.start_run(tmp_path)
    kill(process)
    process = start_superlink(home)
    try:
        assert [(node.node_id, node.name) for node in control.nodes()] == [(node_id, "alice")]
        assert [run.run_id for run in control.runs()] == [run_id]
        with public_client(home) as client:
            assert client.get("/health").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        control.close()
        kill(process)


@pytest.mark.parametrize("which", ["port", "control_port"])
def test_superlink_says_which_port_is_taken(tmp_path: Path, which: str) -> None:
    home = make_home(tmp_path / "federation")
    with socket.create_server(("127.0.0.1", getattr(home.config, which))):
        done = run_superlink(home)
    assert done.returncode == RunError.exit_code
    assert f"Port {getattr(home.config, which)} on 127.0.0.1 cannot be opened" in done.stderr
    assert "Traceback" not in done.stderr


def test_superlink_says_that_its_certificate_cannot_be_used(tmp_path: Path) -> None:
    home = make_home(tmp_path / "federation")
    home.key.write_text("nonsense")
    done = run_superlink(home)
    assert done.returncode != 0
    assert "Mend certificate and key" in done.stderr
    assert "Traceback" not in done.stderr


def run_superlink(home: FederationHome) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        superlink_command(home),
        env=quiet_flower(flower_home(home)),
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )


def test_loopback_port_is_not_reached_from_outside(home: FederationHome) -> None:
    # All of 127.0.0.0/8 is this machine; only one address of it is bound.
    with pytest.raises(httpx.ConnectError), httpx.Client(trust_env=False) as client:
        client.get(f"http://127.0.0.2:{home.config.control_port}/health")
