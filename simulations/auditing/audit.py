"""`run_audit`: the parts of an audit of a run or of a single ledger, and what they come to.

ledger          what was charged, recomputed by code that shares nothing with the trainer
mechanism       the installed trainer, under canaries
membership      attacks on the final model: was this patient in it?
reconstruction  attacks on an update: what did this patient's images look like?
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medfed.common.errors import RunError, StudyError
from medfed.common.study import StudyConfig
from medfed.common.study_file import load_study
from medfed.simulations.auditing.findings import Finding, Number, PartResult, Status
from medfed.simulations.auditing.heads_alone import ABSENT
from medfed.simulations.auditing.ledger_part import audit_ledger, audit_run_ledgers

PARTS = ("ledger", "mechanism", "membership", "reconstruction")
Budget = Literal["quick", "full"]


@dataclass(frozen=True)
class Audit:
    """What an audit came to.

    Attributes:
        target: Name of what was audited.
        study: The run's study; None of a ledger alone.
        delta: At which epsilon is stated.
        parts: In the order of `PARTS`.
    """

    target: str
    study: StudyConfig | None
    delta: float
    parts: tuple[PartResult, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings of all parts."""
        return tuple(finding for part in self.parts for finding in part.findings)

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The checks that failed."""
        return tuple(f for f in self.findings if f.status is Status.FAIL)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    @property
    def epsilon(self) -> float | None:
        """The largest epsilon that a trusted ledger gave; None if none did."""
        values = [f.numbers.get("epsilon") for f in self.findings if f.part == "ledger"]
        return max((v for v in values if isinstance(v, float)), default=None)

    @property
    def unit(self) -> str | None:
        """Unit of the ledgers' epsilon; none if all releases were without privacy."""
        units = {str(f.numbers["unit"]) for f in self.findings if "unit" in f.numbers}
        # An arm for comparison may train without what the study promises.
        units = units - {"none"} or units
        return units.pop() if len(units) == 1 else None

    @property
    def claims_privacy(self) -> bool:
        """Whether there is any differential privacy to check."""
        stated = self.unit if self.study is None else self.study.privacy.unit
        return stated != "none"

    @property
    def verdict(self) -> str:
        """The audit in one sentence."""
        ran = [part.name for part in self.parts if not part.skipped]
        if not self.passed:
            count = len(self.failures)
            first = self.failures[0]
            return (
                f"Not passed: {count} check{'s' if count > 1 else ''} failed, first {first.part}: "
                f"{first.check}."
            )
        if not ran:
            return "Nothing was audited: every part was skipped."
        passed = sum(f.status is Status.PASS for f in self.findings)
        elsewhere = "".join(f" {f.detail}" for f in self.findings if f.check == ABSENT)
        checks = f"{passed} check{'' if passed == 1 else 's'} of {', '.join(ran)}"
        if not self.claims_privacy:
            return (
                f"Passed: {checks} found nothing wrong. All training was without differential "
                f'privacy (unit "none"): there is no privacy claim to check.{elsewhere}'
            )
        spent = ""
        if self.epsilon is not None and self.unit is not None:
            spent = (
                f"; the ledgers say at most epsilon {self.epsilon:.2f} for a {self.unit} at delta "
                f"{self.delta:g}"
            )
        return f"Passed: {checks} found nothing wrong{spent}.{elsewhere}"

    def to_json(self) -> dict[str, Any]:
        """Return the audit as a table for programs."""
        return {
            "target": self.target,
            "passed": self.passed,
            "verdict": self.verdict,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "unit": self.unit,
            "claims_privacy": self.claims_privacy,
            "parts": [
                {
                    "part": part.name,
                    "passed": part.passed,
                    "skipped": part.skipped,
                    "findings": [
                        {
                            "check": finding.check,
                            "status": finding.status.value,
                            "detail": finding.detail,
                            "numbers": {n: _plain(v) for n, v in finding.numbers.items()},
                        }
                        for finding in part.findings
                    ],
                }
                for part in self.parts
            ],
        }


def _plain(value: Number) -> Number:
    """JSON has neither infinity nor NaN."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def run_audit(
    path: Path,
    parts: Sequence[str] = PARTS,
    *,
    seed: int = 0,
    budget: Budget = "quick",
    delta: float | None = None,
) -> Audit:
    """Audit a run folder, or a ledger: ledger.jsonl or the folder that holds it.

    Args:
        path: What to audit.
        parts: Which parts, of `PARTS`.
        seed: Of canaries, attacks and seeded noise.
        budget: How long attacks take: quick or full.
        delta: At which a lone ledger's epsilon is stated; None for what its facts.json says.

    Raises:
        MedfedError: It is neither, or it cannot be read.
    """
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise StudyError(f"Expected --part {', '.join(PARTS)}, got {', '.join(unknown)}.")
    chosen = [part for part in PARTS if part in parts]
    if (path / "arms").is_dir():
        return _audit_run(path, chosen, seed=seed, budget=budget)
    if not path.exists():
        raise RunError(
            f"Expected a run folder or a ledger at {path}, found nothing. Name a folder that "
            "`medfed simulate` or `medfed site ledger export` made, or a ledger.jsonl."
        )
    return _audit_ledger(path, chosen, seed=seed, delta=delta)


def _audit_run(run: Path, chosen: Sequence[str], *, seed: int, budget: Budget) -> Audit:
    study = load_study(run / "study.toml")
    delta = study.privacy.target_delta
    results = []
    for part in chosen:
        if part == "ledger":
            results.append(audit_run_ledgers(run, delta=delta))
        else:
            results.append(_of_run(part, run, study, seed=seed, budget=budget))
    return Audit(run.resolve().name, study, delta, tuple(results))


def _of_run(part: str, run: Path, study: StudyConfig, *, seed: int, budget: Budget) -> PartResult:
    # torch and Opacus take seconds to import, and the ledger part needs neither.
    if part == "mechanism":
        from medfed.simulations.auditing.mechanism import audit_mechanism

        return audit_mechanism(study, seed=seed)
    if part == "membership":
        from medfed.simulations.auditing.membership import audit_membership

        return audit_membership(run, seed=seed, budget=budget)
    from medfed.simulations.auditing.reconstruction import audit_reconstruction

    return audit_reconstruction(run, seed=seed, budget=budget)


def _audit_ledger(path: Path, chosen: Sequence[str], *, seed: int, delta: float | None) -> Audit:
    results = []
    used = delta if delta is not None else _stated_delta(path)
    for part in chosen:
        if part == "ledger":
            results.append(audit_ledger(path, delta=used))
        elif part == "mechanism":
            from medfed.simulations.auditing.mechanism import audit_mechanism

            results.append(audit_mechanism(None, seed=seed))
        else:
            why = "A ledger alone has no model and no data to attack; name a run folder for that."
            results.append(PartResult(part, skipped=why))
    return Audit(path.resolve().name, None, used, tuple(results))


def _stated_delta(path: Path) -> float:
    """Return the delta that an export's facts.json states, else 1e-5 as verify_ledger.py does."""
    facts = (path if path.is_dir() else path.parent) / "facts.json"
    try:
        return float(json.loads(facts.read_text("utf-8"))["target_delta"])
    except FileNotFoundError:
        return 1e-5
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{facts} cannot be read ({error}). Export the ledger anew.") from None
