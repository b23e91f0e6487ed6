"""Countersignatures: what the coordinator signed neither side can deny, and nothing else passes."""

import json
import os
import random
import shutil
import stat
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from medfed.common.errors import LedgerError
from medfed.common.ledger import Countersignature, Entry, Ledger, ServerKey, Spend, check_heads
from medfed.common.ledger.chain import read_time, write_time
from medfed.common.ledger.countersigning import check, read_countersignatures


@pytest.fixture
def key(tmp_path: Path) -> ServerKey:
    return ServerKey.load_or_make(tmp_path / "server.key")


def sign(key: ServerKey, entry: Entry, **values: Any) -> Countersignature:
    """The coordinator's signature of the round that `entry` is about."""
    spend = entry.spend
    given = {"run": spend.run, "round_number": spend.round_number, "head": entry.hash, **values}
    return key.sign(site="north", **given)


def kept(ledger: Ledger) -> tuple[Countersignature, ...]:
    return read_countersignatures(ledger.folder / "countersignatures.jsonl")


def test_server_key_is_made_once_and_kept_to_its_owner(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        made = ServerKey.load_or_make(tmp_path / "server.key")
    finally:
        os.umask(old)
    again = ServerKey.load_or_make(tmp_path / "server.key")
    assert made.public_key == again.public_key
    assert stat.S_IMODE((tmp_path / "server.key").stat().st_mode) == 0o600
    (tmp_path / "server.key").write_bytes(b"")
    with pytest.raises(LedgerError, match="not a readable key"):
        ServerKey.load_or_make(tmp_path / "server.key")


def test_countersignature_survives_json_and_is_checked(key: ServerKey, eight: Ledger) -> None:
    signed = sign(key, eight.entries()[0])
    again = Countersignature.from_json(signed.to_json())
    assert again == signed
    check(again)
    assert "\n" not in signed.to_json()


@pytest.mark.parametrize(
    "values",
    [
        {"run": "run-2"},
        {"site": "south"},
        {"round_number": 2},
        {"head": "f" * 64},
        {"time": "2020-01-01T00:00:00.000+00:00"},
        {"signature": "0" * 128},
        {"public_key": "f" * 64},
    ],
)
def test_countersignature_binds_every_field(
    key: ServerKey, eight: Ledger, values: dict[str, Any]
) -> None:
    changed = replace(sign(key, eight.entries()[0]), **values)
    with pytest.raises(LedgerError, match="not signed by the key that it names"):
        check(changed)
    with pytest.raises(LedgerError, match="not signed by the key that it names"):
        eight.keep_countersignature(changed)
    assert not (eight.folder / "countersignatures.jsonl").exists()
    assert not (eight.folder / "coordinator.pub").exists()


def test_entry_signature_is_no_countersignature_and_the_other_way_round(
    tmp_path: Path, eight: Ledger
) -> None:
    # Even where one key signs both, as in a test rig: the texts differ in what they are for.
    shutil.copy(eight.folder / "ledger.key", tmp_path / "server.key")
    both = ServerKey.load_or_make(tmp_path / "server.key")
    entry = eight.entries()[0]
    line = json.loads(eight.path.read_bytes().splitlines()[0])
    signed = sign(both, entry)
    with pytest.raises(LedgerError, match="not signed"):
        check(replace(signed, signature=line["signature"]))
    eight.path.write_bytes(
        eight.path.read_bytes().replace(line["signature"].encode(), signed.signature.encode())
    )
    with pytest.raises(LedgerError, match="entry 0 cannot be trusted: its signature"):
        eight.entries()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: {**t, "note": ""},
        lambda t: {name: t[name] for name in t if name != "site"},
        lambda t: {**t, "round_number": "1"},
        lambda t: {**t, "round_number": -1},
        lambda t: {**t, "round_number": True},
        lambda t: {**t, "head": t["head"].upper()},
        lambda t: {**t, "head": 7},
        lambda t: {**t, "run": None},
        lambda t: {**t, "time": "now"},
        lambda t: {**t, "public_key": "00"},
        lambda t: [t],
    ],
)
def test_countersignature_of_another_form_is_refused(
    key: ServerKey, eight: Ledger, spoil: Any
) -> None:
    table = asdict(sign(key, eight.entries()[0]))
    with pytest.raises(LedgerError, match="cannot be read"):
        Countersignature.from_json(json.dumps(spoil(table), sort_keys=True))
    with pytest.raises(LedgerError, match="spelled in another way"):
        Countersignature.from_json(json.dumps(table, sort_keys=True) + " ")
    with pytest.raises(LedgerError, match="cannot be read"):
        Countersignature.from_json("")
    with pytest.raises(ValueError, match="hexadecimal digits as head"):
        key.sign(run="r", site="s", round_number=1, head="short")


