"""`medfed audit`: what can be checked of a run's privacy, in one command.

Exit code: 0 nothing was found; 7 at least one check failed; 2 to 6 the input cannot be used (see
common/errors.py).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console

from medfed.common.errors import StudyError
from medfed.simulations.auditing.audit import PARTS, Audit, run_audit
from medfed.simulations.auditing.page import write_page

FINDING_EXIT_CODE = 7


@dataclass(frozen=True)
class AuditRequest:
    """The command line of `medfed audit`."""

    target: Path
    parts: tuple[str, ...]
    out: Path
    as_json: bool
    seed: int
    full: bool
    delta: float | None


def print_audit(request: AuditRequest) -> None:
    """Audit, write the page, print the verdict and what failed; exit with 7 if anything did.

    Raises:
        MedfedError: The target cannot be used.
    """
    if request.delta is not None and not 0 < request.delta < 1:
        raise StudyError(f"Expected --delta between 0 and 1, got {request.delta:g}.")
    audit = run_audit(
        request.target,
        request.parts or PARTS,
        seed=request.seed,
        budget="full" if request.full else "quick",
        delta=request.delta,
    )
    page = write_page(audit, request.out)
    if request.as_json:
        typer.echo(json.dumps(audit.to_json(), indent=1))
    else:
        lines = [audit.verdict, *_in_words(audit), f"Page  {page}"]
        Console(soft_wrap=True, highlight=False).print("\n".join(lines), markup=False)
    if not audit.passed:
        raise typer.Exit(FINDING_EXIT_CODE)


def _in_words(audit: Audit) -> Sequence[str]:
    lines = [f"FAILED  {f.part}: {f.check}: {f.detail}" for f in audit.failures]
    return lines + [f"skipped  {part.name}: {part.skipped}" for part in audit.parts if part.skipped]
