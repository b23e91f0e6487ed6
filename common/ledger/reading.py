"""Reading a ledger: which lines there are, and verifying them with the help of a seal.

Nothing here changes a file: `read_ledger` is for auditors, reports and copies.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from medfed.common.errors import LedgerError
from medfed.common.ledger.chain import Entry, Link, verify
from medfed.common.ledger.keys import load_public_key
from medfed.common.ledger.seal import Seal, read_seal
from medfed.common.ledger.summary import Summary

if TYPE_CHECKING:
    from hashlib import _Hash

LEDGER = "ledger.jsonl"
PUBLIC_KEY = "ledger.pub"
SEAL = "ledger.seal"


@dataclass(frozen=True)
class LedgerCopy:
    """A ledger as it lies in its folder, verified.

    Attributes:
        entries: Oldest first.
        torn: What a power cut left of a last line: no entry of it counts yet.
    """

    entries: tuple[Entry, ...]
    torn: bytes = b""


@dataclass(frozen=True)
class Verified:
    """What is known of a ledger's bytes after they were verified.

    Attributes:
        link: Where the chain goes on.
        summary: What the entries come to.
        num_bytes: How many bytes there are.
        digest: SHA-256 of them, to go on with.
        sealed: Whether a seal covers them all already.
    """

    link: Link
    summary: Summary
    num_bytes: int
    digest: "_Hash"
    sealed: bool


def read_ledger(folder: Path) -> LedgerCopy:
    """Verify the ledger in `folder` by its public key, line by line, and change nothing.

    Raises:
        LedgerError: No ledger or key there; or naming the first entry that cannot be trusted.
    """
    if not (folder / LEDGER).is_file():
        raise LedgerError(f"Expected a ledger at {folder / LEDGER}, found none.")
    return read_copy(folder, load_public_key(folder / PUBLIC_KEY))


def read_copy(folder: Path, public_key: Ed25519PublicKey) -> LedgerCopy:
    """Verify the ledger in `folder` by `public_key`; none there is an empty one.

    Raises:
        LedgerError: Naming the first entry that cannot be trusted.
    """
    # The seal first: another process may append, and a seal never runs ahead of its ledger.
    seal = read_seal(folder / SEAL, public_key)
    content, torn = split(read_bytes(folder / LEDGER))
    name = str(folder / LEDGER)
    entries = verify(_lines(content), public_key, name)
    # A line that lacks its line feed only may be the last one that the seal covers.
    sealed = content + torn + b"\n" if is_whole(torn) else content
    if seal is not None and _digest(sealed, seal) is None:
        raise _entries_removed(name, seal, len(entries))
    return LedgerCopy(entries, torn)


def verify_with_seal(
    content: bytes, seal: Seal | None, public_key: Ed25519PublicKey, name: str
) -> Verified:
    """Verify the whole lines in `content`, but for those that a genuine `seal` covers.

    Raises:
        LedgerError: Naming the first entry that cannot be trusted; or entries are gone that the
            seal covers.
    """
    digest = None if seal is None else _digest(content, seal)
    if seal is not None and digest is not None:
        fresh = verify(_lines(content[seal.num_bytes :]), public_key, name, seal.link)
        digest.update(memoryview(content)[seal.num_bytes :])
        link = seal.link.after(fresh[-1]) if fresh else seal.link
        summary = seal.summary.plus(*(entry.spend for entry in fresh))
        return Verified(link, summary, len(content), digest, sealed=not fresh)
    entries = verify(_lines(content), public_key, name)
    if seal is not None:
        raise _entries_removed(name, seal, len(entries))
    link = Link().after(entries[-1]) if entries else Link()
    summary = Summary.of(entry.spend for entry in entries)
    return Verified(link, summary, len(content), hashlib.sha256(content), sealed=False)


def read_bytes(path: Path) -> bytes:
    """Return a ledger's bytes; none if there is no file.

    Raises:
        LedgerError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise LedgerError(f"{path} cannot be read ({error}). No training without it.") from None


def split(content: bytes) -> tuple[bytes, bytes]:
    """Return the whole lines, and what follows the last line end (empty unless torn)."""
    if content.endswith(b"\n"):
        return content, b""
    whole = content.rfind(b"\n") + 1
    return content[:whole], content[whole:]


def is_whole(torn: bytes) -> bool:
    """Whether a last line without line end holds a whole entry: no shorter part of one parses."""
    try:
        json.JSONDecoder().raw_decode(torn.decode(errors="replace"))
    except ValueError:
        return False
    return True


def _lines(content: bytes) -> list[bytes]:
    # Not splitlines: that also ends lines at carriage returns.
    return [line + b"\n" for line in content.split(b"\n")[:-1]]


def _digest(content: bytes, seal: Seal) -> "_Hash | None":
    """SHA-256 of the bytes that `seal` covers; None if they are not in `content`."""
    if seal.num_bytes > len(content):
        return None
    digest = hashlib.sha256(memoryview(content)[: seal.num_bytes])
    return digest if digest.hexdigest() == seal.sha256 else None


def _entries_removed(name: str, seal: Seal, num_entries: int) -> LedgerError:
    return LedgerError(
        f"{name}: entries were removed or replaced. The {num_entries} that it holds are genuine, "
        f"but ledger.seal, signed by this site, covers {seal.link.num_entries} that are not these: "
        "an older backup was restored, or somebody cut the ledger. No training on this data set. "
        "Restore the newest copy of both files."
    )