def test_site_keeps_a_countersignature_once(key: ServerKey, eight: Ledger) -> None:
    signed = [sign(key, entry) for entry in eight.entries()]
    for one in signed[:3]:
        for _ in range(2):
            eight.keep_countersignature(one)
    assert kept(eight) == tuple(signed[:3])
    assert (eight.folder / "coordinator.pub").read_text() == key.public_key + "\n"


def test_site_refuses_another_coordinator_and_says_the_way_out(
    key: ServerKey, eight: Ledger, tmp_path: Path
) -> None:
    first, second = (sign(key, entry) for entry in eight.entries()[:2])
    eight.keep_countersignature(first)
    other = ServerKey.load_or_make(tmp_path / "other.key")
    stranger = sign(other, eight.entries()[1])
    check(stranger)
    with pytest.raises(LedgerError, match=r"move coordinator.pub and countersignatures.jsonl"):
        eight.keep_countersignature(stranger)
    eight.keep_countersignature(second)
    assert kept(eight) == (first, second)
    for name in ("coordinator.pub", "countersignatures.jsonl"):
        (eight.folder / name).rename(eight.folder / f"{name}.old")
    eight.keep_countersignature(stranger)
    assert kept(eight) == (stranger,)


def test_site_refuses_a_head_that_is_not_in_its_ledger(
    key: ServerKey, eight: Ledger, base_spend: Spend
) -> None:
    entries = eight.entries()
    lacking = key.sign(run="run-1", site="north", round_number=1, head="a" * 64)
    with pytest.raises(LedgerError, match="an entry that this ledger lacks"):
        eight.keep_countersignature(lacking)
    # A hash that stands in an event is no entry's, whatever is around it.
    with eight.locked() as locked:
        locked.append(replace(base_spend, release=f'"hash": "{"a" * 64}"'))
    with pytest.raises(LedgerError, match="an entry that this ledger lacks"):
        eight.keep_countersignature(lacking)
    # The ledger was cut after the coordinator had signed its end.
    eight.path.write_bytes(b"".join(eight.path.read_bytes().splitlines(keepends=True)[:5]))
    with pytest.raises(LedgerError, match="an entry that this ledger lacks"):
        eight.keep_countersignature(sign(key, entries[5]))
    eight.keep_countersignature(sign(key, entries[4]))


def test_torn_countersignature_is_replaced_and_no_earlier_one_lost(
    key: ServerKey, eight: Ledger
) -> None:
    first, second, third = (sign(key, entry) for entry in eight.entries()[:3])
    eight.keep_countersignature(first)
    path = eight.folder / "countersignatures.jsonl"
    whole = path.read_bytes()
    line = second.to_json().encode()
    for cut in (1, 30, len(line) - 1, len(line)):
        path.write_bytes(whole + line[:cut])
        assert kept(eight) == (first,)
        eight.keep_countersignature(second)
        assert kept(eight) == (first, second)
        path.write_bytes(whole + line[:cut])
        eight.keep_countersignature(first)
        assert path.read_bytes() == whole
    eight.keep_countersignature(third)
    assert kept(eight) == (first, third)


