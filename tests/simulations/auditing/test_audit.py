"""The audit as one command: verdict, exit code, JSON and the page, of real runs."""

import json
import re
import shutil
from pathlib import Path

import pytest
import typer

from medfed.cli.audit import AuditRequest, print_audit
from medfed.common.errors import LedgerError, RunError, StudyError
from medfed.simulations.auditing.audit import PARTS, Audit, run_audit
from medfed.simulations.auditing.findings import Finding, PartResult, Status
from medfed.simulations.auditing.page import write_page

from .ledger_forgery import forge


def request(target: Path, out: Path, *parts: str, as_json: bool = False) -> AuditRequest:
    return AuditRequest(target, parts, out, as_json, seed=0, full=False, delta=None)


def test_run_passes_and_writes_the_page(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    print_audit(request(run, tmp_path / "out", "ledger"))
    printed = capsys.readouterr().out
    assert printed.startswith("Passed: ")
    assert "for a patient at delta 0.001" in printed
    page = (tmp_path / "out" / "audit.html").read_text()
    facts = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert facts["verdict"] in printed
    assert f"{facts['epsilon']:.4f}" in page
    for words in ("Unit of privacy", "Neighbouring data sets", "Threat model", "NIST SP 800-226"):
        assert words in page
    # Opens offline, and holds no path of this machine.
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert str(tmp_path) not in page


def test_forged_run_exits_7_and_says_what_and_where(
    run: Path, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    forge(state, lambda entries: entries[:-1])
    with pytest.raises(typer.Exit) as ended:
        print_audit(request(run, tmp_path / "out", "ledger", as_json=True))
    assert ended.value.exit_code == 7
    facts = json.loads(capsys.readouterr().out)
    assert not facts["passed"]
    failed = [f for f in facts["parts"][0]["findings"] if f["status"] == "fail"]
    assert any("federated/scanner-1: no entry for round 4" in f["detail"] for f in failed)
    assert "<h1>Not passed</h1>" in (tmp_path / "out" / "audit.html").read_text()


def test_check_that_one_ledger_fails_passes_elsewhere(run: Path, state: Path):
    book = state / "ledger.jsonl"
    book.write_text(book.read_text().replace('"steps": ', '"steps": 9', 1))
    [part] = run_audit(run, ("ledger",)).parts
    details = {
        finding.status: finding.detail
        for finding in part.findings
        if finding.check == "chain and signatures"
    }
    assert "entry 0" in details[Status.FAIL]
    assert details[Status.PASS].startswith("Elsewhere: the lines are canonical")


def test_exported_ledger_is_audited_alone_at_its_own_delta(state: Path, tmp_path: Path):
    export = tmp_path / "export"
    export.mkdir()
    for name in ("ledger.jsonl", "ledger.pub", "countersignatures.jsonl", "coordinator.pub"):
        shutil.copy(state / name, export / name)
    (export / "facts.json").write_text('{"target_delta": 0.001}')
    audit = run_audit(export, ("ledger", "membership", "reconstruction"))
    assert audit.passed
    assert audit.delta == 0.001
    assert [bool(part.skipped) for part in audit.parts] == [False, True, True]
    assert run_audit(export / "ledger.jsonl", ("ledger",)).epsilon == audit.epsilon


@pytest.mark.parametrize(
    ("target", "parts", "error"),
    [
        ("missing", PARTS, RunError),
        (".", ("ledger",), LedgerError),
        (".", ("everything",), StudyError),
    ],
)
def test_unusable_input_is_an_error(
    tmp_path: Path, target: str, parts: tuple[str, ...], error: type[Exception]
):
    with pytest.raises(error, match="Expected"):
        run_audit(tmp_path / target, parts)


def test_verdict_claims_nothing_when_all_was_skipped():
    audit = Audit("run", None, 1e-5, (PartResult("membership", skipped="no data"),))
    assert audit.verdict == "Nothing was audited: every part was skipped."


def test_page_escapes_what_comes_from_files(tmp_path: Path):
    finding = Finding("ledger", "chain", Status.FAIL, "<script>alert(1)</script>")
    page = write_page(Audit("<b>x", None, 1e-5, (PartResult("ledger", (finding,)),)), tmp_path)
    assert "<script>alert" not in page.read_text()
    assert "&lt;script&gt;" in page.read_text()
