"""A data set's ledger: opened alone, appended to, sealed. Format: the package's docstring."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medfed.common.errors import LedgerError
from medfed.common.files import sync_folder, to_disk
from medfed.common.ledger.chain import Entry, make_line, parse
from medfed.common.ledger.countersigning import Countersignature, keep
from medfed.common.ledger.keys import alone, load_key, make_key, public_pem
from medfed.common.ledger.reading import (
    LEDGER,
    PUBLIC_KEY,
    SEAL,
    Verified,
    is_whole,
    read_bytes,
    read_copy,
    split,
    verify_with_seal,
)
from medfed.common.ledger.seal import Seal, read_seal, write_seal
from medfed.common.ledger.spends import Spend
from medfed.common.ledger.summary import Summary


class Ledger:
    """The ledger in `folder`; made with its key if the folder is new. Use `locked()` to spend."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / LEDGER
        self._lock = folder / "ledger.lock"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._key = self._load_or_make_key()
        public = folder / PUBLIC_KEY
        if not public.exists():
            public.write_bytes(public_pem(self._key))

    def entries(self) -> tuple[Entry, ...]:
        """Return every entry, verified line by line.

        Raises:
            LedgerError: Naming the first entry that is damaged, out of order or forged.
        """
        copy = read_copy(self.folder, self._key.public_key())
        if copy.torn:
            raise LedgerError(
                f"{self.path} ends in a torn line after entry {len(copy.entries) - 1}. "
                "Open it with locked() to set the line aside."
            )
        return copy.entries

    @contextmanager
    def locked(self) -> Iterator["LockedLedger"]:
        """Hold this ledger alone: read what was spent and append, with no other process between.

        Raises:
            LedgerError: Naming the first entry that cannot be trusted.
        """
        with alone(self._lock):
            content, torn = split(read_bytes(self.path))
            whole = is_whole(torn)
            if whole:
                content += torn + b"\n"
            public_key = self._key.public_key()
            seal = read_seal(self.folder / SEAL, public_key)
            verified = verify_with_seal(content, seal, public_key, str(self.path))
            if whole:
                _write_through(self.path, b"\n")
            elif torn:
                _set_torn_line_aside(self.path, torn)
            ledger = LockedLedger(self.path, self._key, content, verified)
            try:
                yield ledger
            finally:
                ledger.seal()

    def keep_countersignature(self, countersignature: Countersignature) -> None:
        """Keep what the coordinator signed; once, however often it comes.

        It proves to an auditor that an entry stood in this ledger by then. The coordinator's key
        is taken on trust with the first one, and held to from then on.

        Raises:
            LedgerError: Not signed by its key, by another key than the first one's, or over a
                hash that is not an entry's here. Nothing was kept.
        """
        with alone(self._lock):
            keep(self.folder, countersignature, read_bytes(self.path))

    def _load_or_make_key(self) -> Ed25519PrivateKey:
        path = self.folder / "ledger.key"
        if not path.exists():
            with alone(self._lock):  # two processes may both find none
                if not path.exists():
                    self._check_new(path)
                    make_key(path)
        return load_key(path)

    def _check_new(self, path: Path) -> None:
        """Refuse to make a second key for what the first one signed."""
        if self.path.exists() or (self.folder / SEAL).exists():
            raise LedgerError(
                f"Expected the ledger's key at {path}, found none though the ledger has entries. "
                "Restore the key from a backup."
            )


class LockedLedger:
    """A ledger while its lock is held. Knows what the entries come to without reading each."""

    def __init__(
        self, path: Path, key: Ed25519PrivateKey, content: bytes, verified: Verified
    ) -> None:
        self._path = path
        self._key = key
        self._content = [content]  # and each line that was appended
        self._link = verified.link
        self._summary = verified.summary
        self._num_bytes = verified.num_bytes
        self._digest = verified.digest
        self._sealed = verified.sealed
        self._entries: list[Entry] | None = None
        self._broken = False

    @property
    def summary(self) -> Summary:
        """What all entries come to."""
        return self._summary

    @property
    def head(self) -> str:
        """Hash of the last entry; GENESIS if there is none."""
        return self._link.head

    @property
    def entries(self) -> list[Entry]:
        """Every entry, oldest first. Takes a second for ten thousand: see `summary` and `has`."""
        if self._entries is None:
            lines = b"".join(self._content).split(b"\n")[:-1]
            self._entries = [parse(json.loads(line)) for line in lines]
        return self._entries

    def has(self, spend: Spend) -> bool:
        """Whether an entry states this very release, equal in every field."""
        release = b'"release": ' + json.dumps(spend.release).encode()
        return any(
            parse(json.loads(line)).spend == spend
            for content in self._content
            for line in _lines_with(release, content)
        )

    def append(self, spend: Spend) -> Entry:
        """Sign `spend` and write it through to the disk.

        Raises:
            LedgerError: An earlier append failed: what the disk holds is not known.
            OSError: This one failed. It may count or not; nothing may be released.
        """
        if self._broken:
            raise LedgerError(f"{self._path}: the last entry may be half written. Open it again.")
        line, entry = make_line(spend, self._link, self._key)
        is_new = not self._path.exists()
        self._broken = True
        _write_through(self._path, line)
        if is_new:
            sync_folder(self._path.parent)
        self._broken = False
        self._content.append(line)
        self._link = self._link.after(entry)
        self._summary = self._summary.plus(spend)
        self._num_bytes += len(line)
        self._digest.update(line)
        self._sealed = False
        if self._entries is not None:
            self._entries.append(entry)
        return entry

    def seal(self) -> None:
        """Let the next opening skip what this one verified or wrote."""
        if self._sealed or not self._num_bytes:
            return
        seal = Seal(self._num_bytes, self._digest.hexdigest(), self._link, self._summary)
        write_seal(self._path.parent / SEAL, seal, self._key)
        self._sealed = True


def _lines_with(part: bytes, content: bytes) -> Iterator[bytes]:
    """Yield the lines of `content` that hold `part`."""
    place = content.find(part)
    while place >= 0:
        end = content.index(b"\n", place)
        yield content[content.rfind(b"\n", 0, place) + 1 : end]
        place = content.find(part, end)


def _write_through(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        to_disk(file.fileno())


def _set_torn_line_aside(path: Path, torn: bytes) -> None:
    """Cut a half-written last line off, keeping its bytes beside the ledger."""
    _write_through(path.with_suffix(".torn"), torn + b"\n")
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size - len(torn))
        to_disk(file.fileno())
