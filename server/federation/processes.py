"""The coordinator's processes: which there are, how they are started, and what is left of them."""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from medfed.common.keeping import KeptChild
from medfed.common.processes import programs_folder, quiet_flower
from medfed.server.bundle import RUNS_FOLDER
from medfed.server.federation.home import FederationHome

LOOPBACK = "127.0.0.1"

_STOP_PATIENCE_S = 10.0

# Memory of pieces of messages goes back to the system at once: at 16 sites with 25 MB each the
# SuperLink's peak is 0.7 to 0.9 of what it is without (glibc only; others ignore it).
_MALLOC = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": str(256 * 1024)}


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


def child(name: str, command: list[str], home: FederationHome) -> KeptChild:
    """Return one of the supervisor's children, not started yet."""
    environment = quiet_flower(flower_home(home))
    environment[RUNS_FOLDER] = str(home.runs_folder.resolve())
    environment = {**_MALLOC, **environment}
    return KeptChild(name, home.logs_folder, command, environment)


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
