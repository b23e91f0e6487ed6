"""The supervisor with real processes, and what is left when any of them is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from coordinator import kill, make_home, make_hospital, wait_until

from medfed.common.errors import RunError
from medfed.common.locking import holder
from medfed.common.processes import programs_folder
from medfed.common.study_file import parse_study
from medfed.server.federation.control import ControlClient
from medfed.server.federation.home import FederationHome
from medfed.server.federation.processes import child, end_all, leftovers, server_apps
from medfed.server.federation.queue import RunQueue
from medfed.server.federation.supervisor import lock_file, supervise

ALICE = make_hospital("alice")


def start(home: FederationHome) -> subprocess.Popen[bytes]:
    """Start a supervisor as `medfed federation start` does."""
    program = (
        "import sys; from pathlib import Path; import logging; logging.basicConfig(level=20);"
        "from medfed.server.federation.home import load_home;"
        "from medfed.server.federation.supervisor import supervise;"
        "supervise(load_home(Path(sys.argv[1])))"
    )
    with (home.logs_folder / "supervisor.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", program, str(home.folder)], stdout=log, stderr=log
        )


@pytest.fixture
def home(tmp_path: Path) -> Iterator[FederationHome]:
    home = make_home(tmp_path / "federation")
    ALICE.record(home, "approved")
    yield home
    end_all(list(leftovers(home)), patience_s=0.1)


def read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}


def pids(home: FederationHome) -> dict[str, int | None]:
    processes = read(home.supervisor_file).get("processes", {})
    return {name: process["pid"] for name, process in processes.items()}


def is_up(home: FederationHome) -> bool:
    """Whether the SuperLink answers and the site is registered."""
    return "alice" in read(home.nodes_file).get("nodes", {}) and all(pids(home).values())


def wait_until_up(home: FederationHome, supervisor: subprocess.Popen[bytes]) -> None:
    def look() -> bool:
        log = home.logs_folder / "supervisor.log"
        assert supervisor.poll() is None, log.read_text(encoding="utf-8")
        return is_up(home)

    wait_until(look, "the federation is up")


@pytest.mark.slow
def test_supervisor_brings_back_what_is_killed_and_ends_in_order(home: FederationHome) -> None:
    supervisor = start(home)
    try:
        wait_until_up(home, supervisor)
        before = pids(home)
        with closing(ControlClient(home)) as control:
            [node] = control.nodes()
            for name in ("superlink", "superexec"):
                old = before[name]
                assert old is not None
                os.kill(old, signal.SIGKILL)
                wait_until(lambda name=name, old=old: pids(home)[name] not in (old, None), name)
            home.nodes_file.unlink()
            wait_until_up(home, supervisor)
            assert [known.node_id for known in control.nodes()] == [node.node_id]
        table = read(home.supervisor_file)
        assert table["pid"] == supervisor.pid == holder(lock_file(home))
        assert {n: p["restarts"] for n, p in table["processes"].items()} == {
            "superlink": 1,
            "superexec": 1,
        }
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(60) == 0
        assert leftovers(home) == {}
        assert holder(lock_file(home)) is None
        table = read(home.supervisor_file)
        assert [p["state"] for p in table["processes"].values()] == ["stopped", "stopped"]
    finally:
        kill(supervisor)


@pytest.mark.slow
def test_supervisor_that_is_killed_leaves_nothing_behind(home: FederationHome) -> None:
    supervisor = start(home)
    wait_until_up(home, supervisor)
    before = set(leftovers(home))
    assert len(before) >= 2
    kill(supervisor)
    wait_until(lambda: not leftovers(home), "no process is left", 10)
    again = start(home)
    try:
        home.nodes_file.unlink()
        wait_until_up(home, again)
        assert not before & set(leftovers(home))
    finally:
        kill(again)


@pytest.mark.slow
def test_supervisor_ends_what_an_earlier_one_left(home: FederationHome) -> None:
    # As if the kernel had not told it that its parent is gone.
    environment = {**os.environ, "FLWR_HOME": str(home.superlink_folder / "flower")}
    stray = subprocess.Popen(["sleep", "600"], env=environment)
    deaf = subprocess.Popen(
        [sys.executable, "-c", "import signal, time; signal.signal(15, 1); time.sleep(600)"],
        env=environment,
    )
    wait_until(lambda: len(leftovers(home)) == 2, "both have begun")
    time.sleep(0.5)
    supervisor = start(home)
    try:
        assert stray.wait(60) == -signal.SIGTERM
        assert deaf.wait(60) == -signal.SIGKILL
        wait_until_up(home, supervisor)
    finally:
        kill(supervisor)


@pytest.mark.slow
def test_supervisor_goes_on_with_a_run_whose_server_app_was_killed(home: FederationHome) -> None:
    study = parse_study(
        {
            "study": {"name": "tiny"},
            "task": {"classes": ["normal", "nodule"]},
            "training": {"rounds": 1, "local_steps": 1, "batch_size": 4},
            "federation": {"min_sites": 1, "join_timeout_s": 600},
            "privacy": {"unit": "none"},
        },
        "test",
    )
    queue = RunQueue(home)
    queue.submit(study, "first", {})
    supervisor = start(home)
    try:
        wait_until(lambda: server_apps(home), "the ServerApp lives")
        [first] = server_apps(home)
        events = queue.arm("first").folder / "events.jsonl"
        wait_until(events.exists, "it waits for sites to join")
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: len(queue.get("first").flower_runs) == 2, "the run is submitted again")
        wait_until(lambda: server_apps(home), "another ServerApp lives")
        assert first not in server_apps(home)
        assert queue.get("first").attempts == 1
        # The supervisor is killed: its successor does not count that as the run's fault twice.
        kill(supervisor)
        supervisor = start(home)
        wait_until(lambda: len(queue.get("first").flower_runs) == 3, "submitted once more")
        wait_until(lambda: len(server_apps(home)) == 1, "one ServerApp lives")
        queue.stop("first")
        wait_until(lambda: not server_apps(home), "it was told to end")
        with closing(ControlClient(home)) as control:
            assert all(run.is_over for run in control.runs())
        assert queue.get("first").state == "stopped"
        assert queue.arm("first").read_outcome() is None
        # A planned end counts against nobody.
        queue.resume("first")
        wait_until(lambda: server_apps(home), "it goes on")
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(60) == 0
        assert (queue.get("first").state, queue.get("first").attempts) == ("waiting", 0)
        assert leftovers(home) == {}
    finally:
        kill(supervisor)


def test_supervisor_refuses_a_second_one(home: FederationHome) -> None:
    program = (
        "import sys, time; from pathlib import Path;"
        "from medfed.common.locking import held_alone\n"
        "with held_alone(Path(sys.argv[1]), 'x'): print('held', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(lock_file(home))], stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match=f"is running as process {other.pid}"):
            supervise(home)
    finally:
        kill(other)
        other.stdout.close()


@pytest.mark.parametrize("which", ["port", "control_port"])
def test_supervisor_says_which_port_is_taken(home: FederationHome, which: str) -> None:
    port = getattr(home.config, which)
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(RunError, match=f"Port {port} on 127.0.0.1 cannot be opened"),
    ):
        supervise(home)
    assert leftovers(home) == {}


def test_child_waits_longer_each_time_it_ends(home: FederationHome) -> None:
    shortlived = child(
        "shortlived", [sys.executable, "-c", "raise SystemExit('no such study')"], home
    )
    shortlived.keep_alive()
    wait_until(lambda: shortlived.keep_alive() or shortlived.problem, "its end is seen")
    assert shortlived.problem == "shortlived ended with exit code 1: no such study"
    assert (shortlived.pid, shortlived.state, shortlived.restarts) == (None, "waiting", 1)
    wait_until(lambda: shortlived.keep_alive() or shortlived.restarts == 2, "it was started again")
    shortlived.keep_alive()
    assert shortlived.state == "waiting"


def test_child_that_cannot_be_started_is_tried_again(home: FederationHome) -> None:
    sleeper = child("sleeper", ["sleep", "600"], home)
    sleeper.log.mkdir()  # as good as a full disk
    sleeper.keep_alive()
    assert "sleeper cannot be started" in sleeper.problem
    sleeper.log.rmdir()
    wait_until(lambda: sleeper.keep_alive() or sleeper.pid, "it is started")
    assert (sleeper.state, sleeper.problem) == ("running", "")
    sleeper.stop()
    assert (sleeper.state, sleeper.pid) == ("stopped", None)


def test_programs_that_are_started_are_installed() -> None:
    assert (programs_folder() / "flower-superexec").exists()
