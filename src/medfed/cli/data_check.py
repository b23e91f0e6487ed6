"""`medfed data check`: can this data serve that study? One line each, with the way out."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfed.cli.say_finding import say_finding

if TYPE_CHECKING:
    from medfed.client.data.examine import Examination
    from medfed.client.data.finding import Finding
    from medfed.common.study import StudyConfig

_COLORS = {"ok": "green", "warning": "yellow", "error": "red"}


def check(
    study: Annotated[Path, typer.Argument(help="Study file that the data is meant for.")],
    store: Annotated[
        list[Path] | None, typer.Argument(metavar="[STORE]...", help="Prepared stores.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="This site's own dataset.toml, or a public data set in its official layout.",
        ),
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option(metavar="SITE.toml", help="The stores, split and policy of a site."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one value of the study."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that decode.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Hold data to a study: labels, patients, leakage, copies, pixels, masks.

    Exit code 3 if something must be mended. What is printed counts patients and names files: it is
    for this hospital's own eyes.
    """
    from medfed.cli.data_progress import show_progress
    from medfed.common.errors import DataError
    from medfed.common.study_file import load_study, with_files

    loaded = with_files(load_study(study, overrides or ()), study.parent)
    given = [option for option in (store, data, site) if option]
    if len(given) > 1:
        raise DataError("Expected one of STORE..., --data and --site, got several. Name one.")
    with show_progress("looking at", quiet=as_json) as progress:
        result = _examine(loaded, study.parent, store or [], data, site, workers, progress)
    if as_json:
        typer.echo(json.dumps(_as_table(result), indent=1))
    else:
        for finding in result.findings:
            _say(finding)
        _say_verdict(result)
    if result.num_errors:
        raise typer.Exit(DataError.exit_code)


def _examine(
    study: "StudyConfig",
    folder: Path,
    stores: list[Path],
    data: Path | None,
    site: Path | None,
    workers: int,
    progress: Callable[[int, int], None],
) -> "Examination":
    from medfed.cli.data_source import open_source
    from medfed.client.data.examine import examine_dataset, examine_site
    from medfed.client.site import SiteConfig, load_site

    if site is not None:
        return examine_site(load_site(site), study, progress=progress)
    if stores:
        table = {"name": "check", "data": {"stores": [str(path.resolve()) for path in stores]}}
        return examine_site(SiteConfig.model_validate(table), study, progress=progress)
    if data is None and study.simulation is not None and study.simulation.data:
        data = folder / study.simulation.data
    dataset = open_source(study, data, key_file=None, workers=workers).dataset
    return examine_dataset(dataset, study, workers=workers, progress=progress)


def _as_table(result: "Examination") -> dict[str, object]:
    return {
        "usable": not result.num_errors,
        "num_images": result.num_images,
        "num_patients": result.num_patients,
        "classes": {name: dict(counts) for name, counts in result.classes.items()},
        "findings": [asdict(finding) for finding in result.findings],
    }


def _say(finding: "Finding") -> None:
    color = _COLORS[finding.level]
    say_finding(finding.level, finding.check, finding.text, color=color, check_width=12)


def _say_verdict(result: "Examination") -> None:
    warnings = sum(finding.level == "warning" for finding in result.findings)
    more = f"; {warnings} warning(s) to look at" if warnings else ""
    if result.num_errors:
        typer.secho(f"\nNot usable: {result.num_errors} error(s) to mend{more}.", fg="red")
    else:
        typer.secho(f"\nUsable{more}.", fg="green")


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(check)
