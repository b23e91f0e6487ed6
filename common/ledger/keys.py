"""Ed25519 keys in files: made once, whole or not at all, readable by their owner only."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from medfed.common.errors import LedgerError
from medfed.common.files import sync_folder, to_disk


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold the lock file `lock`: no other process is inside at the same time."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_key(path: Path) -> None:
    """Make a private key at `path`, where there is none. The caller keeps other processes out."""
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    # Whole or not at all: half a key would close the data set for good.
    draft = path.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(pem)
        file.flush()
        to_disk(file.fileno())
    draft.replace(path)
    sync_folder(path.parent)


def load_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key.

    Raises:
        LedgerError: Unreadable, or of another kind.
    """
    try:
        key = _private_key(path.read_bytes())
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise LedgerError(f"{path} is not a readable key ({error}). Restore it.") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise LedgerError(f"Expected an Ed25519 key in {path}. Restore it from a backup.")
    return key


# Parsing takes ten times as long as reading, and a site opens its ledger several times a message.
@lru_cache(maxsize=256)
def _private_key(pem: bytes) -> PrivateKeyTypes:
    return load_pem_private_key(pem, password=None)


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key.

    Raises:
        LedgerError: Missing, unreadable, or of another kind.
    """
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise LedgerError(
            f"{path.name} cannot be read ({short(error)}). Restore it from a backup."
        ) from None
    if not isinstance(key, Ed25519PublicKey):
        raise LedgerError(f"Expected an Ed25519 key in {path.name}. Restore it from a backup.")
    return key


def public_pem(key: Ed25519PrivateKey) -> bytes:
    """Return the public half as PEM."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def public_hex(key: Ed25519PublicKey) -> str:
    """Return the raw public key, 64 hexadecimal digits."""
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def short(error: Exception) -> str:
    """Return an error without the path that an OSError names: reports are passed around."""
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
