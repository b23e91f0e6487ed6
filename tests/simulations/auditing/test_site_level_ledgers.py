"""Sabotage of the ledgers of site-level runs: the coordinator's own, and shares of the noise."""

import hashlib
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from medfed.simulations.auditing.audit import run_audit
from medfed.simulations.auditing.findings import Status
from medfed.simulations.auditing.ledger_part import audit_run_ledgers
from medfed.simulations.study import Options, run_study

from .conftest import Prepare
from .ledger_forgery import Entries, forge, read, site_key

DELTA = 1e-3
CHAIN, CHARGED = "chain and signatures", "every training was charged"
PRINTED, STUDY = "epsilon printed and recomputed", "entries against the study"
WEIGHTS, TIMES = "each round's weights", "times of entries"
HEADS = "ledgers against the coordinator's heads"
CENTRAL, SHARED = "site level", "shared noise"


@pytest.fixture(scope="session")
def finished(prepare: Prepare) -> Callable[[str], Path]:
    @cache
    def run_once(kind: str) -> Path:
        run = prepare(kind)
        run_study(run, Options(workers=1))
        return run

    return run_once


@pytest.fixture
def copy_of(finished: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    def copy(kind: str) -> Path:
        shutil.copytree(finished(kind), tmp_path / "run")
        return tmp_path / "run"

    return copy


def failed(run: Path) -> dict[str, str]:
    findings = audit_run_ledgers(run, delta=DELTA).findings
    return {f.check: f.detail for f in findings if f.status is Status.FAIL}


def server(run: Path) -> Path:
    return run / "arms" / "federated" / "server_state"


def site(run: Path) -> Path:
    return run / "arms" / "federated" / "sites" / "scanner-1" / "state"


def change_record(run: Path, index: int, **values: object) -> None:
    path = run / "arms" / "federated" / "rounds.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[index] |= values
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def changed(index: int, **values: object) -> Callable[[Entries], Entries]:
    def change(entries: Entries) -> Entries:
        entries[index]["event"] |= values
        return entries

    return change


@pytest.mark.parametrize("kind", [CENTRAL, SHARED])
def test_correct_run_passes_with_the_servers_ledger(copy_of: Callable[[str], Path], kind: str):
    run = copy_of(kind)
    assert failed(run) == {}
    result = audit_run_ledgers(run, delta=DELTA)
    assert [row[0] for row in result.tables[0].rows][-1] == "federated/(server)"
    assert result.tables[0].rows[-1][1] == 3
    audit = run_audit(run, ["ledger"])
    assert audit.unit == "site"
    assert "for a site at delta 0.001" in audit.verdict


@pytest.mark.parametrize("kind", [CENTRAL, SHARED])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda e: e[:-1], {CHARGED, PRINTED}),
        (lambda e: [e[0], e[2]], {CHARGED, PRINTED}),
        (changed(1, noise_multiplier=9.0), {STUDY, PRINTED}),
        (changed(1, max_grad_norm=0.1), {STUDY}),
        (changed(2, noise="secure"), {STUDY}),
        (changed(0, steps=2), {STUDY, PRINTED}),
        (changed(2, release="ab" * 32), {WEIGHTS}),
    ],
    ids=["last", "middle", "noise", "bound", "source", "steps", "weights"],
)
def test_servers_ledger_that_it_rewrote_and_signed_anew_is_found(
    copy_of: Callable[[str], Path],
    kind: str,
    change: Callable[[Entries], Entries],
    expected: set[str],
):
    run = copy_of(kind)
    forge(server(run), change, key=site_key(server(run)))
    assert set(failed(run)) == expected


def test_servers_ledger_that_is_gone_or_damaged_is_found(copy_of: Callable[[str], Path]):
    run = copy_of(CENTRAL)
    forge(server(run), changed(1, sample_rate=0.1))
    assert CHAIN in failed(run)
    (server(run) / "ledger.jsonl").unlink()
    assert "server_state" in failed(run)[CHARGED]


def test_server_that_prints_another_epsilon_or_bound_is_found(copy_of: Callable[[str], Path]):
    run = copy_of(CENTRAL)
    change_record(run, 2, site_epsilon=0.5)
    assert set(failed(run)) == {PRINTED}
    change_record(run, 0, update_bound=0.4)
    assert STUDY in failed(run)


def test_sampling_that_is_charged_below_the_studys_is_found(copy_of: Callable[[str], Path]):
    """Every round charged as though fewer sites were drawn than the study draws."""
    run = copy_of(CENTRAL)

    def lower(entries: Entries) -> Entries:
        for entry in entries:
            entry["event"]["sample_rate"] = 0.3
        return entries

    forge(server(run), lower, key=site_key(server(run)))
    assert set(failed(run)) == {STUDY, PRINTED}


def test_site_that_claims_noise_of_its_own_is_found(copy_of: Callable[[str], Path]):
    run = copy_of(CENTRAL)
    forge(site(run), changed(0, noise="secure"), key=site_key(site(run)))
    assert {STUDY, HEADS} <= set(failed(run))


def test_server_that_told_a_site_of_more_sites_is_found(copy_of: Callable[[str], Path]):
    """Told that nine share the noise, a site adds less of it: the sum has too little."""
    run = copy_of(SHARED)
    forge(site(run), changed(1, release=_release(run, 9)), key=site_key(site(run)))
    found = failed(run)
    assert "was told that 9 sites share the noise, and 3 were asked" in found[WEIGHTS]
    assert _release(run, 3) == read(_untouched(run))[1]["event"]["release"]


def _untouched(run: Path) -> Path:
    return run / "arms" / "federated" / "sites" / "scanner-2" / "state"


def _release(run: Path, num_participants: int) -> str:
    """Of round 2."""
    arm = run / "arms" / "federated"
    first: dict[str, Any] = json.loads((arm / "rounds.jsonl").read_text().splitlines()[0])
    plan = json.loads((arm / "plan.json").read_text())
    study = hashlib.sha256((arm / "study.json").read_bytes()).hexdigest()
    parts = (study, plan["run"], "2", first["weights_sha256"], str(num_participants))
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()
