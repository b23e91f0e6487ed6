"""A child process that is started again whenever it ends, more slowly each time it ends early."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from medfed.common.processes import kill_child, start_child, stop_child

_FIRST_BACKOFF_S = 1.0
_LONGEST_BACKOFF_S = 60.0
_STEADY_S = 60.0
_LARGE_LOG_BYTES = 8 << 20


class KeptChild:
    """One such child.

    Args:
        name: For logs: its output goes to NAME.log.
        logs: Folder of logs.

    Attributes:
        restarts: How often it was started again.
        exit_code: Of the last end; None before the first.
    """

    def __init__(self, name: str, logs: Path) -> None:
        self.name = name
        self.log = logs / f"{name}.log"
        self.restarts = 0
        self.exit_code: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._not_before = 0.0
        self._backoff_s = _FIRST_BACKOFF_S

    @property
    def pid(self) -> int:
        """Its process; 0 while it does not run."""
        return self._process.pid if self._process is not None and self.runs else 0

    @property
    def runs(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def age_s(self) -> float:
        """Seconds since it was last started."""
        return time.monotonic() - self._started

    def has_ended(self) -> bool:
        """Notice that it ended, once: the next start has to wait the longer the sooner it did."""
        if self._process is None or self._process.poll() is None:
            return False
        self.exit_code = self._process.returncode
        self._process = None
        if self.age_s > _STEADY_S:
            self._backoff_s = _FIRST_BACKOFF_S
        self._not_before = time.monotonic() + self._backoff_s
        self._backoff_s = min(self._backoff_s * 2, _LONGEST_BACKOFF_S)
        return True

    @property
    def is_due(self) -> bool:
        """Whether it does not run and its wait is over."""
        return self._process is None and time.monotonic() >= self._not_before

    def start_within(self, seconds: float) -> None:
        """Let the next start wait for so long at most, however soon the last one ended."""
        self._not_before = min(self._not_before, time.monotonic() + seconds)

    def start(
        self, command: Sequence[str | os.PathLike[str]], environment: Mapping[str, str]
    ) -> None:
        """Start it.

        Raises:
            OSError: It cannot be started.
        """
        if self._started:
            self.restarts += 1
        with suppress(FileNotFoundError):
            if self.log.stat().st_size > _LARGE_LOG_BYTES:
                self.log.replace(self.log.with_suffix(".log.1"))
        self._started = time.monotonic()
        self._process = start_child(command, environment=environment, log=self.log)

    def stop(self, patience_s: float) -> None:
        """End it in order, and for good."""
        if self._process is not None:
            stop_child(self._process, patience_s)
            self._process = None

    def kill(self) -> None:
        """End it at once; it is started again without a wait."""
        if self._process is not None:
            kill_child(self._process)
            self._process = None
        self._not_before = 0.0

    def last_words(self, num_bytes: int = 4000) -> str:
        """Return the end of its log."""
        try:
            with self.log.open("rb") as file:
                file.seek(0, 2)
                file.seek(max(0, file.tell() - num_bytes))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""
