"""The ledger part: each ledger alone, then against what the run's coordinator wrote down."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from medfed.common.errors import LedgerError, RunError, reason
from medfed.simulations.auditing import verify_ledger
from medfed.simulations.auditing.collecting import Check
from medfed.simulations.auditing.findings import Finding, PartResult, Status, Table
from medfed.simulations.auditing.heads_alone import check_absent
from medfed.simulations.auditing.ledger_against_run import against_run
from medfed.simulations.auditing.run_ledgers import ArmRecord, read_arms

PART = "ledger"
RECOMPUTED = "epsilon recomputed"
_CHAIN = (
    "The lines are canonical, chained by SHA-256, signed, in order of time, and mean something."
)
_SIGNED = "Every countersignature is the coordinator's and names an entry that is there."


def audit_ledger(path: Path, *, delta: float | None = None) -> PartResult:
    """Check one ledger: ledger.jsonl, or the folder that holds it.

    Raises:
        LedgerError: There is nothing to check, or it cannot be read.
    """
    result = _examine(path, delta)
    findings = [*_about_one(result, result["ledger"])]
    return PartResult(PART, tuple(findings), tables=(_table([("", result, None)]),))


def audit_run_ledgers(run: Path, *, delta: float) -> PartResult:
    """Check every ledger of a run, alone and against the coordinator's records.

    Raises:
        RunError, LedgerError: Something cannot be read at all.
    """
    findings: list[Finding] = []
    rows = []
    arms = read_arms(run)
    if not any(arm.rounds for arm in arms):
        raise RunError(
            f"{run} has no completed round: there is nothing to audit. Finish it: a simulation "
            "with `medfed simulate --resume`, a deployed run with `medfed federation start`."
        )
    for arm in arms:
        for site, state in arm.state_folders():
            name = f"{arm.name}/{site}"
            result = _examine(state, delta)
            findings += _about_one(result, name)
            printed = _last_printed(arm, site)
            rows.append((name, result, printed))
        findings += against_run(arm, delta, _entries_of(arm))
        findings += check_absent(arm)
    findings += _no_heads(arms)
    return PartResult(PART, tuple(_merged(findings)), tables=(_table(rows),))


def _no_heads(arms: list[ArmRecord]) -> list[Finding]:
    without = [arm.name for arm in arms if arm.heads is None and any(arm.state_folders())]
    if not without:
        return []
    detail = (
        f"The coordinator kept no heads.jsonl of {', '.join(without)}, so a site that signs a "
        "changed ledger anew is found by the round records alone."
    )
    return [Finding(PART, "ledgers against the coordinator's heads", Status.NOTE, detail)]


def _examine(path: Path, delta: float | None) -> dict[str, Any]:
    try:
        return verify_ledger.examine(path, None, delta)
    except (OSError, ValueError) as error:
        raise LedgerError(
            f"Expected a ledger (ledger.jsonl with ledger.pub beside it) at {path}, cannot read "
            f"one: {reason(error)}"
        ) from None


def _entries_of(arm: ArmRecord) -> dict[str, list[dict[str, Any]]]:
    """Return each site's entries; a ledger with problems is compared as far as it can be read."""
    entries = {}
    for site, state in arm.state_folders():
        key = load_pem_public_key((state / "ledger.pub").read_bytes())
        assert isinstance(key, Ed25519PublicKey)  # examine has looked
        entries[site], _ = verify_ledger.check_entries((state / "ledger.jsonl").read_bytes(), key)
    return entries


