"""Countersignatures: the coordinator signs the head of each site's ledger, round by round.

Each side keeps what the other could deny. Format: the package's docstring.
"""

import json
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from medfed.common.errors import LedgerError
from medfed.common.files import sync_folder, to_disk, write_atomically
from medfed.common.ledger.chain import canonical, read_time, write_time
from medfed.common.ledger.keys import alone, load_key, make_key, public_hex

COUNTERSIGNATURES = "countersignatures.jsonl"
COORDINATOR_KEY = "coordinator.pub"
_PURPOSE = b"medfed countersignature 1\n"
_HEX_DIGITS = {"head": 64, "public_key": 64, "signature": 128}


@dataclass(frozen=True, kw_only=True)
class Countersignature:
    """The coordinator's word that a site's ledger ended with this entry.

    Attributes:
        run: The run's identifier.
        site: The site's name.
        round_number: 1-based; 0 for the words of reports.
        head: Hash of the last entry, 64 hexadecimal digits.
        time: Of signing, by the coordinator's clock; as in an entry.
        public_key: The coordinator's, 64 hexadecimal digits.
        signature: Over all the above, 128 hexadecimal digits.
    """

    run: str
    site: str
    round_number: int
    head: str
    time: str
    public_key: str
    signature: str

    def to_json(self) -> str:
        """Return one line, without its line end."""
        return canonical(asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str) -> "Countersignature":
        """Read one back. Whether it is genuine is for `check` to say.

        Raises:
            LedgerError: It is not written as `to_json` writes it.
        """
        try:
            table = json.loads(text)
            if not isinstance(table, dict) or set(table) != {f.name for f in fields(cls)}:
                raise ValueError("expected the seven fields of one")
            signed = cls(**table)
            _check_values(signed)
            if signed.to_json() != text:
                raise ValueError("it is spelled in another way")
        except (ValueError, TypeError, RecursionError) as error:
            raise LedgerError(
                f"A countersignature cannot be read: {error}. Ask the coordinator for its "
                "heads.jsonl."
            ) from None
        return signed


class ServerKey:
    """The coordinator's key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def load_or_make(cls, path: Path) -> "ServerKey":
        """Load the key at `path`, which only its owner may read; make it if there is none.

        Raises:
            LedgerError: It cannot be read.
        """
        if not path.exists():
            with alone(path.with_suffix(".lock")):
                if not path.exists():
                    make_key(path)
        return cls(load_key(path))

    @property
    def public_key(self) -> str:
        """64 hexadecimal digits, for a hospital to compare."""
        return public_hex(self._key.public_key())

    def sign(self, *, run: str, site: str, round_number: int, head: str) -> Countersignature:
        """Sign that the ledger of `site` ended with the entry `head` after this round.

        Raises:
            ValueError: `head` is not 64 hexadecimal digits.
        """
        draft = Countersignature(
            run=run,
            site=site,
            round_number=round_number,
            head=head,
            time=write_time(datetime.now(UTC)),
            public_key=self.public_key,
            signature="0" * 128,
        )
        _check_values(draft)
        signature = self._key.sign(_signed_text(draft)).hex()
        return Countersignature(**{**asdict(draft), "signature": signature})


def check(countersignature: Countersignature) -> None:
    """Check that a countersignature is signed by the key that it names.

    Raises:
        LedgerError: It is not.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(countersignature.public_key))
        key.verify(bytes.fromhex(countersignature.signature), _signed_text(countersignature))
    except (InvalidSignature, ValueError):
        raise LedgerError(
            f"{name_of(countersignature)} is not signed by the key that it names: it was changed, "
            "or never was the coordinator's."
        ) from None


def read_countersignatures(path: Path) -> tuple[Countersignature, ...]:
    """Read `countersignatures.jsonl` or `heads.jsonl`; a torn last line is left out.

    Raises:
        LedgerError: Missing, or naming the first line that is damaged or not genuine.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise LedgerError(f"{path} cannot be read ({error}).") from None
    found = []
    for number, line in enumerate(lines):
        try:
            found.append(Countersignature.from_json(line.decode(errors="replace")))
            check(found[-1])
        except LedgerError as error:
            raise LedgerError(f"{path}: line {number}: {error}") from None
    return tuple(found)


def keep(folder: Path, signed: Countersignature, ledger: bytes) -> None:
    """Keep `signed` in a site's state folder, whose lock is held. See `Ledger`."""
    check(signed)
    _check_pinned(folder / COORDINATOR_KEY, signed.public_key)
    # No text within an event can hold this: its quotation marks would be escaped.
    if f'"hash": "{signed.head}"'.encode() not in ledger:
        raise LedgerError(
            f"{name_of(signed)}: the coordinator signed an entry that this ledger lacks. Entries "
            "were removed, an older backup was restored, or it is about another ledger. Compare "
            "ledger.jsonl with the coordinator's heads.jsonl before training goes on."
        )
    path = folder / COUNTERSIGNATURES
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    line = signed.to_json().encode() + b"\n"
    if line in whole and whole == content:
        return
    if whole != content:  # torn by a power cut: the coordinator sends it again
        write_atomically(path, whole)
    if line not in whole:
        with path.open("ab") as file:
            file.write(line)
            file.flush()
            to_disk(file.fileno())
    if not content:
        sync_folder(folder)


def _check_pinned(path: Path, public_key: str) -> None:
    if not path.exists():
        write_atomically(path, public_key.encode() + b"\n")
        return
    pinned = path.read_text("ascii", errors="replace").strip()
    if pinned != public_key:
        raise LedgerError(
            f"Expected a countersignature by the coordinator's key {pinned} ({path}), got one by "
            f"{public_key}. If the coordinator says by another channel that this is its new key, "
            f"move {COORDINATOR_KEY} and {COUNTERSIGNATURES} aside together and keep them."
        )


def _check_values(signed: Countersignature) -> None:
    if not (isinstance(signed.run, str) and isinstance(signed.site, str)):
        raise ValueError("expected text as run and site")
    if type(signed.round_number) is not int or signed.round_number < 0:
        raise ValueError(f"expected a round number, got {signed.round_number!r}")
    read_time(signed.time)
    for name, digits in _HEX_DIGITS.items():
        value = getattr(signed, name)
        if not (
            isinstance(value, str)
            and len(value) == digits
            and set(value) <= set("0123456789abcdef")
        ):
            raise ValueError(f"expected {digits} hexadecimal digits as {name}")


def _signed_text(signed: Countersignature) -> bytes:
    table = asdict(signed)
    del table["signature"]
    return _PURPOSE + canonical(table)


def name_of(signed: Countersignature) -> str:
    """Return what to call it in a message."""
    return f"countersignature of round {signed.round_number} of run {signed.run}"
