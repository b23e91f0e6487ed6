"""`medfed site card`: a site's own data card, and what of it would leave for a study."""

import json
from pathlib import Path
from typing import Annotated

import typer

SiteFile = Annotated[Path, typer.Argument(metavar="SITE.toml", help="The site's own file.")]
StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study that asks.")]


def card(
    site_file: SiteFile,
    study_file: StudyFile,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a value of the study."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to (default: STATE/card).")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the card for programs; write no page.")
    ] = False,
) -> None:
    """Write this site's data card for its own eyes, and say what of it would leave."""
    from medfed.cli.data_progress import show_progress
    from medfed.client.counting import count_once
    from medfed.client.data.site_data import load_site_data
    from medfed.client.policy import check_study
    from medfed.client.site import load_site
    from medfed.client.statistics import would_say
    from medfed.common.errors import SiteRefusal
    from medfed.common.study_file import load_study
    from medfed.simulations.reporting.card_page import card_table, leaving_table, write_card

    site = load_site(site_file)
    study = load_study(study_file, overrides or ())
    train = load_site_data(site, study).train
    with show_progress("counting", quiet=as_json) as progress:
        counted = count_once(train, study, site.state_folder, progress)
    leaving, refusal = None, ""
    try:
        check_study(study, site.policy)
        shown = would_say(train, study, site)
        leaving = shown if study.statistics.noise_multiplier is None else None
    except SiteRefusal as no:
        refusal = str(no)
    if as_json:
        typer.echo(json.dumps(card_table(counted, leaving, refusal, study, site), indent=1))
        return
    page = write_card(out or site.state_folder / "card", counted, leaving, refusal, study, site)
    typer.echo(f"Card        {page}")
    typer.echo(f"Would leave {'nothing: ' + refusal if refusal else ''}")
    if not refusal:
        for name, what in leaving_table(counted, leaving, refusal, study).rows:
            typer.echo(f"  {name}: {what}")


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(card)
