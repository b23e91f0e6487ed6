"""The supervisor keeps its two processes alive, ends what hangs, and says what is the matter."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from medfed.client.agent.keys import load_or_make_node_key
from medfed.client.agent.supervisor import run_agent
from medfed.client.audit_log import AuditLog
from medfed.client.site import load_site
from medfed.common.errors import RunError, SiteConfigError
from medfed.common.locking import holder
from medfed.common.processes import is_alive

_MEDFED = Path(sys.executable).parent / "medfed"


@pytest.fixture
def site_file(tmp_path: Path) -> Path:
    """A site whose coordinator nobody answers for."""
    keys = tmp_path / "keys"
    load_or_make_node_key(keys / "node.key")
    (keys / "ca.pem").write_bytes(_authority())
    file = tmp_path / "site.toml"
    # Port 9 is discard: nothing listens there.
    file.write_text(
        'name = "clinic"\n[data]\nstores = ["store"]\n[connection]\naddress = "127.0.0.1:9"\n'
    )
    return file


def _authority() -> bytes:
    from datetime import UTC, datetime, timedelta

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    start = datetime.now(UTC) - timedelta(days=1)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


@pytest.fixture
def agent(site_file: Path) -> Iterator[subprocess.Popen[bytes]]:
    log = (site_file.parent / "agent.log").open("wb")
    started = subprocess.Popen(
        [_MEDFED, "site", "start", site_file, "-v"], stdout=log, stderr=subprocess.STDOUT
    )
    log.close()
    try:
        yield started
    finally:
        started.kill()
        started.wait()
        for pid in (_status(site_file).get(f"{name}_pid", 0) for name in ("worker", "supernode")):
            _until(lambda pid=pid: not pid or _is_gone(pid), "a child outlived the agent")


def _status(site_file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((site_file.parent / "state/agent/status.json").read_text()))
    except (OSError, ValueError):
        return {}


def _until(happened: Callable[[], bool], what: str, within_s: float = 200) -> None:
    deadline = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def _is_gone(pid: int) -> bool:
    if not is_alive(pid):
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def _worker_beats(site_file: Path) -> bool:
    try:
        worker = json.loads((site_file.parent / "state/agent/worker.json").read_text())
    except (OSError, ValueError):
        return False
    return bool(worker["pid"] == _status(site_file).get("worker_pid"))


def _events(site_file: Path) -> list[str]:
    return [entry.event for entry in AuditLog(site_file.parent / "state").entries()]


@pytest.mark.slow
def test_agent_says_that_the_coordinator_cannot_be_reached_and_stops_in_order(
    site_file: Path, agent: subprocess.Popen[bytes]
) -> None:
    _until(lambda: _status(site_file).get("state") == "connecting", "no status")
    _until(lambda: "cannot be reached" in _status(site_file)["reason"], "no reason")
    _until(lambda: _worker_beats(site_file), "the worker did not start")
    children = [_status(site_file)[f"{name}_pid"] for name in ("worker",)]
    assert holder(site_file.parent / "state/agent/lock") == agent.pid
    stopped = subprocess.run(
        [_MEDFED, "site", "stop", site_file], capture_output=True, text=True, check=True
    )
    assert "Stopped" in stopped.stdout
    agent.wait(30)
    assert all(_is_gone(child) for child in children)
    assert _status(site_file)["state"] == "stopped"
    assert _events(site_file)[0] == "started"
    assert _events(site_file)[-1] == "stopped"
    secret = site_file.parent / "state/agent/superexec.secret"
    assert secret.stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_agent_starts_another_worker_when_one_dies_or_hangs(
    site_file: Path, agent: subprocess.Popen[bytes]
) -> None:
    _until(lambda: _worker_beats(site_file), "the worker did not start")
    first = _status(site_file)["worker_pid"]
    os.kill(first, signal.SIGKILL)
    _until(lambda: _status(site_file).get("worker_pid") not in (0, first), "no other worker")
    _until(lambda: _worker_beats(site_file), "the other worker did not start")
    second = _status(site_file)["worker_pid"]
    # As good as a hang: no sign of life, and no end.
    os.kill(second, signal.SIGSTOP)
    _until(lambda: _is_gone(second), "the watchdog did not end a worker that hangs")
    _until(
        lambda: _worker_beats(site_file) and _status(site_file)["worker_pid"] != second, "no third"
    )
    assert _status(site_file)["worker_restarts"] == 2
    events = _events(site_file)
    assert events.count("worker_died") == 1
    assert events.count("worker_killed") == 1


@pytest.mark.slow
def test_second_agent_of_a_site_is_refused(site_file: Path, agent: subprocess.Popen[bytes]) -> None:
    _until(lambda: holder(site_file.parent / "state/agent/lock") is not None, "no lock")
    with pytest.raises(RunError, match=f"running already as process {agent.pid}"):
        run_agent(load_site(site_file), site_file)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: (folder / "keys/node.key").unlink(), "Expected the key"),
        (lambda folder: (folder / "keys/ca.pem").unlink(), "Expected the CA certificate"),
        (
            lambda folder: (folder / "site.toml").write_text(
                'name = "clinic"\n[data]\nstores = ["store"]\n'
            ),
            r"Expected \[connection\] address",
        ),
    ],
)
def test_agent_does_not_start_when_the_site_is_not_enrolled(
    change: Callable[[Path], object], expected: str, site_file: Path
) -> None:
    change(site_file.parent)
    with pytest.raises(SiteConfigError, match=expected):
        run_agent(load_site(site_file), site_file)


def test_pausing_works_whether_the_agent_runs_or_not(site_file: Path) -> None:
    for command, said in (
        ("pause", "Paused"),
        ("resume", "Resumed"),
        ("resume", "not paused"),
        ("stop", "does not run"),
    ):
        done = subprocess.run(
            [_MEDFED, "site", command, site_file], capture_output=True, text=True, check=True
        )
        assert said in done.stdout
    assert _events(site_file) == ["paused", "resumed"]
