"""The seal: which bytes of a ledger were verified already, and what they sum up to.

Signed by the site's own key over a text that no entry's signature can be mistaken for. Trusted no
more than an entry: whoever could forge a seal could sign entries. See the package's docstring.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from medfed.common.ledger.chain import Link, canonical
from medfed.common.ledger.summary import Group, Summary, Total

log = logging.getLogger(__name__)

# Raise the number whenever lines are verified more strictly: older seals then mean nothing.
_PURPOSE = b"medfed ledger seal 1\n"


@dataclass(frozen=True)
class Seal:
    """What was verified.

    Attributes:
        num_bytes: Size of the part of `ledger.jsonl`, from its beginning.
        sha256: Of those bytes.
        link: Where the chain goes on after them.
        summary: What their entries come to.
    """

    num_bytes: int
    sha256: str
    link: Link
    summary: Summary


def write_seal(path: Path, seal: Seal, key: Ed25519PrivateKey) -> None:
    """Sign `seal` and write it over the one at `path`, with the ledger's lock held.

    In place, and not flushed to the disk: a seal that is torn by a power cut, or read while it is
    written, is none, which costs a second and not an entry. For the same reason a full disk is no
    error. Renaming a new file over the old would take 0.2 ms a round where this takes 0.01.
    """
    body = _to_table(seal)
    signature = key.sign(_PURPOSE + canonical(body)).hex()
    try:
        with path.open("r+b" if path.exists() else "wb") as file:
            file.write(canonical({**body, "signature": signature}) + b"\n")
            file.truncate()
    except OSError as error:
        log.warning("%s could not be written (%s): opening the ledger will be slow.", path, error)


def read_seal(path: Path, public_key: Ed25519PublicKey) -> Seal | None:
    """Return the seal at `path`, or None unless it is whole and signed by `public_key`."""
    try:
        content = path.read_bytes()
        table = json.loads(content)
        signature = bytes.fromhex(table.pop("signature"))
        public_key.verify(signature, _PURPOSE + canonical(table))
        return _from_table(table)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    except InvalidSignature:
        return None


def _to_table(seal: Seal) -> dict[str, Any]:
    return {
        "bytes": seal.num_bytes,
        "sha256": seal.sha256,
        "entries": seal.link.num_entries,
        "head": seal.link.head,
        "time": seal.link.time,
        "spent": [
            {**group._asdict(), **total._asdict()}
            for group, total in sorted(seal.summary.groups.items())
        ],
    }


def _from_table(table: dict[str, Any]) -> Seal:
    groups = {
        Group(*(row[name] for name in Group._fields)): Total(row["entries"], row["steps"])
        for row in table["spent"]
    }
    link = Link(table["entries"], table["head"], table["time"])
    return Seal(table["bytes"], table["sha256"], link, Summary(groups))
