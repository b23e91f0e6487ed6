"""The SuperLink's log: readable, and no larger than what a minute may write."""

import logging
import time

_LINES_A_MINUTE = 600
_MINUTE_S = 60.0
# What the supervisor asks every two seconds.
_ROUTINE = frozenset({"ControlServicer.ListNodes", "ControlServicer.ListRuns"})


class LineBudget(logging.Filter):
    """Lets so many lines a minute pass: a site can make Flower complain as often as it likes."""

    def __init__(self, lines_a_minute: int = _LINES_A_MINUTE) -> None:
        super().__init__()
        self._allowed = lines_a_minute
        self._began = time.monotonic()
        self._seen = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Count the record; the last one that passes says that others do not."""
        now = time.monotonic()
        if now >= self._began + _MINUTE_S:
            self._began, self._seen = now, 0
        if record.getMessage() in _ROUTINE:
            return False
        self._seen += 1
        if self._seen == self._allowed:
            record.msg, record.args = "Too many lines: the rest of this minute is left out", None
        return self._seen <= self._allowed


def log_to_stderr() -> None:
    """Send our own lines and Flower's to standard error, which the supervisor keeps."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(LineBudget())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    flower = logging.getLogger("flwr")
    flower.handlers.clear()  # coloured, and beside ours
    flower.propagate = True
    flower.setLevel(logging.INFO)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # how the database is laid out
    # Strangers can make uvicorn complain as often as they like.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
