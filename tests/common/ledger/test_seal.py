"""The seal: saves verifying each line, and never lets a line pass that verifying would not."""

import json
import random
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medfed.common.errors import LedgerError
from medfed.common.ledger import Ledger, Spend, Summary, reading
from medfed.common.ledger.chain import canonical


def seal_of(ledger: Ledger) -> Path:
    return ledger.folder / "ledger.seal"


def rounds(ledger: Ledger) -> list[int]:
    """As a spender sees them."""
    with ledger.locked() as locked:
        assert locked.summary == Summary.of(entry.spend for entry in locked.entries)
        return [entry.spend.round_number for entry in locked.entries]


def assert_refused(ledger: Ledger, match: str) -> None:
    content = ledger.path.read_bytes()
    with pytest.raises(LedgerError, match=match), ledger.locked():
        pass
    with pytest.raises(LedgerError, match=match):
        ledger.entries()
    assert ledger.path.read_bytes() == content


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many lines each verification looked at, from now on."""
    counts: list[int] = []
    verify = reading.verify

    def counting(lines: Iterable[bytes], *rest: Any) -> Any:
        looked_at = list(lines)
        counts.append(len(looked_at))
        return verify(looked_at, *rest)

    monkeypatch.setattr(reading, "verify", counting)
    return counts


def test_sealed_lines_are_not_verified_again(
    eight: Ledger, base_spend: Spend, verified: list[int]
) -> None:
    with eight.locked() as locked:
        locked.append(replace(base_spend, round_number=9))
    with eight.locked() as locked:
        assert locked.summary.num_entries == 9
    assert verified == [0, 0]
    eight.entries()
    assert verified.pop() == 9  # to read is to verify each line


def test_lines_after_the_seal_are_verified_and_then_sealed(
    eight: Ledger, base_spend: Spend, verified: list[int]
) -> None:
    older = seal_of(eight).read_bytes()
    for number in (9, 10):
        with eight.locked() as locked:
            locked.append(replace(base_spend, round_number=number))
    seal_of(eight).write_bytes(older)  # what a power cut leaves
    verified.clear()
    assert rounds(eight) == list(range(1, 11))
    assert rounds(eight) == list(range(1, 11))
    assert verified == [2, 0]


@pytest.mark.parametrize("damage", ["removed", "emptied", "garbage", "another key's", "a folder"])
def test_a_seal_that_means_nothing_costs_time_only(
    eight: Ledger, verified: list[int], tmp_path: Path, base_spend: Spend, damage: str
) -> None:
    path = seal_of(eight)
    content = path.read_bytes()
    path.unlink()
    if damage == "emptied":
        path.write_bytes(b"")
    elif damage == "garbage":
        path.write_bytes(b"[1]\n\xff")
    elif damage == "another key's":
        table = json.loads(content)
        del table["signature"]
        key = Ed25519PrivateKey.generate()
        text = b"medfed ledger seal 1\n" + canonical(table)
        path.write_bytes(canonical({**table, "signature": key.sign(text).hex()}))
    elif damage == "a folder":
        path.mkdir()
    assert rounds(eight) == list(range(1, 9))
    assert verified == [8]
    with eight.locked() as locked:
        locked.append(replace(base_spend, round_number=9))
    assert rounds(eight) == list(range(1, 10))


def test_seal_signed_as_an_entry_is_none(eight: Ledger, verified: list[int]) -> None:
    # An entry's signature is over 32 bytes that another may choose; it must not seal anything.
    key = eight._key
    table = json.loads(seal_of(eight).read_bytes())
    del table["signature"]
    seal_of(eight).write_bytes(canonical({**table, "signature": key.sign(canonical(table)).hex()}))
    rounds(eight)
    assert verified == [8]


def test_every_change_of_one_byte_is_found_and_named_though_a_seal_is_there(eight: Ledger) -> None:
    content, seal = eight.path.read_bytes(), seal_of(eight).read_bytes()
    rng = random.Random(4)
    ends = [place for place, byte in enumerate(content) if byte == ord("\n")]
    for place in [*ends, *(rng.randrange(len(content)) for _ in range(200))]:
        value = rng.choice([b for b in range(256) if b != content[place]])
        eight.path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
        entry = content[:place].count(b"\n")
        # A changed line end joins two lines; the last one's leaves a line that no longer is one.
        assert_refused(eight, f"entry {entry} cannot be trusted|torn line|removed or replaced")
        assert seal_of(eight).read_bytes() == seal
    eight.path.write_bytes(content)
    assert rounds(eight) == list(range(1, 9))


def test_no_change_of_one_byte_of_the_seal_matters(eight: Ledger, base_spend: Spend) -> None:
    content, seal = eight.path.read_bytes(), seal_of(eight).read_bytes()
    damaged = content.replace(b'"steps": 8', b'"steps": 1')
    rng = random.Random(5)
    for _ in range(100):
        place = rng.randrange(len(seal))
        value = rng.choice([b for b in range(256) if b != seal[place]])
        changed = seal[:place] + bytes([value]) + seal[place + 1 :]
        eight.path.write_bytes(content)
        seal_of(eight).write_bytes(changed)
        assert rounds(eight) == list(range(1, 9))
        eight.path.write_bytes(damaged)
        seal_of(eight).write_bytes(changed)
        assert_refused(eight, "entry 7 cannot be trusted")


def test_seal_finds_entries_cut_off_the_end(eight: Ledger, tmp_path: Path) -> None:
    lines = eight.path.read_bytes().splitlines(keepends=True)
    for kept in (7, 3, 0):
        eight.path.write_bytes(b"".join(lines[:kept]))
        assert_refused(eight, f"removed or replaced. The {kept} that it holds")
    # Cut within the last line: a spend that was written whole, not a torn one.
    eight.path.write_bytes(b"".join(lines)[:-40])
    with pytest.raises(LedgerError, match="removed or replaced"), eight.locked():
        pass
    assert not (eight.folder / "ledger.torn").exists()
    eight.path.unlink()
    with pytest.raises(LedgerError, match="The 0 that it holds"), eight.locked():
        pass
    assert not eight.path.exists()
    (eight.folder / "ledger.key").unlink()
    with pytest.raises(LedgerError, match="Restore the key"):
        Ledger(eight.folder)


def test_seal_finds_another_history_of_the_same_key(
    eight: Ledger, tmp_path: Path, base_spend: Spend
) -> None:
    other = Ledger(Path(shutil.copytree(eight.folder, tmp_path / "other")))
    other.path.write_bytes(b"".join(other.path.read_bytes().splitlines(keepends=True)[:4]))
    seal_of(other).unlink()
    with other.locked() as locked:
        for number in range(5, 12):
            locked.append(replace(base_spend, round_number=number, steps=1))
    shutil.copy(other.path, eight.path)
    assert_refused(eight, "removed or replaced. The 11 that it holds")


def test_last_entry_that_lost_its_line_end_is_still_the_sealed_one(eight: Ledger) -> None:
    content = eight.path.read_bytes()
    eight.path.write_bytes(content[:-1])
    assert len(reading.read_ledger(eight.folder).entries) == 7
    assert rounds(eight) == list(range(1, 9))
    assert eight.path.read_bytes() == content


def test_torn_line_after_the_seal_is_set_aside(eight: Ledger) -> None:
    content = eight.path.read_bytes()
    eight.path.write_bytes(content + b'{"event": {"ext')
    copy = reading.read_ledger(eight.folder)
    assert (len(copy.entries), copy.torn) == (8, b'{"event": {"ext')
    assert rounds(eight) == list(range(1, 9))
    assert eight.path.read_bytes() == content
    assert (eight.folder / "ledger.torn").read_bytes() == b'{"event": {"ext\n'


def test_ledger_goes_on_when_the_seal_cannot_be_written(
    eight: Ledger, base_spend: Spend, caplog: pytest.LogCaptureFixture
) -> None:
    seal_of(eight).unlink()
    seal_of(eight).mkdir()
    with eight.locked() as locked:
        locked.append(replace(base_spend, round_number=9))
    assert "could not be written" in caplog.text
    assert [entry.spend.round_number for entry in eight.entries()] == list(range(1, 10))


def test_reading_makes_and_changes_nothing(eight: Ledger, tmp_path: Path) -> None:
    seal_of(eight).unlink()
    (eight.folder / "ledger.key").unlink()
    (eight.folder / "ledger.lock").unlink()
    before = {path: path.read_bytes() for path in eight.folder.iterdir()}
    assert len(reading.read_ledger(eight.folder).entries) == 8
    assert {path: path.read_bytes() for path in eight.folder.iterdir()} == before
    with pytest.raises(LedgerError, match="Expected a ledger at"):
        reading.read_ledger(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_seal_of_a_refused_charge_still_saves_the_next_one(
    eight: Ledger, verified: list[int]
) -> None:
    seal_of(eight).unlink()
    with pytest.raises(RuntimeError), eight.locked():
        raise RuntimeError("over budget")
    rounds(eight)
    assert verified == [8, 0]
