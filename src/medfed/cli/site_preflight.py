"""`medfed site preflight`: is everything ready to take part? One line each, with the way out."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfed.cli.say_finding import say_finding

if TYPE_CHECKING:
    from medfed.client.agent.preflight import Finding

SiteFile = Annotated[Path, typer.Argument(metavar="SITE.toml", help="The site's own file.")]

_SITE = Path("site.toml")
_COLORS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "bright_black"}


def preflight(
    site_file: SiteFile = _SITE,
    study: Annotated[
        Path | None, typer.Option(metavar="STUDY.toml", help="Also check this study.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False,
) -> None:
    """Check network, clock, machine, data, policy and ledger; exit code 1 if something failed."""
    if verbose:
        logging.basicConfig(level=logging.DEBUG)
    from medfed.client.agent.preflight import preflight as run_checks

    findings = []
    for finding in run_checks(site_file, study):
        findings.append(finding)
        if not as_json:
            _say(finding)
    failed = sum(finding.level == "failed" for finding in findings)
    if as_json:
        table = {"ready": not failed, "findings": [asdict(finding) for finding in findings]}
        typer.echo(json.dumps(table, indent=1))
    else:
        _say_verdict(findings, failed)
    if failed:
        raise typer.Exit(1)


def _say(finding: "Finding") -> None:
    color = _COLORS[finding.level]
    say_finding(finding.level, finding.check, finding.text, color=color, check_width=13)


def _say_verdict(findings: "list[Finding]", failed: int) -> None:
    def count(level: str) -> int:
        return sum(finding.level == level for finding in findings)

    notes = [f"{count('warning')} warning(s)"] if count("warning") else []
    notes += [f"{count('skipped')} not checked"] if count("skipped") else []
    more = f"; {', '.join(notes)}" if notes else ""
    if failed:
        typer.secho(f"\nNot ready: {failed} failed{more}.", fg="red")
    else:
        typer.secho(f"\nNothing failed{more}.", fg="green")


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(preflight)
