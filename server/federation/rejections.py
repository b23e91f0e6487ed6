"""What the gate turned down, for people to read. A flood of requests cannot fill the disk."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

_log = logging.getLogger(__name__)

LINES_A_MINUTE = 30
MAX_BYTES = 4 * 1024 * 1024
_MINUTE_S = 60.0
_MAX_PATH = 200


@dataclass
class _Minute:
    """What one sender was turned down for in the minute that began at `began`."""

    began: float = float("-inf")
    written: int = 0
    left_out: int = 0


@dataclass
class Rejections:
    """Appends to `rejections.jsonl`: time, site, what, reason. Never a request's body.

    Attributes:
        path: The file; once it is full it becomes `.1`, and what was that is dropped.
        clock: Seconds that only grow.
    """

    path: Path
    clock: Callable[[], float] = time.monotonic
    _minutes: dict[str, _Minute] = field(default_factory=dict)

    def add(self, site: str, what: str, reason: str) -> None:
        """Note a request that was turned down.

        Each site has its own share of lines, strangers one together: who floods the gate crowds
        out no other's.

        Args:
            site: Name of an invited site that the request was proven to come from, else "".
            what: The path that was asked for.
            reason: In our words.
        """
        minute = self._minutes.setdefault(site, _Minute())
        if self.clock() >= minute.began + _MINUTE_S:
            if minute.left_out:
                self._append(site, "", f"{minute.left_out} more in the minute before")
            minute = self._minutes[site] = _Minute(began=self.clock())
        if minute.written >= LINES_A_MINUTE:
            minute.left_out += 1
            return
        minute.written += 1
        self._append(site, what[:_MAX_PATH], reason)

    def _append(self, site: str, what: str, reason: str) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "site": site, "what": what, "reason": reason})
        try:
            if self.path.exists() and self.path.stat().st_size > MAX_BYTES:
                self.path.replace(self.path.with_name(f"{self.path.name}.1"))
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:  # a full disk must not keep the gate from saying no
            _log.error("%s cannot be written: %s", self.path, error)
