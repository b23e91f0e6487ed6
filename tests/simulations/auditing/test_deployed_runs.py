"""Auditing what a coordinator has: no ledger of a site, until a site exports its own."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medfed.cli import app
from medfed.common.files import write_json
from medfed.server.countersigning import HEADS_FILE
from medfed.simulations.auditing.audit import Audit, run_audit
from medfed.simulations.auditing.findings import Status
from medfed.simulations.auditing.heads_alone import ABSENT

SITES = ("scanner-1", "scanner-2")


@pytest.fixture
def deployed(run: Path) -> Path:
    """The small run as it lies on a coordinator's machine."""
    shutil.rmtree(run / "arms" / "federated" / "sites")
    (run / "simulation.json").unlink()
    write_json(run / "queue.json", {"name": "run", "state": "finished"})
    return run


def of(audit: Audit, check: str) -> list[tuple[Status, str]]:
    return [(f.status, f.detail) for f in audit.findings if f.check == check]


def heads(run: Path) -> list[dict[str, object]]:
    text = (run / "arms" / "federated" / HEADS_FILE).read_text()
    return [json.loads(line) for line in text.splitlines()]


def write_heads(run: Path, lines: list[dict[str, object]]) -> None:
    text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
    (run / "arms" / "federated" / HEADS_FILE).write_text(text)


def test_audit_of_a_deployed_run_checks_heads_and_says_what_is_not_here(deployed: Path) -> None:
    audit = run_audit(deployed, ["ledger", "membership", "reconstruction"])
    assert audit.passed
    assert audit.epsilon is None
    [(status, _)] = of(audit, "countersigned heads")
    assert status is Status.PASS
    [(status, detail)] = of(audit, ABSENT)
    assert status is Status.NOTE
    assert "scanner-1, scanner-2 are at the sites and were not checked" in detail
    assert detail in audit.verdict
    assert "epsilon" not in audit.verdict.replace(detail, "")
    skipped = [part.skipped for part in audit.parts if part.skipped]
    assert len(skipped) == 2
    assert all("images stay at the hospitals" in why for why in skipped)


Sabotage = Callable[[list[dict[str, object]]], list[dict[str, object]]]


@pytest.mark.parametrize(
    ("sabotage", "told"),
    [
        (lambda lines: lines[:-2], "federated/scanner-1: no head for round 4."),
        (
            lambda lines: [{**lines[0], "head": "0" * 64}, *lines[1:]],
            "the head of round 1 is not signed by the key that it names.",
        ),
        (
            lambda lines: [{**lines[0], "extra": 1}, *lines[1:]],
            "the head of round 1 cannot be read (expected the fields ",
        ),
        (
            lambda lines: [{**lines[0], "public_key": "ab" * 32}, *lines[1:]],
            "federated: heads were signed with 2 keys.",
        ),
    ],
)
def test_audit_of_a_deployed_run_finds_a_changed_book_of_heads(
    deployed: Path, sabotage: Sabotage, told: str
) -> None:
    write_heads(deployed, sabotage(heads(deployed)))
    audit = run_audit(deployed, ["ledger"])
    assert not audit.passed
    assert any(told in failure.detail for failure in audit.failures)


def test_audit_of_a_deployed_run_finds_a_head_of_another_time(deployed: Path) -> None:
    """The signature holds, the rounds say otherwise."""
    path = deployed / "arms" / "federated" / "rounds.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        record["started"] = "2020-01-01T00:00:00.000+00:00"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    audit = run_audit(deployed, ["ledger"])
    assert [f.check for f in audit.failures] == ["countersigned heads"] * len(heads(deployed))
    assert "was signed after it was over" in audit.failures[0].detail


def test_audit_of_a_simulation_without_its_ledgers_fails(deployed: Path) -> None:
    (deployed / "queue.json").unlink()
    audit = run_audit(deployed, ["ledger"])
    assert {failure.check for failure in audit.failures} == {"every training was charged"}


def test_audit_of_a_deployed_run_checks_what_sites_exported(
    run: Path, tmp_path: Path, deployed: Path, finished_run: Path
) -> None:
    for site in SITES:
        own = finished_run / "arms" / "federated" / "sites" / site / "site.toml"
        place = deployed / "arms" / "federated" / "sites" / site / "state"
        exported = CliRunner().invoke(app, ["site", "ledger", "export", str(own), str(place)])
        assert exported.exit_code == 0, exported.output
    audit = run_audit(deployed, ["ledger"])
    assert audit.passed
    assert audit.epsilon is not None
    assert not of(audit, ABSENT)
    assert of(audit, "ledgers against the coordinator's heads")[0][0] is Status.PASS
    # One site alone gives its own: of the other, what there is.
    shutil.rmtree(deployed / "arms" / "federated" / "sites" / "scanner-2")
    audit = run_audit(deployed, ["ledger"])
    assert audit.passed
    [(_, detail)] = of(audit, ABSENT)
    assert detail.startswith("The ledgers of scanner-2 are at the sites")


def test_audit_of_a_deployed_run_misses_the_coordinators_own_ledger(deployed: Path) -> None:
    """Under site-level privacy the coordinator's ledger is the one that matters."""
    arm = deployed / "arms" / "federated"
    study = json.loads((arm / "study.json").read_text())
    study["privacy"]["unit"] = "site"
    (arm / "study.json").write_text(json.dumps(study))
    audit = run_audit(deployed, ["ledger"])
    assert any("Expected the coordinator's ledger" in f.detail for f in audit.failures)
