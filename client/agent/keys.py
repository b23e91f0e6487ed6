"""A site's own keys: the one towards the federation, and the ledger's. Neither ever leaves.

The node key is EC P-384 in OpenSSH's format, as `flower-supernode` reads it.
"""

from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_ssh_private_key,
)

from medfed.client.site import SiteConfig
from medfed.common.enrolment import node_key_line
from medfed.common.errors import FederationError, LedgerError
from medfed.common.files import write_atomically, write_secret
from medfed.common.ledger import Ledger
from medfed.common.ledger.countersigning import COORDINATOR_KEY
from medfed.common.ledger.keys import alone, load_key


def node_key_file(site: SiteConfig) -> Path:
    """Return where the node key lies, or will."""
    return site.path(site.connection.key)


def load_or_make_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Load the node key at `path`; make it, and its public half beside it, if there is none.

    Raises:
        FederationError: It cannot be read, or others than its owner can read it.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with alone(path.with_suffix(".lock")):  # two processes may both find none
            if not path.exists():
                _make_node_key(path)
    return load_node_key(path)


def load_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Load the node key at `path`.

    Raises:
        FederationError: It is missing, cannot be read, or others than its owner can read it.
    """
    try:
        mode = path.stat().st_mode
        key = load_ssh_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise FederationError(
            f"{path} cannot be read ({error.strerror}). Without this key the site is unknown to "
            "its coordinator: restore it, or enrol again with a new invite."
        ) from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not (isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP384R1)):
        raise FederationError(
            f"Expected an EC P-384 key in OpenSSH's format, without a password, in {path}. "
            "Restore it; or move it aside and enrol again with a new invite."
        )
    if mode & 0o077:
        raise FederationError(
            f"{path} can be read by others than its owner (mode {mode & 0o777:o}). If nobody did: "
            f"chmod 600 {path}. Else move it aside and ask the coordinator for a new invite."
        )
    return key


def set_node_key_aside(path: Path) -> None:
    """Rename a node key that must not be used again, with its public half."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    for file in (path, path.with_suffix(".pub")):
        if file.exists():
            file.replace(file.with_name(f"{file.stem}.{stamp}{file.suffix}.old"))


def load_or_make_ledger_key(state_folder: Path) -> Ed25519PrivateKey:
    """Load the key of the ledger in `state_folder`; made with it, as a first round would.

    Raises:
        LedgerError: It cannot be read, or is missing although the ledger has entries.
    """
    Ledger(state_folder)
    return load_key(state_folder / "ledger.key")


def check_pinned(state_folder: Path, coordinator: str) -> None:
    """Check that the ledger is not pinned to the key of another coordinator.

    Raises:
        LedgerError: It is.
    """
    path = state_folder / COORDINATOR_KEY
    if not path.exists():
        return
    pinned = path.read_text("ascii", errors="replace").strip()
    if pinned != coordinator:
        raise LedgerError(
            f"This site's ledger is bound to the coordinator's key {pinned} ({path}), the invite "
            f"names {coordinator}. If the coordinator says by telephone that this is its new key, "
            f"move {COORDINATOR_KEY} and countersignatures.jsonl aside together and keep them. "
            "For another federation, give this site another state folder."
        )


def pin_coordinator(state_folder: Path, coordinator: str) -> None:
    """Bind the ledger to the coordinator's key: no other's countersignature is taken from now on.

    Raises:
        LedgerError: It is bound to another.
    """
    with alone(state_folder / "ledger.lock"):
        check_pinned(state_folder, coordinator)
        if not (state_folder / COORDINATOR_KEY).exists():
            write_atomically(state_folder / COORDINATOR_KEY, coordinator.encode() + b"\n")


def _make_node_key(path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    write_secret(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    write_atomically(path.with_suffix(".pub"), node_key_line(key.public_key()).encode() + b"\n")
