"""How a ledger is forged: by someone who holds the site's own key, or by someone who does not."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

Entries = list[dict[str, Any]]


def read(state: Path) -> Entries:
    lines = (state / "ledger.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def site_key(state: Path) -> Ed25519PrivateKey:
    key = load_pem_private_key((state / "ledger.key").read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    return key


def write(state: Path, entries: Entries, key: Ed25519PrivateKey | None) -> None:
    """Write entries; with a key they are numbered, chained and signed anew, as real ones."""
    previous = "0" * 64
    lines = []
    for index, entry in enumerate(entries):
        if key is not None:
            entry = {**entry, "index": index, "previous": previous}
            body = {name: entry[name] for name in ("index", "previous", "time", "event")}
            digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
            entry |= {"hash": digest, "signature": key.sign(bytes.fromhex(digest)).hex()}
        previous = entry["hash"]
        lines.append(json.dumps(entry, sort_keys=True) + "\n")
    (state / "ledger.jsonl").write_text("".join(lines))


def forge(
    state: Path, change: Callable[[Entries], Entries], *, key: Ed25519PrivateKey | None = None
) -> None:
    """Change a ledger; signed anew with the key, if there is one."""
    write(state, change(read(state)), key)
