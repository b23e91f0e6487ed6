"""The chain of a ledger's lines: writing and checking them. Format: the package's docstring."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from medfed.common.errors import LedgerError
from medfed.common.ledger.spends import Spend

GENESIS = "0" * 64
_FIELDS = {"index", "previous", "time", "event", "hash", "signature"}


@dataclass(frozen=True)
class Entry:
    """One verified line of a ledger."""

    index: int
    time: str
    spend: Spend
    hash: str


@dataclass(frozen=True)
class Link:
    """Where a chain goes on: how many entries there are, and the last one's hash and time."""

    num_entries: int = 0
    head: str = GENESIS
    time: str = ""

    def after(self, entry: Entry) -> "Link":
        """Return where it goes on after `entry`."""
        return Link(entry.index + 1, entry.hash, entry.time)


def canonical(table: dict[str, Any]) -> bytes:
    """Return the one spelling of `table` that is hashed and signed."""
    return json.dumps(table, sort_keys=True).encode()


def write_time(moment: datetime) -> str:
    """Return `moment` as ledgers state it: UTC, milliseconds."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")


def read_time(text: str) -> datetime:
    """Read a time as ledgers state it.

    Raises:
        ValueError: It is written in another way.
    """
    moment = datetime.fromisoformat(text)
    if moment.utcoffset() != timedelta(0) or write_time(moment) != text:
        raise ValueError(f"its time {text!r} is not UTC in milliseconds")
    return moment


def make_line(spend: Spend, link: Link, key: Ed25519PrivateKey) -> tuple[bytes, Entry]:
    """Return the signed line of `spend` that follows `link`, and what it says."""
    body: dict[str, Any] = {
        "index": link.num_entries,
        "previous": link.head,
        # A clock that was set back must not close the data set for good.
        "time": max(write_time(datetime.now(UTC)), link.time),
        "event": asdict(spend),
    }
    digest = hashlib.sha256(canonical(body)).hexdigest()
    signature = key.sign(bytes.fromhex(digest)).hex()
    line = canonical({**body, "hash": digest, "signature": signature}) + b"\n"
    return line, Entry(body["index"], body["time"], spend, digest)


def verify(
    lines: Iterable[bytes], public_key: Ed25519PublicKey, name: str, start: Link | None = None
) -> tuple[Entry, ...]:
    """Check the chain, the times and every signature of a ledger's lines.

    Args:
        lines: Whole lines, their line ends included.
        public_key: The site's.
        name: What to call the ledger in an error.
        start: What the lines follow; None for the beginning.

    Raises:
        LedgerError: Naming the first entry that cannot be trusted.
    """
    link = start or Link()
    entries: list[Entry] = []
    for line in lines:
        try:
            entry = _read_line(line, link, public_key)
        except InvalidSignature:
            raise _untrusted(name, link, "its signature is not this site's") from None
        except KeyError as error:
            raise _untrusted(name, link, f"it lacks {error}") from None
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise _untrusted(name, link, str(error)) from None
        entries.append(entry)
        link = link.after(entry)
    return tuple(entries)


def _read_line(line: bytes, link: Link, public_key: Ed25519PublicKey) -> Entry:
    table = json.loads(line)
    if set(table) != _FIELDS or line != canonical(table) + b"\n":
        raise ValueError("it is not written as this program writes entries")
    if type(table["index"]) is not int or table["index"] != link.num_entries:
        raise ValueError(f"it is numbered {table['index']!r}")
    if table["previous"] != link.head:
        raise ValueError("it does not follow the entry before it")
    body = {name: table[name] for name in ("index", "previous", "time", "event")}
    if table["hash"] != hashlib.sha256(canonical(body)).hexdigest():
        raise ValueError("its hash does not match its content")
    signature = bytes.fromhex(table["signature"])
    if signature.hex() != table["signature"]:  # fromhex also reads capitals and spaces
        raise ValueError("its signature is not written as this program writes it")
    public_key.verify(signature, bytes.fromhex(table["hash"]))
    if link.time and read_time(table["time"]) < read_time(link.time):
        raise ValueError(f"its time {table['time']} is before that of the entry before it")
    return parse(table)


def parse(table: dict[str, Any]) -> Entry:
    """Read a line's table; whether to trust it is checked elsewhere.

    Raises:
        ValueError, TypeError: A value that means nothing, or an unknown field.
    """
    read_time(table["time"])
    return Entry(table["index"], table["time"], Spend(**table["event"]), table["hash"])


def _untrusted(name: str, link: Link, why: str) -> LedgerError:
    return LedgerError(
        f"{name}: entry {link.num_entries} cannot be trusted: {why}. No training on this data set. "
        "Restore the ledger from a backup; never edit it."
    )
