"""The coordinator's processes: which there are, how they are started, and what is left of them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from medfed.common.processes import programs_folder, quiet_flower, start_child, stop_child
from medfed.server.bundle import RUNS_FOLDER
from medfed.server.federation.home import FederationHome

LOOPBACK = "127.0.0.1"

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
# What has lived so long starts again without a pause.
_SOUND_S = 60.0
_MAX_LOG_BYTES = 16 * 1024 * 1024
_STOP_PATIENCE_S = 10.0
_MAX_REASON = 300


def flower_home(home: FederationHome) -> Path:
    """Return FLWR_HOME. Every process that Flower starts for this federation inherits it."""
    return home.superlink_folder / "flower"


def superlink_command(home: FederationHome) -> list[str]:
    """Return what starts the SuperLink and its gate."""
    return [sys.executable, "-m", "medfed.server.federation.superlink", str(home.folder)]


def superexec_command(home: FederationHome) -> list[str]:
    """Return what starts the program that starts a ServerApp for each run."""
    return [
        str(programs_folder() / "flower-superexec"),
        "--insecure",  # plain HTTP within this machine
        *("--runtime-api-address", f"{LOOPBACK}:{home.config.control_port}"),
        *("--superexec-auth-secret-file", str(home.superexec_secret)),
    ]


@dataclass
class Child:
    """A process that is started again whenever it ends, after a pause that grows.

    It gets SIGKILL when the supervisor ends, whatever ends that.

    Attributes:
        name: Names its log.
        command: Program and arguments.
        home: The federation's.
        restarts: How often it was started again.
        problem: How it ended last, while it is down.
    """

    name: str
    command: list[str]
    home: FederationHome
    restarts: int = 0
    problem: str = ""
    _process: subprocess.Popen[bytes] | None = None
    _is_stopped: bool = False
    _started: float = 0.0
    _due: float = 0.0
    _pause_s: float = field(default=_FIRST_PAUSE_S)

    @property
    def pid(self) -> int | None:
        """Its number; None while it is down."""
        return self._process.pid if self._process is not None else None

    @property
    def state(self) -> str:
        """Return running, waiting (for its next start) or stopped."""
        if self._process is not None:
            return "running"
        return "stopped" if self._is_stopped else "waiting"

    @property
    def age_s(self) -> float:
        """How long it has lived; 0 while it is down."""
        return time.monotonic() - self._started if self._process is not None else 0.0

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.home.logs_folder / f"{self.name}.log"

    def keep_alive(self) -> None:
        """Notice its end, and start it if it is down and the pause is over."""
        now = time.monotonic()
        if self._process is not None and self._process.poll() is not None:
            self._note_end(self._process.returncode, now)
        if self._process is None and now >= self._due:
            self._start(now)

    def stop(self) -> None:
        """End it; `keep_alive` would start it again."""
        self._is_stopped = True
        if self._process is not None:
            stop_child(self._process, _STOP_PATIENCE_S)
            self._process = None

    def _start(self, now: float) -> None:
        environment = quiet_flower(flower_home(self.home))
        environment[RUNS_FOLDER] = str(self.home.runs_folder.resolve())
        try:
            self.home.logs_folder.mkdir(exist_ok=True)
            if self.log.exists() and self.log.stat().st_size > _MAX_LOG_BYTES:
                self.log.replace(self.log.with_name(f"{self.log.name}.1"))
            self._process = start_child(self.command, environment=environment, log=self.log)
        except OSError as error:  # a full disk, or no memory: that may pass
            self.problem = f"{self.name} cannot be started: {error}"
            self._pause(now)
            return
        self._started = now
        self._is_stopped = False
        self.problem = ""

    def _note_end(self, code: int, now: float) -> None:
        self._process = None
        self.restarts += 1
        if now - self._started > _SOUND_S:
            self._pause_s = _FIRST_PAUSE_S
        self._pause(now)
        # Who was killed had no time to say why.
        how = f"signal {-code}" if code < 0 else f"exit code {code}: {_last_line(self.log)}"
        self.problem = f"{self.name} ended with {how}"

    def _pause(self, now: float) -> None:
        self._due = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)


def _last_line(path: Path) -> str:
    try:
        text = path.read_bytes()[-4096:].decode("utf-8", "replace").strip()
    except OSError:
        return f"see {path}"
    return text.rpartition("\n")[2][-_MAX_REASON:] or f"see {path}"


def leftovers(home: FederationHome) -> dict[int, str]:
    """Return the living processes of this federation and their command lines, by number.

    All that the supervisor starts, and all that those start; not the supervisor. Linux only:
    nothing is found elsewhere.
    """
    mark = f"FLWR_HOME={flower_home(home)}".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # That of a process which has ended and was not fetched yet is empty.
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(folder.name)] = command.decode("utf-8", "replace")
    return found


def server_apps(home: FederationHome) -> list[int]:
    """Return the ServerApps of this federation that live."""
    return [pid for pid, command in leftovers(home).items() if "flwr-serverapp" in command]


def end_all(pids: list[int], patience_s: float = _STOP_PATIENCE_S) -> None:
    """End processes that are no children of this one: SIGTERM, then SIGKILL."""
    for number, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, patience_s)):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + wait_s
        while pids and time.monotonic() < deadline:
            pids = [pid for pid in pids if _lives(pid)]
            time.sleep(0.05)


def _lives(pid: int) -> bool:
    """Whether a process runs; one that nobody has fetched yet does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")
