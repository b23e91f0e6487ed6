"""The sabotage suite of ledgers: whatever is done to a real run's books, the audit finds it."""

import hashlib
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medfed.common.errors import RunError
from medfed.simulations.auditing.findings import Status
from medfed.simulations.auditing.ledger_part import audit_ledger, audit_run_ledgers

from .ledger_forgery import Entries, forge, read, site_key

DELTA = 1e-3
CHAIN, HEADS = "chain and signatures", "ledgers against the coordinator's heads"
OWN = "countersignatures kept by the site"
CHARGED, PRINTED = "every training was charged", "epsilon printed and recomputed"
STUDY, WEIGHTS, TIMES = "entries against the study", "each round's weights", "times of entries"


def failed(run: Path) -> set[str]:
    result = audit_run_ledgers(run, delta=DELTA)
    return {finding.check for finding in result.findings if finding.status is Status.FAIL}


def changed(index: int, **values: object) -> Callable[[Entries], Entries]:
    """Change values of an entry's event."""

    def change(entries: Entries) -> Entries:
        entries[index]["event"] |= values
        return entries

    return change


def dated(index: int, by: timedelta) -> Callable[[Entries], Entries]:
    def change(entries: Entries) -> Entries:
        moved = datetime.fromisoformat(entries[index]["time"]) + by
        entries[index]["time"] = moved.isoformat(timespec="milliseconds")
        return entries

    return change


def swapped(entries: Entries) -> Entries:
    """Exchange what two entries say, each at its own time."""
    entries[1]["event"], entries[2]["event"] = entries[2]["event"], entries[1]["event"]
    return entries


FORGERIES = {
    "removed from the middle": (lambda e: [*e[:1], *e[2:]], {CHARGED, PRINTED}),
    "removed at the end": (lambda e: e[:-1], {CHARGED, PRINTED}),
    "reordered": (swapped, set()),
    "edited: less noise admitted": (changed(1, noise_multiplier=2.0), {STUDY, PRINTED}),
    "edited: fewer steps admitted": (changed(2, steps=1), {STUDY, PRINTED}),
    "edited: other unit": (changed(0, unit="record"), {STUDY}),
    "edited: other run": (changed(3, run="another"), {CHARGED}),
    "back-dated": (dated(0, timedelta(days=-30)), {TIMES}),
    "dated forward": (dated(3, timedelta(days=1)), {TIMES}),
}


def test_correct_run_passes(run: Path):
    result = audit_run_ledgers(run, delta=DELTA)
    assert failed(run) == set()
    passed = {f.check for f in result.findings if f.status is Status.PASS}
    assert {CHAIN, OWN, HEADS, CHARGED, PRINTED, STUDY, WEIGHTS, TIMES} <= passed


@pytest.mark.parametrize("name", FORGERIES)
def test_forgery_signed_with_the_sites_own_key_is_found(run: Path, state: Path, name: str):
    """The site itself rewrote its book, number by number, hash by hash, signature by signature."""
    change, expected = FORGERIES[name]
    forge(state, change, key=site_key(state))
    found = failed(run)
    assert CHAIN not in found or "unit" in name  # the chain itself is perfect again
    assert found >= expected | {HEADS}


@pytest.mark.parametrize("name", FORGERIES)
def test_forgery_is_found_without_the_coordinators_records(state: Path, name: str):
    """By the signatures alone, of an export: the forger has no key."""
    change, _ = FORGERIES[name]
    forge(state, change)
    result = audit_ledger(state, delta=DELTA)
    assert not result.passed


def test_entries_signed_by_another_key_are_found(run: Path, state: Path):
    forge(state, lambda entries: entries, key=Ed25519PrivateKey.generate())
    assert failed(run) == {CHAIN}  # the hashes are those of before


def test_added_entry_is_found_when_it_was_charged_to_a_round_of_the_past(run: Path, state: Path):
    def add(entries: Entries) -> Entries:
        return [entries[0], *entries]

    forge(state, add, key=site_key(state))
    assert HEADS in failed(run)


def test_missing_countersignature_is_found(run: Path):
    heads = run / "arms" / "federated" / "heads.jsonl"
    heads.write_text("".join(heads.read_text().splitlines(keepends=True)[2:]))
    assert HEADS in failed(run)


def test_whole_ledger_that_is_gone_is_found(run: Path, state: Path):
    (state / "ledger.jsonl").unlink()
    assert CHARGED in failed(run)


def test_server_replaying_an_old_model_is_found(run: Path, state: Path):
    """The server sent round 3 the weights after round 1 again: the site's entry says so."""
    rounds = _rounds(run)
    forge(state, _trained_from(run, read(state), 2, rounds[0]["weights_sha256"]))
    result = audit_run_ledgers(run, delta=DELTA)
    details = [f.detail for f in result.findings if f.check == WEIGHTS and f.status is Status.FAIL]
    assert len(details) == 1
    assert "round 3, was trained from the weights after round 1: an old model was" in details[0]


def test_server_replaying_the_first_weights_is_found(run: Path, state: Path):
    from medfed.simulations.auditing.ledger_weights import _initial_weights
    from medfed.simulations.auditing.run_ledgers import read_arms

    first = _initial_weights(read_arms(run)[0])
    assert first is not None
    forge(state, _trained_from(run, read(state), 1, first))
    assert WEIGHTS in failed(run)


def test_server_whose_own_record_repeats_weights_is_found(run: Path):
    rounds = _rounds(run)
    rounds[2]["weights_sha256"] = rounds[0]["weights_sha256"]
    _write_rounds(run, rounds)
    assert WEIGHTS in failed(run)


def test_server_that_prints_another_epsilon_is_found(run: Path):
    rounds = _rounds(run)
    rounds[3]["sites"]["scanner-2"]["epsilon"] *= 0.95
    _write_rounds(run, rounds)
    assert failed(run) == {PRINTED}


def test_server_that_hides_a_round_is_a_note(run: Path):
    """More charged than was used is allowed: a crash over-counts. It is said all the same."""
    _write_rounds(run, _rounds(run)[:-1])
    result = audit_run_ledgers(run, delta=DELTA)
    notes = [f.detail for f in result.findings if f.status is Status.NOTE and f.check == CHARGED]
    assert any("round 4 charged and not used" in note for note in notes)
    assert failed(run) == set()


def test_study_that_was_changed_afterwards_is_found(run: Path):
    path = run / "arms" / "federated" / "study.json"
    study = json.loads(path.read_text())
    study["privacy"]["noise_multiplier"] = 2.0
    path.write_text(json.dumps(study, sort_keys=True, separators=(",", ":")))
    assert {STUDY, WEIGHTS} <= failed(run)


def test_run_without_a_completed_round_is_unusable(run: Path):
    _write_rounds(run, [])
    with pytest.raises(RunError, match="no completed round"):
        audit_run_ledgers(run, delta=DELTA)


def _trained_from(
    run: Path, entries: Entries, index: int, weights: str
) -> Callable[[Entries], Entries]:
    study = (run / "arms" / "federated" / "study.json").read_bytes()
    event = entries[index]["event"]
    assert event["study"] == hashlib.sha256(study).hexdigest()
    parts = (event["study"], event["run"], str(event["round_number"]), weights)
    return changed(index, release=hashlib.sha256("\x1f".join(parts).encode()).hexdigest())


def _rounds(run: Path) -> list[dict[str, Any]]:
    text = (run / "arms" / "federated" / "rounds.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def _write_rounds(run: Path, rounds: list[dict[str, Any]]) -> None:
    path = run / "arms" / "federated" / "rounds.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in rounds))
