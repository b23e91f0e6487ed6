"""Child processes: none outlives its parent, what ends is started again, one holds a lock."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from medfed.common.errors import RunError
from medfed.common.keeping import KeptChild
from medfed.common.locking import held_alone, holder
from medfed.common.processes import is_alive, quiet_flower

_SLEEPS = [sys.executable, "-c", "import time; time.sleep(600)"]
_ENDS = [sys.executable, "-c", "print('last words'); raise SystemExit(3)"]
_IGNORES_TERM = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\n"
    "time.sleep(600)",
]


def _until(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_child_dies_when_its_parent_is_killed(tmp_path: Path) -> None:
    program = (
        "import os, sys, time; from pathlib import Path\n"
        "from medfed.common.processes import start_child\n"
        f"child = start_child({_SLEEPS!r}, environment=os.environ, log=Path(sys.argv[1]) / 'log')\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert is_alive(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    # A zombie that init has not collected yet counts as gone.
    _until(lambda: not is_alive(child) or _state(child) == "Z", "the child outlived its parent")


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def test_kept_child_is_started_again_only_after_a_pause_that_grows(tmp_path: Path) -> None:
    child = KeptChild("ends", tmp_path, _ENDS, os.environ)
    pauses = []
    for _ in range(3):
        _until(lambda: child.keep_alive() or child.state == "running", "never started")
        _until(child.keep_alive, "never ended")
        assert child.exit_code == 3
        assert child.problem == "ends ended with exit code 3: last words"
        assert child.state == "waiting"
        pauses.append(child._pause_s)
    assert child.restarts == 3
    assert pauses == [2.0, 4.0, 8.0]
    child.start_within(0.0)
    child.keep_alive()
    assert child.state == "running"
    child.kill()


def test_kept_child_ends_in_order_or_by_force(tmp_path: Path) -> None:
    child = KeptChild("stubborn", tmp_path, _IGNORES_TERM, os.environ)
    child.keep_alive()
    _until(lambda: "up" in child.last_words(), "never up")
    pid = child.pid
    assert pid is not None
    child.stop(patience_s=0.2)
    assert not is_alive(pid)
    assert (child.pid, child.state) == (None, "stopped")


def test_kept_child_starts_at_once_when_it_was_killed_on_purpose(tmp_path: Path) -> None:
    child = KeptChild("hangs", tmp_path, _SLEEPS, os.environ)
    child.keep_alive()
    child.kill()
    assert child.pid is None
    assert not child.keep_alive()
    assert (child.state, child.restarts) == ("running", 1)
    child.kill()


def test_lock_is_held_by_one_and_ends_with_its_process(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert holder(lock) is None
    program = (
        "import sys, time; from pathlib import Path\n"
        "from medfed.common.locking import held_alone\n"
        "with held_alone(Path(sys.argv[1]), 'It runs'):\n"
        "    print('held', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(lock)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    assert holder(lock) == other.pid
    with (
        pytest.raises(RunError, match=f"It runs as process {other.pid}"),
        held_alone(lock, "It runs"),
    ):
        pass
    other.send_signal(signal.SIGKILL)
    other.wait()
    other.stdout.close()
    assert holder(lock) is None
    with held_alone(lock, "It runs"):
        assert holder(lock) == os.getpid()


def test_flower_keeps_to_itself(tmp_path: Path) -> None:
    environment = quiet_flower(tmp_path)
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert environment["FLWR_HOME"] == str(tmp_path)