def _about_one(result: dict[str, Any], name: str) -> list[Finding]:
    chain = Check("chain and signatures", _CHAIN, result["entries"])
    signed = Check("countersignatures kept by the site", _SIGNED, result["countersignatures"])
    for problem in result["problems"]:
        check = signed if problem.startswith("countersignature") else chain
        check.problems.append(f"{name}: {problem}.")
    if not result["entries"]:
        chain.notes.append(f"{name}: the ledger has no entries.")
    if result["passed"] and "seeded" in result["noise"]:
        chain.notes.append(
            "Some noise came from a seed that others know (a simulation): no real privacy."
        )
    if result["passed"] and "none" in result["units"] and len(result["units"]) > 1:
        chain.notes.append(
            f"{name}: holds releases without privacy too: no finite epsilon covers them, and what "
            "rounds print counts the private ones alone."
        )
    return [*chain.findings(PART), *signed.findings(PART), *_epsilon(result, name)]


def _epsilon(result: dict[str, Any], name: str) -> list[Finding]:
    if result["passed"] and result["units"] == ["none"]:
        detail = f"{name}: without privacy; no epsilon is claimed, and none follows."
        return [Finding(PART, RECOMPUTED, Status.NOTE, detail, {"unit": "none", "ledgers": 1})]
    if not isinstance(result["epsilon"], float) or not result["entries"]:
        return []
    value, unit = result["epsilon"], result["units"][0]
    numbers = {"epsilon": value, "delta": result["delta"], "unit": unit, "ledgers": 1}
    detail = f"{name}: epsilon {value:.4f} for a {unit} at delta {result['delta']:g}."
    return [Finding(PART, RECOMPUTED, Status.PASS, detail, numbers)]


def _last_printed(arm: ArmRecord, site: str) -> float | None:
    released = arm.released(site)
    return arm.printed(site, released[-1])[0] if released else None


def _merged(findings: list[Finding]) -> list[Finding]:
    """Put findings that say the same of several ledgers into one, with their counts added up."""
    merged: dict[str, Finding] = {}
    for finding in sorted(findings, key=lambda finding: finding.check == RECOMPUTED):
        numbers = dict(finding.numbers)
        alike = numbers.get("epsilon") if "ledgers" in numbers else finding.detail
        key = json.dumps([finding.check, finding.status, alike, numbers.get("unit")])
        if key in merged:
            known = merged[key].numbers
            for name in ("checked", "ledgers"):
                if name in numbers:
                    numbers[name] = int(known[name] or 0) + int(numbers[name] or 0)
            finding = replace(merged[key], numbers=numbers)
        merged[key] = finding
    failed = {finding.check for finding in merged.values() if finding.status is Status.FAIL}
    return [_elsewhere(_with_the_others(finding), failed) for finding in merged.values()]


def _elsewhere(finding: Finding, failed: set[str]) -> Finding:
    """Where one ledger fails a check, what passes it is another."""
    if finding.status is not Status.PASS or finding.check not in failed:
        return finding
    return replace(finding, detail=f"Elsewhere: {finding.detail[:1].lower()}{finding.detail[1:]}")


def _with_the_others(finding: Finding) -> Finding:
    """Say of how many other ledgers the same holds: there may be hundreds."""
    others = int(finding.numbers.get("ledgers") or 1) - 1
    if others == 0:
        return finding
    name, rest = finding.detail.split(": ", 1)
    same = f"{others} other{'s' if others > 1 else ''} of the ledgers below"
    return replace(finding, detail=f"{name} and {same}: {rest}")


def _table(rows: list[tuple[str, dict[str, Any], float | None]]) -> Table:
    columns = ("Ledger", "Entries", "Countersigned", "Steps", "Unit", "Noise", "Epsilon", "Printed")
    return Table(
        "Ledgers, and epsilon recomputed from their entries",
        columns,
        tuple(
            (
                name or Path(result["ledger"]).name,
                result["entries"],
                result["countersignatures"],
                result["steps"],
                ", ".join(result["units"]),
                ", ".join(result["noise"]),
                _rounded(result["epsilon"]),
                _rounded(printed),
            )
            for name, result, printed in rows
        ),
    )


def _rounded(value: float | str | None) -> float | str | None:
    return round(value, 4) if isinstance(value, float) else value
