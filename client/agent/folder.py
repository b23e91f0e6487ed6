"""`state/agent/`: how a site's processes tell one another, and a person, what they are doing.

status.json     the supervisor's word on the whole: `Status`
worker.json     the worker's word on itself: `WorkerState`
task.json       the message in hand; a worker that dies leaves it to its successor. Secret.
paused          exists while the site is paused
lock            held by the one supervisor
superexec.secret  lets the worker, and nobody else, take messages from the SuperNode
logs/           what the processes print
"""

import json
import os
import secrets
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from medfed.client.site import SiteConfig
from medfed.common.files import make_private, write_atomically, write_json, write_secret

State = Literal["starting", "connecting", "waiting", "working", "paused", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True)
class WorkerState:
    """What the worker is doing.

    Attributes:
        pid: Its process.
        beat: `time.monotonic` of its last sign of life; the same clock in all processes of a boot.
        working: A message is in hand.
        deadline: `time.monotonic` after which the message is given up; 0 if none is in hand.
        study: Of the message in hand, or the last; so are the next three.
        run: The run's identifier.
        kind: join, words, train, evaluate, ...
        round_number: 0 outside of rounds.
        since: When the message in hand came, UTC, ISO 8601.
        messages: Messages answered since the worker started.
    """

    pid: int
    beat: float
    working: bool = False
    deadline: float = 0.0
    study: str = ""
    run: str = ""
    kind: str = ""
    round_number: int = 0
    since: str = ""
    messages: int = 0


@dataclass(frozen=True, kw_only=True)
class Status:
    """What a person is told.

    Attributes:
        pid: The supervisor's process.
        state: In a word.
        reason: Why, where the word needs one.
        since: When this state began, UTC, ISO 8601.
        heartbeat: When this was written, UTC, ISO 8601.
        study: Of the message in hand, or the last; so are the next three.
        run: The run's identifier.
        kind: join, words, train, evaluate, ...
        round_number: 0 outside of rounds.
        supernode_pid: 0 if it does not run.
        worker_pid: 0 if it does not run.
        worker_restarts: Since the supervisor started.
        messages: Messages answered since the supervisor started.
    """

    pid: int
    state: State
    reason: str = ""
    since: str = ""
    heartbeat: str = ""
    study: str = ""
    run: str = ""
    kind: str = ""
    round_number: int = 0
    supernode_pid: int = 0
    worker_pid: int = 0
    worker_restarts: int = 0
    messages: int = 0


class AgentFolder:
    """The files of `state/agent/`."""

    def __init__(self, site: SiteConfig) -> None:
        self.folder = site.state_folder / "agent"
        self.status_file = self.folder / "status.json"
        self.worker_file = self.folder / "worker.json"
        self.task_file = self.folder / "task.json"
        self.paused_file = self.folder / "paused"
        self.lock_file = self.folder / "lock"
        self.secret_file = self.folder / "superexec.secret"
        self.flower_home = self.folder / "flower"
        self.logs = self.folder / "logs"

    def make(self) -> None:
        """Make the folders, for this user's eyes alone."""
        for folder in (self.folder, self.logs, self.flower_home):
            make_private(folder)

    def new_secret(self) -> None:
        """Replace the secret between SuperNode and worker."""
        write_secret(self.secret_file, secrets.token_hex(32).encode())

    def pause(self, reason: str) -> None:
        """Answer no message from now on but with "paused"."""
        self.make()
        write_atomically(self.paused_file, f"{reason}\n".encode())

    def resume(self) -> bool:
        """Answer again; False if the site was not paused."""
        try:
            self.paused_file.unlink()
        except FileNotFoundError:
            return False
        return True

    @property
    def paused(self) -> bool:
        """Whether the site is paused."""
        return self.paused_file.exists()

    def write_status(self, status: Status) -> None:
        """Write what a person is told."""
        write_json(self.status_file, asdict(status))

    def read_status(self) -> Status | None:
        """Return what was written last; None if there is nothing that can be read."""
        table = _read(self.status_file)
        try:
            return None if table is None else Status(**table)
        except TypeError:
            return None

    def write_worker(self, state: WorkerState) -> None:
        """Write what the worker is doing: whole, but not through to the disk."""
        aside = self.worker_file.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(asdict(state)), encoding="utf-8")
        aside.replace(self.worker_file)

    def read_worker(self) -> WorkerState | None:
        """Return what the worker wrote last; None if there is nothing that can be read."""
        table = _read(self.worker_file)
        try:
            return None if table is None else WorkerState(**table)
        except TypeError:
            return None


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def clock() -> float:
    """Return seconds of a clock that all processes share and nobody sets."""
    return time.monotonic()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return table if isinstance(table, dict) else None