def test_every_change_of_one_byte_of_the_countersignatures_is_found(
    key: ServerKey, eight: Ledger
) -> None:
    signed = [sign(key, entry) for entry in eight.entries()]
    for one in signed:
        eight.keep_countersignature(one)
    path = eight.folder / "countersignatures.jsonl"
    content = path.read_bytes()
    rng = random.Random(6)
    last_end = len(content) - 1  # without it the last line is torn, and comes again
    for _ in range(200):
        place = rng.randrange(last_end)
        value = rng.choice([b for b in range(256) if b != content[place]])
        path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
        with pytest.raises(LedgerError, match=f"line {content[:place].count(bytes([10]))}: "):
            kept(eight)
    path.write_bytes(content)
    assert kept(eight) == tuple(signed)


def test_check_heads_passes_what_was_signed_round_by_round(key: ServerKey, eight: Ledger) -> None:
    entries = eight.entries()
    assert check_heads(entries, [sign(key, entry) for entry in entries]) == []
    assert check_heads(entries, []) == []


def test_check_heads_passes_a_repeated_round_and_runs_that_overlap(
    key: ServerKey, eight: Ledger, base_spend: Spend
) -> None:
    with eight.locked() as locked:
        locked.append(replace(base_spend, run="run-2", round_number=1))
    entries = eight.entries()
    signed = [sign(key, entry) for entry in entries]
    # Resumed after round 6: round 7 is not charged again, and its head is what there is by now.
    again = sign(key, entries[6], head=entries[8].hash)
    assert check_heads(entries, [*signed[:8], again, signed[8]]) == []
    # Heard of in another order than signed: the runs overlapped.
    assert check_heads(entries, [signed[8], *signed[:8]]) == []


def test_check_heads_finds_entries_that_were_cut_off(key: ServerKey, eight: Ledger) -> None:
    entries = eight.entries()
    signed = [sign(key, entry) for entry in entries]
    (problem,) = check_heads(entries[:7], signed)
    assert problem.startswith(
        "countersignature of round 8 of run run-1: the ledger lacks the entry"
    )
    assert len(check_heads(entries[:5], signed)) == 3


def test_check_heads_finds_a_round_that_was_not_charged(key: ServerKey, eight: Ledger) -> None:
    entries = eight.entries()
    uncharged = sign(key, entries[7], round_number=9)
    (problem,) = check_heads(entries, [uncharged])
    assert "round 9 of run run-1: no entry of that round" in problem
    (problem,) = check_heads(entries, [sign(key, entries[2], round_number=5)])
    assert "no entry of that round up to entry 2" in problem


def test_check_heads_finds_heads_in_another_order(key: ServerKey, eight: Ledger) -> None:
    entries = eight.entries()
    signed = [sign(key, entries[i]) for i in (0, 3, 2)]
    (problem,) = check_heads(entries, signed)
    assert problem == "countersignature of round 3 of run run-1: entry 2, after entry 3 was signed"


def test_check_heads_finds_times_that_cannot_be(key: ServerKey, eight: Ledger) -> None:
    entries = eight.entries()
    signed = sign(key, entries[3])

    def shifted(minutes: float) -> list[str]:
        time = write_time(read_time(signed.time) + timedelta(minutes=minutes))
        return check_heads(entries, [replace(signed, time=time)])

    assert shifted(9) == []
    assert shifted(-9) == []
    # The entry is dated after it was signed.
    (problem,) = shifted(-11)
    assert "entry 3 is dated 0:1" in problem
    assert problem.endswith("after its signature")
    # The next round is dated before this one was signed: it was dated back.
    (problem,) = shifted(11)
    assert problem.startswith("entry 4 is dated 0:1")
    assert problem.endswith("before countersignature of round 4 of run run-1")
