"""A site's keys: made once, read by Flower, by their owner alone, and never replaced silently."""

import argparse
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)
from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication

from medfed.client.agent.keys import (
    check_pinned,
    load_node_key,
    load_or_make_ledger_key,
    load_or_make_node_key,
    pin_coordinator,
    set_node_key_aside,
)
from medfed.common.errors import FederationError, LedgerError
from medfed.common.files import write_secret
from medfed.common.ledger import Ledger, ServerKey, Spend
from medfed.common.ledger.keys import load_public_key, public_hex


@pytest.fixture
def no_umask() -> Iterator[None]:
    """Let files be as open as whoever makes them says."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def openssh(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def test_flowers_supernode_reads_the_node_key(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "node.key"
    made = load_or_make_node_key(path)
    arguments = argparse.Namespace(
        auth_supernode_private_key=str(path), auth_supernode_public_key=None
    )
    read = _try_setup_client_authentication(arguments)
    assert read is not None
    assert read[0].private_numbers() == made.private_numbers()
    assert isinstance(made.curve, ec.SECP384R1)
    assert isinstance(load_ssh_private_key(path.read_bytes(), None), ec.EllipticCurvePrivateKey)
    public = load_ssh_public_key((tmp_path / "keys" / "node.pub").read_bytes())
    assert public == made.public_key()


@pytest.mark.usefixtures("no_umask")
def test_private_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    load_or_make_node_key(tmp_path / "keys" / "node.key")
    load_or_make_ledger_key(tmp_path / "state")
    assert mode(tmp_path / "keys" / "node.key") == 0o600
    assert mode(tmp_path / "state" / "ledger.key") == 0o600
    assert mode(tmp_path / "keys") == mode(tmp_path / "state") == 0o700


@pytest.mark.usefixtures("no_umask")
def test_secret_is_never_readable_by_others_not_even_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []

    def look(handle: int) -> None:
        modes.extend(mode(path) for path in tmp_path.iterdir())

    monkeypatch.setattr(os, "fsync", look)
    write_secret(tmp_path / "secret", b"first")
    (tmp_path / "secret").chmod(0o644)
    write_secret(tmp_path / "secret", b"second")
    assert (tmp_path / "secret").read_bytes() == b"second"
    assert mode(tmp_path / "secret") == 0o600
    assert set(modes) == {0o600, 0o644}  # the old file beside the new one
    assert modes[0] == 0o600


def test_node_key_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "node.key"
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: load_or_make_node_key(path), range(16)))
    assert len({key.private_numbers().private_value for key in keys}) == 1


def test_ledger_key_is_the_ledgers_own(tmp_path: Path) -> None:
    key = load_or_make_ledger_key(tmp_path)
    Ledger(tmp_path)
    assert public_hex(load_public_key(tmp_path / "ledger.pub")) == public_hex(key.public_key())
    assert public_hex(load_or_make_ledger_key(tmp_path).public_key()) == public_hex(
        key.public_key()
    )


@pytest.mark.parametrize("open_mode", [0o604, 0o640, 0o644, 0o660])
def test_node_key_that_others_can_read_is_refused(tmp_path: Path, open_mode: int) -> None:
    path = tmp_path / "node.key"
    load_or_make_node_key(path)
    path.chmod(open_mode)
    with pytest.raises(FederationError, match="chmod 600"):
        load_node_key(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a key",
        openssh(ed25519.Ed25519PrivateKey.generate()),
        openssh(ec.generate_private_key(ec.SECP256R1())),
        ec.generate_private_key(ec.SECP384R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ),
    ],
    ids=["empty", "text", "ed25519", "p256", "pkcs8"],
)
def test_node_key_of_another_kind_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    write_secret(tmp_path / "node.key", content)
    with pytest.raises(FederationError, match="Expected an EC P-384 key in OpenSSH's format"):
        load_or_make_node_key(tmp_path / "node.key")
    assert (tmp_path / "node.key").read_bytes() == content


def test_missing_node_key_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="enrol again with a new invite"):
        load_node_key(tmp_path / "node.key")


def test_node_key_set_aside_is_kept_and_not_used(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    first = load_or_make_node_key(path)
    content = path.read_bytes()
    set_node_key_aside(path)
    assert not path.exists()
    kept = [p for p in tmp_path.iterdir() if p.suffix == ".old" and p.read_bytes() == content]
    assert [mode(p) for p in kept] == [0o600]
    second = load_or_make_node_key(path)
    assert second.private_numbers() != first.private_numbers()


def test_pinned_coordinator_is_the_only_one_whose_countersignatures_count(tmp_path: Path) -> None:
    coordinator, other = (ServerKey.load_or_make(tmp_path / f"{n}.key") for n in "ab")
    ledger = Ledger(tmp_path / "state")
    spend = Spend(
        release="r", study="s", run="run", round_number=1, unit="patient", images_per_patient=1,
        noise_multiplier=1.0, sample_rate=0.1, steps=1, max_grad_norm=1.0, noise="seeded",
    )  # fmt: skip
    with ledger.locked() as locked:
        locked.append(spend)
        head = locked.head
    pin_coordinator(tmp_path / "state", coordinator.public_key)
    with pytest.raises(LedgerError, match="got one by"):
        ledger.keep_countersignature(other.sign(run="run", site="n", round_number=1, head=head))
    ledger.keep_countersignature(coordinator.sign(run="run", site="n", round_number=1, head=head))


def test_ledger_is_pinned_to_one_coordinator(tmp_path: Path) -> None:
    check_pinned(tmp_path, "a" * 64)
    for _ in range(2):
        pin_coordinator(tmp_path, "a" * 64)
        check_pinned(tmp_path, "a" * 64)
    for refuse in (check_pinned, pin_coordinator):
        with pytest.raises(LedgerError, match="bound to the coordinator's key aaaa"):
            refuse(tmp_path, "b" * 64)
    assert (tmp_path / "coordinator.pub").read_text() == "a" * 64 + "\n"
