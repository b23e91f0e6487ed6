"""What the coordinator's gate turned away: a list that the gate appends to, and the rounds read.

An update that is too large never gets as far as the ServerApp: without this its site would be late,
and nobody would know why.
"""

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

_UPLOADS = "/v1/fleet/push-"
_MAX_CHARACTERS = 200


class _Rejection(NamedTuple):
    time: datetime
    reason: str


class TurnedAway:
    """Follows the list from where it ends now.

    Args:
        path: rejections.jsonl: {"time", "site", "what", "reason"} a line; empty for none.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None
        self._read = self._size()
        self._last: dict[str, _Rejection] = {}
        self._uploads: dict[str, datetime] = {}

    def reasons(self, since: str) -> dict[str, str]:
        """Return the last reason by site, of those turned away at `since` (ISO) or later."""
        self._follow()
        start = datetime.fromisoformat(since)
        return {site: last.reason for site, last in self._last.items() if last.time >= start}

    def upload_age_s(self, site: str, since: str) -> float:
        """Return how long ago an answer of `site` was turned away, if that was after `since`.

        0 if none was: it may still answer.
        """
        self._follow()
        time = self._uploads.get(site)
        if time is None or time < datetime.fromisoformat(since):
            return 0.0
        return max(0.0, (datetime.now(UTC) - time).total_seconds())

    def _follow(self) -> None:
        size = self._size()
        if self._path is None or size == self._read:
            return
        if size < self._read:  # a full list was begun anew
            self._read = 0
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                content = file.read()
        except OSError as error:
            log.warning("%s cannot be read (%s).", self._path, error)
            return
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            self._note(line)

    def _note(self, line: bytes) -> None:
        try:
            table = json.loads(line)
            site, what = str(table["site"]), str(table["what"])
            time = datetime.fromisoformat(table["time"]).astimezone(UTC)
            reason = str(table["reason"])[:_MAX_CHARACTERS]
        except (ValueError, TypeError, KeyError):
            log.warning("A line of %s cannot be read.", self._path)
            return
        if site:
            self._last[site] = _Rejection(time, reason)
            if what.startswith(_UPLOADS):
                self._uploads[site] = time

    def _size(self) -> int:
        return self._path.stat().st_size if self._path is not None and self._path.exists() else 0
