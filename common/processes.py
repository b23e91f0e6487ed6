"""Child processes that never outlive their parent, whatever ends it."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_LOOPBACK = "127.0.0.1,localhost"


def programs_folder() -> Path:
    """Return where this installation's programs (flower-supernode and its kin) lie."""
    return Path(sys.executable).parent


def quiet_flower(home: Path) -> dict[str, str]:
    """Return the environment in which Flower's programs keep to themselves.

    No telemetry, no update check, nothing installed at run time, and all that they write under
    `home`.
    """
    path = os.pathsep.join([str(programs_folder()), os.environ.get("PATH", "")])
    # Calls within this machine must not go by way of a proxy; httpx reads either spelling.
    own = ",".join(
        filter(None, [os.environ.get("NO_PROXY") or os.environ.get("no_proxy", ""), _LOOPBACK])
    )
    return {
        **os.environ,
        "NO_PROXY": own,
        "no_proxy": own,
        # Flower looks for its own programs on PATH.
        "PATH": path,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }


def start_child(
    command: Sequence[str | os.PathLike[str]], *, environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """Start a program that gets SIGKILL when the thread that called this ends.

    It has a session of its own: Ctrl-C is for the parent, which ends its children in order.

    Args:
        command: Program and arguments.
        environment: The whole environment.
        log: File that its output is appended to.

    Raises:
        OSError: The program cannot be started, or the log cannot be written.
    """
    parent = os.getpid()
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603 - our own programs
            [os.fspath(part) for part in command],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent(parent),
        )


def stop_child(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """End a child: SIGTERM, then SIGKILL to it and its group if it has not ended in time."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            kill_child(process)


def kill_child(process: subprocess.Popen[bytes]) -> None:
    """End a child and its group at once."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            process.kill()
        process.wait()


def is_alive(pid: int) -> bool:
    """Return whether a process of this number runs, someone else's included."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _die_with_parent(parent: int) -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    # Loaded before the fork: afterwards nothing may take a lock.
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def ask_for_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended in between
            os._exit(1)

    return ask_for_signal
