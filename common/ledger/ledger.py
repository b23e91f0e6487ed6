"""The privacy ledger of one data set: append-only facts about what was released.

One JSON line an entry, chained by SHA-256 and signed with the site's Ed25519 key:

    {"index": 0, "previous": "000...", "time": "2026-...Z", "event": {...}, "hash": "...",
     "signature": "..."}

`event` is a `Spend`, all its fields by name: a round's training, or words named from reports.
`hash` covers index, previous, time and event; `signature` covers the hash. An entry is written and
flushed to disk *before* the release, so that a crash can only over-count. A lock file keeps two
processes from spending at once. A torn last line (power cut while writing) is set aside, because
its spend never began; a last line that lacks its line end only is kept, because it may have. Any
other damage is a LedgerError naming the entry, and there is no training.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from medfed.common.accounting import GaussianEvent
from medfed.common.errors import LedgerError
from medfed.common.files import sync_folder

GENESIS = "0" * 64
_FIELDS = {"index", "previous", "time", "event", "hash", "signature"}


@dataclass(frozen=True, kw_only=True)
class Spend:
    """One release of this site, as the ledger states it: a round's training, or words.

    Words have round_number 0, images_per_patient 0, sample_rate 1.0 and one step: one Gaussian
    release of all patients' words (client/privacy/words.py).

    Attributes:
        release: Names the release: study, run, round and the weights that training started from.
            With seeded noise the same name gives the same bits, so it is charged once.
        study: Digest of the study as the site saw it.
        run: The run's identifier.
        round_number: 1-based federated round.
        unit: Unit of privacy, patient or record.
        images_per_patient: K, the most images of a patient in one step.
        noise_multiplier: Noise standard deviation over max_grad_norm.
        sample_rate: Public Poisson rate of a unit.
        steps: Optimiser steps, each one Gaussian release.
        max_grad_norm: L2 bound on a unit's gradient; on a patient's weights of words.
        noise: secure (operating system's generator) or seeded (simulation; not private).
        kind: training or words.
        extra_delta: Part of delta that the release costs besides its noise; 0 for training.
    """

    release: str
    study: str
    run: str
    round_number: int
    unit: str
    images_per_patient: int
    noise_multiplier: float
    sample_rate: float
    steps: int
    max_grad_norm: float
    noise: Literal["secure", "seeded"]
    kind: Literal["training", "words"] = "training"
    extra_delta: float = 0.0

    @property
    def event(self) -> GaussianEvent:
        """What the accountant counts."""
        return GaussianEvent(self.noise_multiplier, self.sample_rate, self.steps, self.extra_delta)


@dataclass(frozen=True)
class Entry:
    """One verified line of a ledger."""

    index: int
    time: str
    spend: Spend
    hash: str


class Ledger:
    """The ledger in `folder`; made with its key if the folder is new. Use `locked()` to spend."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "ledger.jsonl"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._key = self._load_or_make_key()
        public = self._key.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        public_file = folder / "ledger.pub"
        if not public_file.exists():
            public_file.write_bytes(public)

    def entries(self) -> tuple[Entry, ...]:
        """Return every entry, verified.

        Raises:
            LedgerError: Naming the first entry that is damaged, out of order or forged.
        """
        lines, torn = _read_lines(self.path)
        if torn:
            raise LedgerError(
                f"{self.path} ends in a torn line after entry {len(lines) - 1}. "
                "Open it with locked() to set the line aside."
            )
        return verify(lines, self._key.public_key(), str(self.path))

    @contextmanager
    def locked(self) -> Iterator["LockedLedger"]:
        """Hold this ledger alone: read what was spent and append, with no other process between."""
        with self._alone():
            lines, torn = _read_lines(self.path)
            whole = _is_whole(torn)
            if whole:
                lines.append(torn + b"\n")
            entries = verify(lines, self._key.public_key(), str(self.path))
            if whole:
                _write_through(self.path, b"\n")
            elif torn:
                _set_torn_line_aside(self.path, torn)
            yield LockedLedger(self.path, self._key, list(entries))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (self.folder / "ledger.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _load_or_make_key(self) -> Ed25519PrivateKey:
        path = self.folder / "ledger.key"
        if not path.exists():
            with self._alone():  # two processes may both find none
                if not path.exists():
                    _make_key(path, has_entries=self.path.exists())
        return _load_key(path)


class LockedLedger:
    """A ledger while its lock is held."""

    def __init__(self, path: Path, key: Ed25519PrivateKey, entries: list[Entry]) -> None:
        self._path = path
        self._key = key
        self.entries = entries

    def append(self, spend: Spend) -> Entry:
        """Sign `spend` and write it through to the disk."""
        body: dict[str, Any] = {
            "index": len(self.entries),
            "previous": self.entries[-1].hash if self.entries else GENESIS,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": asdict(spend),
        }
        digest = _hash(body)
        signature = self._key.sign(bytes.fromhex(digest)).hex()
        line = json.dumps({**body, "hash": digest, "signature": signature}, sort_keys=True) + "\n"
        is_new = not self._path.exists()
        _write_through(self._path, line.encode())
        if is_new:
            sync_folder(self._path.parent)
        entry = Entry(body["index"], body["time"], spend, digest)
        self.entries.append(entry)
        return entry


def verify(lines: list[bytes], public_key: Ed25519PublicKey, name: str) -> tuple[Entry, ...]:
    """Check the chain and every signature of a ledger's lines.

    Raises:
        LedgerError: Naming the first entry that cannot be trusted.
    """
    previous = GENESIS
    entries: list[Entry] = []
    for index, line in enumerate(lines):
        try:
            table = json.loads(line)
            if set(table) != _FIELDS or line != _canonical(table):
                raise ValueError("it is not written as this program writes entries")
            if table["index"] != index or table["previous"] != previous:
                raise ValueError("it does not follow the entry before it")
            if table["hash"] != _hash(table):
                raise ValueError("its hash does not match its content")
            signature = bytes.fromhex(table["signature"])
            if signature.hex() != table["signature"]:  # fromhex also reads capitals and spaces
                raise ValueError("its signature is not written as this program writes it")
            public_key.verify(signature, bytes.fromhex(table["hash"]))
            entries.append(Entry(index, table["time"], Spend(**table["event"]), table["hash"]))
        except InvalidSignature:
            raise _untrusted(name, index, "its signature is not this site's") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise _untrusted(name, index, str(error)) from None
        previous = table["hash"]
    return tuple(entries)


def _untrusted(name: str, index: int, why: str) -> LedgerError:
    return LedgerError(
        f"{name}: entry {index} cannot be trusted: {why}. No training on this data set. "
        "Restore the ledger from a backup; never edit it."
    )


def _canonical(table: dict[str, Any]) -> bytes:
    return (json.dumps(table, sort_keys=True) + "\n").encode()


def _hash(table: dict[str, Any]) -> str:
    body = {name: table[name] for name in ("index", "previous", "time", "event")}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _read_lines(path: Path) -> tuple[list[bytes], bytes]:
    """Return the whole lines, and what follows the last line end (empty unless torn)."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], b""
    except OSError as error:
        raise LedgerError(f"{path} cannot be read ({error}). No training without it.") from None
    *lines, rest = content.split(b"\n")
    return [line + b"\n" for line in lines], rest


def _is_whole(torn: bytes) -> bool:
    """Whether a last line without line end holds a whole entry: no shorter part of one parses."""
    try:
        json.JSONDecoder().raw_decode(torn.decode(errors="replace"))
    except ValueError:
        return False
    return True


def _write_through(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _set_torn_line_aside(path: Path, torn: bytes) -> None:
    """Cut a half-written last line off, keeping its bytes beside the ledger."""
    _write_through(path.with_suffix(".torn"), torn + b"\n")
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size - len(torn))
        os.fsync(file.fileno())


def _make_key(path: Path, *, has_entries: bool) -> None:
    if has_entries:
        raise LedgerError(
            f"Expected the ledger's key at {path}, found none though the ledger has entries. "
            "Restore the key from a backup."
        )
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    # Whole or not at all: half a key would close the data set for good.
    draft = path.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(path.parent)


def _load_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise LedgerError(f"{path} is not a readable key ({error}). Restore it.") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise LedgerError(f"Expected an Ed25519 key in {path}. Restore it from a backup.")
    return key
