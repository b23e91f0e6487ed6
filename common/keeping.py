"""A child process that is started again whenever it ends, after a pause that grows."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from medfed.common.processes import kill_child, start_child, stop_child

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
# What has lived so long starts again after the first pause.
_SOUND_S = 60.0
_MAX_LOG_BYTES = 16 * 1024 * 1024
_STOP_PATIENCE_S = 10.0
_MAX_REASON = 300


class KeptChild:
    """One such child. It gets SIGKILL when its parent ends, whatever ends that.

    Args:
        name: Names its log.
        logs: Folder of logs; made if there is none.
        command: Program and arguments.
        environment: The whole environment.

    Attributes:
        command: For the next start.
        restarts: How often it ended by itself.
        exit_code: Of the last such end; negative for a signal.
        problem: How it ended last, while it is down.
    """

    def __init__(
        self,
        name: str,
        logs: Path,
        command: Sequence[str | os.PathLike[str]],
        environment: Mapping[str, str],
    ) -> None:
        self.name = name
        self.log = logs / f"{name}.log"
        self.command = command
        self.restarts = 0
        self.exit_code = 0
        self.problem = ""
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._is_stopped = False
        self._started = 0.0
        self._log_start = 0
        self._due = 0.0
        self._pause_s = _FIRST_PAUSE_S

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

    def keep_alive(self) -> bool:
        """Start it if it is down and its pause is over; return whether it was seen to end."""
        now = time.monotonic()
        has_ended = self._process is not None and self._process.poll() is not None
        if has_ended:
            self._note_end(now)
        if self._process is None and now >= self._due:
            self._start(now)
        return has_ended

    def stop(self, patience_s: float = _STOP_PATIENCE_S) -> None:
        """End it in order; `keep_alive` would start it again."""
        self._is_stopped = True
        if self._process is not None:
            stop_child(self._process, patience_s)
            self._process = None

    def kill(self) -> None:
        """End it at once; `keep_alive` starts it again without a pause."""
        if self._process is not None:
            kill_child(self._process)
            self._process = None
            self.restarts += 1
        self._due = 0.0

    def start_within(self, seconds: float) -> None:
        """Let the next start wait for so long at most, however soon the last one ended."""
        self._due = min(self._due, time.monotonic() + seconds)

    def last_words(self, num_bytes: int = 4096) -> str:
        """Return the end of what it has said since it was last started."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(self._log_start, os.fstat(file.fileno()).st_size - num_bytes))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def _start(self, now: float) -> None:
        try:
            self.log.parent.mkdir(exist_ok=True)
            if self.log.exists() and self.log.stat().st_size > _MAX_LOG_BYTES:
                self.log.replace(self.log.with_name(f"{self.log.name}.1"))
            self._log_start = self.log.stat().st_size if self.log.exists() else 0
            self._process = start_child(self.command, environment=self._environment, log=self.log)
        except OSError as error:  # a full disk, or no memory: that may pass
            self.problem = f"{self.name} cannot be started: {error}"
            self._pause(now)
            return
        self._started = now
        self._is_stopped = False
        self.problem = ""

    def _note_end(self, now: float) -> None:
        assert self._process is not None
        self.exit_code = self._process.returncode
        self._process = None
        self.restarts += 1
        if now - self._started > _SOUND_S:
            self._pause_s = _FIRST_PAUSE_S
        self._pause(now)
        # Who was killed had no time to say why.
        last_line = self.last_words().strip().rpartition("\n")[2][-_MAX_REASON:]
        how = f"exit code {self.exit_code}: {last_line or f'see {self.log}'}"
        if self.exit_code < 0:
            how = f"signal {-self.exit_code}"
        self.problem = f"{self.name} ended with {how}"

    def _pause(self, now: float) -> None:
        self._due = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
