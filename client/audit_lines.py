"""The lines of an audit log: writing and checking one. Format: `client.audit_log`."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from medfed.client.audit_facts import Event, Fact
from medfed.common.ledger.chain import Link, canonical, read_time, write_time

_FIELDS = {"index", "previous", "time", "event", "facts", "hash"}


@dataclass(frozen=True)
class AuditEntry:
    """One line.

    Attributes:
        index: From 0, over all files.
        time: UTC, milliseconds.
        event: What happened.
        facts: About it, by name (`audit_facts`).
        hash: Of the line; the next one names it.
    """

    index: int
    time: str
    event: Event
    facts: dict[str, Fact]
    hash: str

    @property
    def link(self) -> Link:
        """Where the chain goes on after it."""
        return Link(self.index + 1, self.hash, self.time)


def make_line(event: Event, facts: dict[str, Fact], link: Link) -> tuple[bytes, Link]:
    """Return the line that follows `link`, and where the chain goes on after it."""
    body: dict[str, Any] = {
        "index": link.num_entries,
        "previous": link.head,
        # A clock that was set back must not stop the log.
        "time": max(write_time(datetime.now(UTC)), link.time),
        "event": event,
        "facts": facts,
    }
    digest = _digest(body)
    line = canonical({**body, "hash": digest}) + b"\n"
    return line, Link(link.num_entries + 1, digest, body["time"])


def parse_line(line: bytes, link: Link | None = None) -> AuditEntry:
    """Read a line, its end included; with `link`, also hold it to what it must follow.

    Raises:
        ValueError: It is not as this program writes lines, or does not follow.
    """
    try:
        table = json.loads(line)
        if set(table) != _FIELDS or line != canonical(table) + b"\n":
            raise ValueError("it is not written as this program writes entries")
        if table["hash"] != _digest({name: table[name] for name in _FIELDS - {"hash"}}):
            raise ValueError("its hash does not match its content")
        read_time(table["time"])
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if type(table["index"]) is not int or not isinstance(table["facts"], dict):
        raise ValueError("its index or its facts are of another type")
    previous = table.pop("previous")
    entry = AuditEntry(**table)
    if link is not None:
        _check_follows(entry, previous, link)
    return entry


def readable(content: bytes) -> Iterator[AuditEntry]:
    """Yield the entries of whole lines that can be read."""
    for line in content.split(b"\n")[:-1]:
        try:
            yield parse_line(line + b"\n")
        except ValueError:
            continue


def _check_follows(entry: AuditEntry, previous: str, link: Link) -> None:
    if entry.index != link.num_entries:
        raise ValueError(f"it is numbered {entry.index!r}")
    if previous != link.head:
        raise ValueError("it does not follow the line before it")
    if entry.time < link.time:
        raise ValueError("its time is before that of the line before it")


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(body)).hexdigest()
