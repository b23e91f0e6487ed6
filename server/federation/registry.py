"""Who belongs to the federation: one JSON file a site, read anew as soon as it changes."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)

from medfed.common.enrolment import State, check_name, write_moment
from medfed.common.errors import FederationError, RunError
from medfed.common.files import read_json, write_json
from medfed.common.ledger.keys import alone

__all__ = ["Registry", "SiteRecord", "State"]

_log = logging.getLogger(__name__)
# A file that changed twice within one tick of the file system's clock looks unchanged the second
# time: what is younger than this is read again.
_SETTLED_S = 1.0


@dataclass(frozen=True, kw_only=True)
class SiteRecord:
    """What the coordinator knows about a site. Nothing in it is secret.

    Attributes:
        name: The site's.
        state: Where it stands; only an approved site may connect.
        token_sha256: Of the last invite's token. Kept after its use: a second use is a theft.
        expires: Until when the token may be used; ISO 8601, UTC.
        node_key: Its key towards Flower, an OpenSSH public line; "" before it enrolled.
        ledger_key: Its ledger's Ed25519 key, 64 hexadecimal digits; "" before it enrolled.
        fingerprint: Of these keys and of what the site trusts; "" before it enrolled.
        version: Its medfed's, as it said when it enrolled.
        changed: When `state` changed last; ISO 8601, UTC.
        note: What the coordinator's people should know, e.g. of a stolen invite.
        retired_keys: Node keys of earlier memberships: never accepted again.
        nonces: (nonce, time) of the signed requests of the last minutes.
    """

    name: str
    state: State
    token_sha256: str = ""
    expires: str = ""
    node_key: str = ""
    ledger_key: str = ""
    fingerprint: str = ""
    version: str = ""
    changed: str = ""
    note: str = ""
    retired_keys: tuple[str, ...] = ()
    nonces: tuple[tuple[str, str], ...] = ()

    def to(self, state: State) -> "SiteRecord":
        """Return the record in another state, changed now."""
        return replace(self, state=state, changed=write_moment(datetime.now(UTC)))


Signature = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class _Cached:
    signature: Signature
    is_settled: bool
    by_key: dict[bytes, SiteRecord]


class Registry:
    """The records in `folder`. Several processes may read and write them at the same time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cached = _Cached((), False, {})

    def records(self) -> list[SiteRecord]:
        """Return every site's record, by name.

        Raises:
            FederationError: One is damaged.
        """
        return [_read(path) for path in self._paths()]

    def get(self, name: str) -> SiteRecord:
        """Return a site's record.

        Raises:
            FederationError: There is none, or it is damaged.
        """
        record = self.find(name)
        if record is None:
            raise FederationError(
                f"No site {name} was invited. `medfed federation sites` lists those that were."
            )
        return record

    def find(self, name: str) -> SiteRecord | None:
        """Return a site's record, or None if it was never invited.

        Raises:
            FederationError: `name` is none, or the record is damaged.
        """
        path = self._path(name)
        return _read(path) if path.exists() else None

    def put(self, record: SiteRecord) -> None:
        """Write `record` over the one of the same name, through to the disk."""
        self.change(record.name, lambda _: record)

    def change(
        self, name: str, edit: Callable[[SiteRecord | None], SiteRecord | None]
    ) -> SiteRecord | None:
        """Replace a site's record by what `edit` makes of it, with no other process between.

        Args:
            name: The site's.
            edit: Gets the record as it is, None if there is none; returns the new one, or None to
                leave everything as it is. May raise. Must not call `put` or `change`.

        Returns:
            What `edit` returned.
        """
        path = self._path(name)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with alone(self._folder / ".lock"):
            changed = edit(_read(path) if path.exists() else None)
            if changed is not None:
                write_json(path, asdict(changed))
        return changed

    def by_node_key(self, public_key: bytes) -> SiteRecord | None:
        """Return the record that holds a node's key, whatever its state; None if none does.

        Reads files only after one changed. A damaged record is no site's.

        Args:
            public_key: As Flower's header carries it (base64 removed): PEM.
        """
        signature, newest = self._look()
        cached = self._cached
        if not cached.is_settled or cached.signature != signature:
            is_settled = newest + _SETTLED_S < time.time()
            cached = _Cached(signature, is_settled, self._by_key())
            self._cached = cached
        return cached.by_key.get(public_key)

    def _by_key(self) -> dict[bytes, SiteRecord]:
        found = {}
        for path in self._paths():
            try:
                record = _read(path)
                if record.node_key:
                    found[_pem(record.node_key)] = record
            except FederationError as error:
                _log.error("%s", error)
        return found

    def _look(self) -> tuple[Signature, float]:
        """Return what changes when any record does, and the time of the latest change."""
        seen, newest = [], 0.0
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if entry.name.endswith(".json") and not entry.name.startswith("."):
                        stat = entry.stat()
                        seen.append((entry.name, stat.st_ino, stat.st_mtime_ns, stat.st_size))
                        newest = max(newest, stat.st_mtime)
        except FileNotFoundError:
            pass  # replaced at this moment, or no site yet
        return tuple(sorted(seen)), newest

    def _paths(self) -> list[Path]:
        return sorted(p for p in self._folder.glob("*.json") if not p.name.startswith("."))

    def _path(self, name: str) -> Path:
        return self._folder / f"{check_name(name)}.json"


def _read(path: Path) -> SiteRecord:
    try:
        table = read_json(path)
        _check_types(table)
        record = SiteRecord(
            **{
                **table,
                "retired_keys": tuple(table.get("retired_keys", ())),
                "nonces": tuple((nonce, at) for nonce, at in table.get("nonces", ())),
            }
        )
        if f"{record.name}.json" != path.name:
            raise ValueError(f"it is about {record.name!r}")
    except (RunError, OSError, TypeError, ValueError, RecursionError) as error:
        raise FederationError(
            f"{path} is no readable record of a site ({error}): the site cannot connect. Restore "
            "the file from a backup, or remove it and invite the site again."
        ) from None
    return record


def _check_types(table: dict[str, Any]) -> None:
    unknown = set(table) - {field.name for field in fields(SiteRecord)}
    if unknown:
        raise ValueError(f"unknown fields {sorted(unknown)}")
    for name, value in table.items():
        if name not in ("retired_keys", "nonces") and not isinstance(value, str):
            raise ValueError(f"expected text as {name}")
    if table.get("state") not in get_args(State):
        raise ValueError(f"expected a state, one of {', '.join(get_args(State))}")


def _pem(node_key: str) -> bytes:
    """Return an OpenSSH public line as Flower spells the key."""
    try:
        key = load_ssh_public_key(node_key.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FederationError(f"A site's node key cannot be read ({error}).") from None
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
