"""A federation of real processes on loopback, set up by the very commands that people type.

Every process carries this session's mark in its environment; at the end those, and only those, are
killed.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ports import free_port

_BINARIES = Path(sys.executable).parent
_MARK = "MEDFED_TEST_DEPLOYMENT"
_POLL_S = 0.3


class DeploymentError(Exception):
    """A command failed, or something did not happen in time; the logs' ends are in the message."""


@dataclass
class Deployment:
    """A coordinator and its sites.

    Attributes:
        folder: Everything.
        port: Public port of the coordinator.
        processes: What was started here, by name.
    """

    folder: Path
    port: int = field(default_factory=free_port)
    control_port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    sites: dict[str, Path] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """The coordinator's folder."""
        return self.folder / "federation"

    @property
    def environment(self) -> dict[str, str]:
        """Environment of all of this deployment's processes."""
        return {
            **os.environ,
            "PATH": os.pathsep.join([str(_BINARIES), os.environ.get("PATH", "")]),
            "MEDFED_FEDERATION": str(self.home),
            "OMP_NUM_THREADS": "1",
            _MARK: str(self.folder),
        }

    def medfed(
        self,
        *arguments: str | Path,
        check: bool = True,
        timeout_s: float = 120,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Run a command to its end, with more in its environment, and return what it printed.

        Raises:
            DeploymentError: It ended with another exit code than 0 and `check` is on.
        """
        done = subprocess.run(
            [str(_BINARIES / "medfed"), *map(str, arguments)],
            cwd=self.folder,
            env={**self.environment, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        said = done.stdout + done.stderr
        if check and done.returncode:
            command = " ".join(map(str, arguments))
            raise DeploymentError(f"medfed {command} ended with {done.returncode}:\n{said}")
        return said

    def start(
        self,
        name: str,
        *arguments: str | Path,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start a command that stays; `prefix` is a program that runs it, `environment` more."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*prefix, str(_BINARIES / "medfed"), *map(str, arguments)],
                cwd=self.folder,
                env={**self.environment, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def found(self, *hosts: str) -> None:
        """Found the federation, as its coordinator does; its certificate is for `hosts` too."""
        names = [part for host in hosts for part in ("--san", host)]
        self.medfed("federation", "init", f"127.0.0.1:{self.port}", "--name", "loopback", *names)
        config = self.home / "federation.toml"
        text = re.sub(r"(?m)^control_port\s*=.*$", "", config.read_text())
        config.write_text(f"control_port = {self.control_port}\n{text}")

    def enrol(self, sites: Mapping[str, Path]) -> None:
        """Invite, enrol and approve sites, by the folders that hold their site.toml."""
        for name, folder in sites.items():
            invite = self.folder / f"invite-{name}"
            self.medfed("federation", "invite", name, "--out", invite)
            self.medfed("site", "enroll", invite, folder / "site.toml")
            self.medfed("federation", "approve", name, "--yes")
            self.sites[name] = folder

    def start_coordinator(self) -> None:
        """Start the coordinator, and wait until sites can reach it."""
        self.start("coordinator", "federation", "start")
        self.wait_for("the coordinator", self._is_up)

    def start_site(
        self,
        name: str,
        *,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start a site's agent."""
        arguments = ("site", "start", self.sites[name] / "site.toml", "-v")
        self.start(f"site-{name}", *arguments, prefix=prefix, environment=environment)

    def start_sites(self) -> None:
        """Start all sites and wait until they are connected."""
        for name in self.sites:
            self.start_site(name)
        self.wait_for_sites()

    def redirect(self, name: str, address: str) -> None:
        """Let a site reach the coordinator at another address, from its next start."""
        file = self.sites[name] / "site.toml"
        text = re.sub(r'(?m)^address = ".*"$', f'address = "{address}"', file.read_text())
        file.write_text(text)

    def wait_for_sites(self, timeout_s: float = 180) -> None:
        """Wait until all sites are connected: those that came anew have said so since."""
        self.wait_for("the sites", lambda: all(map(self.is_ready, self.sites)), timeout_s)

    def is_ready(self, name: str) -> bool:
        """Whether a site's agent, as started last, waits for messages, or works on one."""
        status = self.site_status(name)
        started = self.processes.get(f"site-{name}")
        is_this = started is not None and status.get("pid") == started.pid
        return is_this and status.get("state") in ("waiting", "working")

    def is_online(self, name: str) -> bool:
        """Whether the coordinator counts a site as connected."""
        nodes = _table(self.home / "superlink" / "nodes.json").get("nodes", {})
        return bool(nodes.get(name, {}).get("online"))

    def site_status(self, name: str) -> dict[str, Any]:
        """Return what a site's agent says of itself."""
        state = self.sites[name] / "state" / "agent" / "status.json"
        return _table(state)

    def run(self, study: Path, name: str, *, timeout_s: float = 400) -> Path:
        """Run a study to its end and return its federated arm's folder."""
        self.medfed("federation", "run", study, "--name", name, timeout_s=timeout_s)
        return self.arm(name)

    def submit(self, study: Path, name: str) -> Path:
        """Queue a study and return its federated arm's folder."""
        self.medfed("federation", "run", study, "--name", name, "--detach")
        return self.arm(name)

    def arm(self, name: str) -> Path:
        """The federated arm of a run."""
        return self.home / "runs" / name / "arms" / "federated"

    def run_state(self, name: str) -> str:
        """Return waiting, running, finished, failed or stopped."""
        return str(_table(self.home / "runs" / name / "queue.json").get("state", ""))

    def num_tries(self, name: str) -> int:
        """How often Flower was told to run a run."""
        return len(_table(self.home / "runs" / name / "queue.json")["flower_runs"])

    def child(self, name: str) -> int:
        """Return the coordinator's process of a name; 0 while it does not run."""
        children = _table(self.home / "supervisor.json").get("processes", {})
        pid = children.get(name, {}).get("pid") or 0
        return pid if pid in self._processes() else 0

    def wait_for_run(self, name: str, timeout_s: float = 400) -> None:
        """Wait until a run has finished.

        Raises:
            DeploymentError: It failed, or did not finish in time.
        """
        self.wait_for(
            f"run {name}",
            lambda: self.run_state(name) in ("finished", "failed", "stopped"),
            timeout_s,
        )
        if self.run_state(name) != "finished":
            raise DeploymentError(f"Run {name} is {self.run_state(name)}.\n{self.logs()}")

    def wait_for(self, what: str, happened: Callable[[], bool], timeout_s: float = 240) -> None:
        """Wait until something has happened.

        Raises:
            DeploymentError: It did not in time.
        """
        deadline = time.monotonic() + timeout_s
        while not happened():
            if time.monotonic() > deadline:
                raise DeploymentError(f"{what}: not within {timeout_s:.0f} s.\n{self.logs()}")
            time.sleep(_POLL_S)

    def kill(self, name: str) -> None:
        """kill -9 a command that was started here."""
        self.processes[name].kill()
        self.processes[name].wait()

    def kill_pid(self, pid: int) -> None:
        """kill -9 any process of this deployment."""
        assert pid > 1
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def pids(self, program: str) -> list[int]:
        """Return this deployment's processes whose command line holds `program`."""
        return [pid for pid in self._processes() if program in _command(pid)]

    def logs(self) -> str:
        """Return the end of every log."""
        ends = []
        for path in sorted(self.folder.rglob("*.log")):
            text = path.read_text(encoding="utf-8", errors="replace")
            ends.append(f"----- {path.relative_to(self.folder)}\n{text[-3000:]}")
        return "\n".join(ends)

    def stop(self) -> None:
        """Kill every process of this deployment and wait until none is left."""
        deadline = time.monotonic() + 60
        while processes := self._processes():
            for process in processes:
                self.kill_pid(process)
            if time.monotonic() > deadline:
                raise DeploymentError(f"Processes {processes} cannot be killed.")
            time.sleep(0.05)
        for started in self.processes.values():
            started.wait(60)

    def _is_up(self) -> bool:
        table = _table(self.home / "supervisor.json")
        children = table.get("processes", {})
        is_this = table.get("pid") == self.processes["coordinator"].pid
        running = (child.get("state") == "running" for child in children.values())
        return bool(children) and is_this and all(running) and answers(self.port)

    def _processes(self) -> list[int]:
        mark = f"{_MARK}={self.folder}".encode()
        found = []
        for environment in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in environment.read_bytes().split(b"\0"):
                    found.append(int(environment.parent.name))
        return found


@contextlib.contextmanager
def deployment(folder: Path) -> Iterator[Deployment]:
    """A federation in `folder` for the time of the block; nothing of it is left running."""
    folder.mkdir(parents=True, exist_ok=True)
    deployed = Deployment(folder)
    try:
        yield deployed
    finally:
        deployed.stop()


def answers(port: int) -> bool:
    """Whether something listens on a port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _table(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError):
        return {}


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""
