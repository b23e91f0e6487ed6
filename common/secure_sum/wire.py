"""What sites and server tell one another in a round of secure aggregation, as bytes.

JSON with hexadecimal; read strictly. Everything here passes through the server in the clear, except
what is inside a parcel, which only the receiving site can open.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medfed.common.errors import MessageError

KEY_BYTES = 32
COMMITMENT_BYTES = 32
MAX_PARCEL_BYTES = 256


@dataclass(frozen=True, kw_only=True)
class PublicKeys:
    """A site's X25519 public keys of one round.

    Attributes:
        channel: For parcels between sites.
        mask: For the masks that two sites share.
    """

    channel: bytes
    mask: bytes

    def to_bytes(self) -> bytes:
        """Return the keys as bytes."""
        return _dump({"channel": self.channel.hex(), "mask": self.mask.hex()})

    @classmethod
    def from_bytes(cls, raw: bytes) -> "PublicKeys":
        """Read the keys; MessageError if they are none."""
        return cls._read(_load(raw, "channel", "mask"))

    @classmethod
    def _read(cls, found: Mapping[str, Any]) -> "PublicKeys":
        channel, mask = (_bytes(found.get(n), KEY_BYTES) for n in ("channel", "mask"))
        return cls(channel=channel, mask=mask)


def pack_roster(keys: Mapping[str, PublicKeys]) -> bytes:
    """Return all participants' keys, by site, as bytes."""
    return _dump({name: [k.channel.hex(), k.mask.hex()] for name, k in sorted(keys.items())})


def unpack_roster(raw: bytes) -> dict[str, PublicKeys]:
    """Read all participants' keys, by site in alphabetical order; MessageError if they are none."""
    return {
        name: PublicKeys._read(dict(zip(("channel", "mask"), _pair(pair), strict=True)))
        for name, pair in sorted(_load(raw).items())
    }


@dataclass(frozen=True, kw_only=True)
class Shares:
    """A site's secrets, shared out.

    Attributes:
        seed_commitment: SHA-256 that binds the self seed.
        share_commitments: By receiver, SHA-256 that bind its shares of self seed and mask key.
        parcels: By receiver, both shares encrypted.
    """

    seed_commitment: bytes
    share_commitments: Mapping[str, tuple[bytes, bytes]]
    parcels: Mapping[str, bytes]

    def to_bytes(self) -> bytes:
        """Return the shares as bytes."""
        commitments = {n: [c.hex() for c in two] for n, two in self.share_commitments.items()}
        return _dump(
            {
                "seed": self.seed_commitment.hex(),
                "commitments": commitments,
                "parcels": _hex(self.parcels),
            }
        )

    @classmethod
    def from_bytes(cls, raw: bytes) -> "Shares":
        """Read the shares; MessageError if they are none."""
        found = _load(raw, "seed", "commitments", "parcels")
        commitments = {}
        for name, pair in _object(found["commitments"]).items():
            seed, key = (_bytes(text, COMMITMENT_BYTES) for text in _pair(pair))
            commitments[name] = (seed, key)
        return cls(
            seed_commitment=_bytes(found["seed"], COMMITMENT_BYTES),
            share_commitments=commitments,
            parcels=_unhex(_object(found["parcels"])),
        )


def pack_parcels(parcels: Mapping[str, bytes]) -> bytes:
    """Return the parcels for one site, by sender, as bytes."""
    return _dump(_hex(parcels))


def unpack_parcels(raw: bytes) -> dict[str, bytes]:
    """Read the parcels for one site, by sender; MessageError if they are none."""
    return _unhex(_load(raw))


def pack_names(names: frozenset[str] | set[str]) -> bytes:
    """Return site names as bytes."""
    return _dump(sorted(names))


def unpack_names(raw: bytes) -> frozenset[str]:
    """Read site names; MessageError if they are none, or one comes twice."""
    found = _parse(raw)
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise MessageError("Expected a list of sites, got something else.")
    if len(set(found)) != len(found):
        raise MessageError("Expected each site once in a list of sites.")
    return frozenset(found)


@dataclass(frozen=True, kw_only=True)
class Reveal:
    """What one site gives up so that the sum can be unmasked: never both of one owner.

    Attributes:
        seeds: By owner that stayed, this site's share of its self seed.
        keys: By owner that dropped out, this site's share of its mask key.
    """

    seeds: Mapping[str, bytes]
    keys: Mapping[str, bytes]

    def to_bytes(self) -> bytes:
        """Return the reveal as bytes."""
        return _dump({"seeds": _hex(self.seeds), "keys": _hex(self.keys)})

    @classmethod
    def from_bytes(cls, raw: bytes) -> "Reveal":
        """Read a reveal; MessageError if it is none."""
        found = _load(raw, "seeds", "keys")
        return cls(seeds=_unhex(_object(found["seeds"])), keys=_unhex(_object(found["keys"])))


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _parse(raw: bytes) -> Any:
    try:
        return json.loads(raw, object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError):
        raise MessageError("Expected JSON of secure aggregation, got something else.") from None


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found


def _load(raw: bytes, *names: str) -> dict[str, Any]:
    found = _object(_parse(raw))
    if names and set(found) != set(names):
        raise MessageError(f"Expected the fields {', '.join(names)}, got others.")
    return found


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MessageError(f"Expected an object, got {type(value).__name__}.")
    return value


def _pair(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) != 2:
        raise MessageError("Expected a list of two texts, got something else.")
    return value


def _bytes(value: Any, length: int | None = None) -> bytes:
    try:
        raw = bytes.fromhex(value)
    except (TypeError, ValueError):
        raise MessageError("Expected hexadecimal text, got something else.") from None
    if len(raw) != length if length is not None else len(raw) > MAX_PARCEL_BYTES:
        raise MessageError(f"Expected {length or MAX_PARCEL_BYTES} bytes, got {len(raw)}.")
    return raw


def _hex(values: Mapping[str, bytes]) -> dict[str, str]:
    return {name: raw.hex() for name, raw in values.items()}


def _unhex(values: Mapping[str, Any]) -> dict[str, bytes]:
    return {name: _bytes(value) for name, value in values.items()}
