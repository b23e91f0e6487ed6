"""A real `flower-superlink` with one `flower-supernode` for each site, on loopback, for tests.

Plain HTTP: transport security is no part of what these tests hold. Every process carries this
session's FLWR_HOME in its environment; at the end those, and only those, are killed: Flower
detaches what it starts, so that neither parent nor process group names them all.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from ports import free_port

from medfed.server.bundle import run_config, write_bundle

_BINARIES = Path(sys.executable).parent
_START_TIMEOUT_S = 60.0
_POLL_S = 0.3
_ASK_EVERY_S = 30.0


class SuperLinkError(Exception):
    """A process ended early, or a run did not complete; the logs' ends are in the message."""


@dataclass
class SuperLink:
    """A running SuperLink.

    Attributes:
        folder: Its state, logs and Flower's home.
        port: Of its one HTTP port on loopback.
        processes: What was started here, by name; Flower starts more.
    """

    folder: Path
    port: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Environment of all of this session's processes."""
        return {
            **os.environ,
            # Flower looks for its own programs (flower-superexec, flwr-clientapp) on PATH.
            "PATH": os.pathsep.join([str(_BINARIES), os.environ.get("PATH", "")]),
            "FLWR_HOME": str(self.folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        }

    def start(self, name: str, program: str, *arguments: str) -> None:
        """Start a Flower program whose output goes to `name`.log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [str(_BINARIES / program), *arguments],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def start_supernodes(self, names: Sequence[str]) -> None:
        """Start a SuperNode for each site; which run's `site.toml` it reads is `run`'s choice."""
        for name in names:
            site = self.folder / "sites" / name / "site.toml"
            self.start(
                f"supernode-{name}",
                "flower-supernode",
                "--insecure",
                *("--superlink", f"127.0.0.1:{self.port}"),
                *("--port", str(free_port())),
                *("--node-config", f"site={json.dumps(str(site))}"),
            )

    def run(self, arm: Path, timeout_s: float) -> None:
        """Submit the arm in folder `arm` and wait until it has completed.

        Raises:
            SuperLinkError: It failed, or did not complete in time.
        """
        # SuperNodes stay: one that was killed counts as online for a minute. A message starts a
        # new client process, which follows this link to the sites of the run.
        sites = self.folder / "sites"
        sites.unlink(missing_ok=True)
        sites.symlink_to(arm.resolve() / "sites")
        started = self.flwr(
            "run", str(self.folder / "medfed-study"), "loopback", "--run-config", run_config(arm)
        )
        self._wait(str(started["run-id"]), arm / "outcome.json", timeout_s)

    def _wait(self, run_id: str, outcome: Path, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        status, asked = "submitted", time.monotonic()
        while not status.startswith("finished") and time.monotonic() < deadline:
            self.check_alive()
            time.sleep(_POLL_S)
            # Asking takes seconds of a core that the sites need.
            if outcome.exists() or time.monotonic() > asked + _ASK_EVERY_S:
                # `flwr run --stream` exits 0 for failed runs, so the status is asked for.
                [run] = self.flwr("list", "loopback", "--run-id", run_id)["runs"]
                status, asked = str(run["status"]), time.monotonic()
        if status != "finished:completed":
            raise SuperLinkError(
                f"Expected run {run_id} to be finished:completed within {timeout_s:.0f} s, "
                f"got {status}.\n{self.logs()}"
            )

    def flwr(self, *arguments: str) -> dict[str, Any]:
        """Return the JSON answer of a `flwr` command."""
        done = subprocess.run(
            [str(_BINARIES / "flwr"), *arguments, "--format", "json"],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_START_TIMEOUT_S,
            check=False,
        )
        try:
            answer = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            answer = {}
        if done.returncode or not answer.get("success", False):
            raise SuperLinkError(
                f"flwr {' '.join(arguments)} ended with {done.returncode}:\n"
                f"{done.stdout}\n{done.stderr}\n{self.logs()}"
            )
        return dict(answer)

    def kill_client(self, site: str) -> bool:
        """Kill the process that works on a message of `site`; False if there is none now."""
        supernode = self.processes[f"supernode-{site}"].pid
        for process in _processes_of(self):
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{process}/cmdline").read_bytes()
                if b"flwr-clientapp" in command and supernode in _ancestors(process):
                    os.kill(process, signal.SIGKILL)
                    return True
        return False

    def check_alive(self) -> None:
        """Raise if a process that was started here has ended."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise SuperLinkError(f"{name} ended with {process.returncode}.\n{self.logs()}")

    def logs(self) -> str:
        """Return the end of every process' log."""
        ends = []
        for path in sorted(self.folder.glob("*.log")):
            text = path.read_text(encoding="utf-8", errors="replace")
            ends.append(f"----- {path.name}\n{text[-4000:]}")
        return "\n".join(ends)


@contextlib.contextmanager
def superlink(folder: Path) -> Iterator[SuperLink]:
    """Run a SuperLink with its state in `folder` for the time of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "home").mkdir(exist_ok=True)
    link = SuperLink(folder, free_port())
    (folder / "home" / "config.toml").write_text(
        '[superlink]\ndefault = "loopback"\n\n[superlink.loopback]\n'
        f'address = "127.0.0.1:{link.port}"\ninsecure = true\n',
        encoding="utf-8",
    )
    write_bundle(folder / "medfed-study")
    try:
        link.start(
            "superlink",
            "flower-superlink",
            "--insecure",
            *("--host", "127.0.0.1"),
            *("--port", str(link.port)),
            *("--database", str(folder / "state.db")),
        )
        _wait_until_healthy(link)
        yield link
    finally:
        _stop(link)


def _wait_until_healthy(link: SuperLink) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        link.check_alive()
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{link.port}/health", timeout=2).is_success:
                return
        time.sleep(_POLL_S)
    raise SuperLinkError(f"No answer on port {link.port}.\n{link.logs()}")


def _stop(link: SuperLink) -> None:
    """Kill every process of this session and wait until none is left."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while processes := _processes_of(link):
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise SuperLinkError(f"Processes {processes} cannot be killed.")
        time.sleep(0.05)
    for started in link.processes.values():
        started.wait(_START_TIMEOUT_S)


def _processes_of(link: SuperLink) -> list[int]:
    """Return the processes that carry this session's FLWR_HOME, and no other's."""
    mark = f"FLWR_HOME={link.folder / 'home'}".encode()
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in environment.read_bytes().split(b"\0"):
                found.append(int(environment.parent.name))
    return found


def _ancestors(process: int) -> list[int]:
    found = []
    while process > 1:
        # /proc/PID/stat: pid (name) state ppid ...; the name may hold anything but ends the last ).
        stat = Path(f"/proc/{process}/stat").read_text()
        process = int(stat.rpartition(")")[2].split()[1])
        found.append(process)
    return found
