"""Keys that two sites agree on, parcels between them, and commitments to secrets."""

import hashlib
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from medfed.common.errors import MessageError
from medfed.common.secure_sum.context import RoundContext
from medfed.common.secure_sum.shamir import SHARE_BYTES

_NONCE_BYTES = 12
SEED, KEY = "self seed", "mask key"


def new_key() -> bytes:
    """Return a fresh X25519 private key, 32 bytes of the operating system's generator."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_key(private: bytes) -> bytes:
    """Return the X25519 public key of a private key."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def pair_key(context: RoundContext, private: bytes, public: bytes, one: str, other: str) -> bytes:
    """Return the key of the mask that sites `one` and `other` share, the same at both.

    Raises:
        MessageError: A public key that would give a secret that anyone knows.
    """
    return context.derive(_agree(private, public), "pair mask", *sorted((one, other)))


def self_key(context: RoundContext, seed: bytes, site: str) -> bytes:
    """Return the key of a site's own mask."""
    return context.derive(seed, "self mask", site)


def seal_parcel(
    context: RoundContext,
    private: bytes,
    public: bytes,
    sender: str,
    receiver: str,
    shares: tuple[bytes, bytes],
) -> bytes:
    """Encrypt two shares so that only `receiver` reads them, and only as coming from `sender`.

    AES-256-GCM under a key of this round, sender and receiver.

    Raises:
        MessageError: A public key that would give a secret that anyone knows.
    """
    key = context.derive(_agree(private, public), "parcel", sender, receiver)
    nonce = os.urandom(_NONCE_BYTES)
    label = context.label("parcel", sender, receiver)
    return nonce + AESGCM(key).encrypt(nonce, b"".join(shares), label)


def open_parcel(
    context: RoundContext, private: bytes, public: bytes, sender: str, receiver: str, parcel: bytes
) -> tuple[bytes, bytes]:
    """Return the two shares in a parcel.

    Raises:
        MessageError: It was changed, or is of another round, sender or receiver.
    """
    key = context.derive(_agree(private, public), "parcel", sender, receiver)
    label = context.label("parcel", sender, receiver)
    try:
        plain = AESGCM(key).decrypt(parcel[:_NONCE_BYTES], parcel[_NONCE_BYTES:], label)
    except (InvalidTag, ValueError):
        raise MessageError(
            f"A parcel that came as {sender}'s is not: changed, or of another round."
        ) from None
    if len(plain) != 2 * SHARE_BYTES:
        raise MessageError(f"Expected two shares in {sender}'s parcel, got something else.")
    return plain[:SHARE_BYTES], plain[SHARE_BYTES:]


def commit(context: RoundContext, purpose: str, secret: bytes, *names: str) -> bytes:
    """Return SHA-256 of a secret of full entropy: binds it and tells nothing about it."""
    return hashlib.sha256(context.label(f"commit {purpose}", *names) + secret).digest()


def _agree(private: bytes, public: bytes) -> bytes:
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(
            X25519PublicKey.from_public_bytes(public)
        )
    except ValueError:
        raise MessageError("Expected an X25519 public key, got one of low order.") from None
