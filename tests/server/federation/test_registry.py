"""The registry: any process sees a change at once, and no name leads out of its folder."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from medfed.common.enrolment import node_key_line
from medfed.common.errors import FederationError
from medfed.server.federation.registry import Registry, SiteRecord

NORTH = SiteRecord(name="north", state="invited", token_sha256="0" * 64)


def approved(name: str) -> tuple[SiteRecord, bytes]:
    """Return a site's record, and its key as Flower's header carries it."""
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    record = SiteRecord(name=name, state="approved", node_key=node_key_line(key))
    return record, public_key_to_bytes(key)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "sites")


def settle(folder: Path) -> None:
    """Let every file look as if it was written a minute ago."""
    for path in folder.glob("*.json"):
        os.utime(path, (time.time() - 60, time.time() - 60))


def test_record_reads_back(registry: Registry) -> None:
    full = SiteRecord(
        name="s.1-A_b", state="revoked", token_sha256="1" * 64, expires="e", node_key="k",
        ledger_key="l", fingerprint="f", version="v", changed="c", note="n",
        retired_keys=("a", "b"), nonces=(("n", "t"),),
    )  # fmt: skip
    assert registry.records() == []
    registry.put(full)
    registry.put(NORTH)
    assert registry.get("s.1-A_b") == full
    assert registry.records() == [NORTH, full]
    with pytest.raises(FederationError, match="No site south was invited"):
        registry.get("south")
    assert registry.find("south") is None


@pytest.mark.parametrize(
    "name",
    ["../north", "a/b", "/etc/passwd", "..", ".", "", ".north", "north\x00", "north\n", "n\u00f6rd",
     "north/../../x", "a\\b", "-x", "a" * 65, "\uff4eorth", "north ", "a:b", "%2e%2e"],
)  # fmt: skip
def test_name_that_is_none_reaches_no_file(registry: Registry, tmp_path: Path, name: str) -> None:
    registry.put(NORTH)
    before = sorted(tmp_path.rglob("*"))
    for use in (
        lambda: registry.get(name),
        lambda: registry.find(name),
        lambda: registry.put(replace(NORTH, name=name)),
        lambda: registry.change(name, lambda _: NORTH),
    ):
        with pytest.raises(FederationError, match="Expected a name"):
            use()
    assert sorted(tmp_path.rglob("*")) == before


def test_node_key_is_found_as_flower_spells_it(registry: Registry) -> None:
    (north, key), (south, other) = approved("north"), approved("south")
    assert registry.by_node_key(key) is None
    registry.put(north)
    registry.put(south)
    registry.put(replace(NORTH, name="invited"))
    assert registry.by_node_key(key) == north
    assert registry.by_node_key(other) == south
    for strange in (b"", b"\xff", key + b"\n", key.replace(b"\n", b"\r\n"), key.strip()):
        assert registry.by_node_key(strange) is None


def test_change_by_another_process_is_seen_at_once(registry: Registry, tmp_path: Path) -> None:
    record, key = approved("north")
    other = Registry(tmp_path / "sites")
    for _ in range(20):
        for state in ("approved", "revoked", "approved", "left"):
            other.put(replace(record, state=state))
            found = registry.by_node_key(key)
            assert found is not None
            assert found.state == state
    (tmp_path / "sites" / "north.json").unlink()
    assert registry.by_node_key(key) is None


def test_change_within_one_tick_of_the_clock_is_seen(registry: Registry, tmp_path: Path) -> None:
    record, key = approved("north")
    registry.put(record)
    assert registry.by_node_key(key) == record
    _rewrite_in_place(tmp_path / "sites" / "north.json")
    found = registry.by_node_key(key)
    assert found is not None
    assert found.state == "enrolled"


def test_files_are_read_only_after_a_change(registry: Registry, tmp_path: Path) -> None:
    record, key = approved("north")
    registry.put(record)
    settle(tmp_path / "sites")
    assert registry.by_node_key(key) == record
    _rewrite_in_place(tmp_path / "sites" / "north.json")
    assert registry.by_node_key(key) == record, "what looks unchanged was read again"


def _rewrite_in_place(path: Path) -> None:
    """Change a record's state, its file's size, time and place on disk staying what they are."""
    found, text = path.stat(), path.read_text()
    path.write_text(text.replace('"approved"', '"enrolled"'))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert path.stat().st_size == found.st_size


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"name": "south"}',
        b'{"name": "south", "state": "admin"}', b'{"name": "south", "state": 1}',
        b'{"name": "north", "state": "approved"}', b'{"state": "approved"}',
        b'{"name": "south", "state": "approved", "root": "yes"}',
        b'{"name": "south", "state": "approved", "node_key": 7}',
        b'{"name": "south", "state": "approved", "nonces": [1]}',
        b'{"name": "south", "state": "approved", "nonces": 1}',
        b'{"name": "south", "state": "approved", "retired_keys": 1}',
    ],
)  # fmt: skip
def test_damaged_record_is_no_site_and_closes_no_other(
    registry: Registry, tmp_path: Path, content: bytes
) -> None:
    record, key = approved("north")
    registry.put(record)
    (tmp_path / "sites" / "south.json").write_bytes(content)
    assert registry.by_node_key(key) == record
    for use in (registry.records, lambda: registry.get("south"), lambda: registry.find("south")):
        with pytest.raises(FederationError, match="Restore the file from a backup"):
            use()


def test_record_with_an_unreadable_key_is_no_site(registry: Registry) -> None:
    record, key = approved("north")
    registry.put(record)
    registry.put(replace(NORTH, name="south", state="approved", node_key="ssh-rsa AAAA"))
    assert registry.by_node_key(key) == record


def test_edit_that_fails_or_declines_changes_nothing(registry: Registry) -> None:
    registry.put(NORTH)

    def fail(record: SiteRecord | None) -> SiteRecord:
        raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        registry.change("north", fail)
    assert registry.change("north", lambda _: None) is None
    assert registry.get("north") == NORTH
    registry.put(replace(NORTH, note="the lock was given back"))


def test_threads_and_processes_lose_no_change(registry: Registry, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom dataclasses import replace\nfrom pathlib import Path\n"
        "from medfed.server.federation.registry import Registry\n"
        "registry = Registry(Path(sys.argv[1]))\n"
        "for _ in range(25):\n"
        "    registry.change('north', lambda r: replace(r, note=r.note + 'x'))\n"
    )
    registry.put(NORTH)
    others = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "sites")]) for _ in range(2)
    ]

    def add(_: Any) -> None:
        registry.change("north", lambda record: replace(record or NORTH, note=_plus(record)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(50)))
    assert [other.wait(60) for other in others] == [0, 0]
    assert registry.get("north").note == "x" * 100
    table = json.loads((tmp_path / "sites" / "north.json").read_text())
    assert table["note"] == "x" * 100


def _plus(record: SiteRecord | None) -> str:
    return (record.note if record else "") + "x"
