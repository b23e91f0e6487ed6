"""The server's side of countersigning: what it signs, keeps and sends back."""

import stat
from pathlib import Path

import pytest

from medfed.common.errors import UpdateError
from medfed.common.ledger import GENESIS, Countersignature, Ledger, Spend
from medfed.common.ledger.countersigning import check, read_countersignatures
from medfed.server.countersigning import Countersigner, screen_head

A, B, C = "a" * 64, "b" * 64, "c" * 64


def countersigner(folder: Path, run: str = "run/federated") -> Countersigner:
    return Countersigner(folder / "heads.jsonl", folder / "server_state" / "server.key", run)


def test_heads_of_a_round_are_signed_kept_and_sent_back(tmp_path: Path) -> None:
    this = countersigner(tmp_path)
    assert this.latest == {}
    this.sign_round(1, {"north": A, "south": B, "nothing": "", "empty": GENESIS})
    this.sign_round(2, {"north": C})
    kept = read_countersignatures(tmp_path / "heads.jsonl")
    assert [(s.site, s.round_number, s.head) for s in kept] == [
        ("north", 1, A),
        ("south", 1, B),
        ("north", 2, C),
    ]
    assert {s.run for s in kept} == {"run/federated"}
    assert {s.public_key for s in kept} == {kept[0].public_key}
    sent = {site: Countersignature.from_json(text) for site, text in this.latest.items()}
    assert {site: signed.head for site, signed in sent.items()} == {"north": C, "south": B}
    for signed in sent.values():
        check(signed)


def test_key_is_for_its_owner_alone_and_stays_the_same(tmp_path: Path) -> None:
    countersigner(tmp_path).sign_round(1, {"north": A})
    key = tmp_path / "server_state" / "server.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    countersigner(tmp_path).sign_round(2, {"north": B})
    kept = read_countersignatures(tmp_path / "heads.jsonl")
    assert len({s.public_key for s in kept}) == 1


def test_resumed_run_sends_what_was_signed_and_signs_no_head_twice(tmp_path: Path) -> None:
    countersigner(tmp_path).sign_round(1, {"north": A, "south": B})
    this = countersigner(tmp_path)
    assert {site: Countersignature.from_json(t).head for site, t in this.latest.items()} == {
        "north": A,
        "south": B,
    }
    # Round 1 is repeated: north's seeded release was charged once, south's secure one twice.
    this.sign_round(1, {"north": A, "south": C})
    kept = read_countersignatures(tmp_path / "heads.jsonl")
    assert [(s.site, s.head) for s in kept] == [("north", A), ("south", B), ("south", C)]


def test_line_torn_by_a_power_cut_is_cut_off(tmp_path: Path) -> None:
    countersigner(tmp_path).sign_round(1, {"north": A, "south": B})
    path = tmp_path / "heads.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    this = countersigner(tmp_path)
    assert set(this.latest) == {"north"}
    this.sign_round(1, {"south": B})
    assert [s.site for s in read_countersignatures(path)] == ["north", "south"]


def test_site_keeps_what_the_server_signed_of_its_ledger(tmp_path: Path) -> None:
    spend = Spend(
        release="r", study="s", run="run/federated", round_number=1, unit="patient",
        images_per_patient=1, noise_multiplier=1.0, sample_rate=0.1, steps=1, max_grad_norm=1.0,
        noise="seeded",
    )  # fmt: skip
    ledger = Ledger(tmp_path / "state")
    with ledger.locked() as locked:
        locked.append(spend)
        head = locked.head
    this = countersigner(tmp_path)
    this.sign_round(1, {"north": head})
    for _ in range(2):  # the server sends the last one with every message
        ledger.keep_countersignature(Countersignature.from_json(this.latest["north"]))
    kept = read_countersignatures(tmp_path / "state" / "countersignatures.jsonl")
    assert [signed.head for signed in kept] == [head]


@pytest.mark.parametrize("head", ["a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 63 + "\n", "0x12"])
def test_head_that_is_none_is_refused_without_being_quoted(head: str) -> None:
    with pytest.raises(UpdateError, match="64 hexadecimal") as caught:
        screen_head(head)
    assert head not in str(caught.value)


def test_well_formed_and_missing_heads_pass() -> None:
    assert screen_head(A) == A
    assert screen_head("") == ""
