"""`medfed data pacs`: what the hospital's own PACS holds, fetched into a folder; results stored."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from medfed.client.data.pacs.find import Found
    from medfed.client.data.pacs.settings import PacsSection, Query

_EXIT_INCOMPLETE = 3
_MAX_ROWS = 40

pacs_app = typer.Typer(help="Query and fetch from the hospital's own PACS.", no_args_is_help=True)

File = Annotated[
    Path, typer.Argument(metavar="FILE.toml", help="Holds a pacs section: see docs/pacs.md.")
]
Modality = Annotated[list[str] | None, typer.Option(help="CT, MR, DX, ...; may be repeated.")]
FromDate = Annotated[str | None, typer.Option("--from", help="First study date, YYYY-MM-DD.")]
ToDate = Annotated[str | None, typer.Option("--to", help="Last study date, YYYY-MM-DD.")]
Description = Annotated[str | None, typer.Option(help="Of the study, with * and ?.")]
Patients = Annotated[Path | None, typer.Option(help="Text file with a patient id a line.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Most studies.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@pacs_app.command()
def echo(file: File) -> None:
    """Ask the PACS whether it answers, in every way that is configured."""
    from medfed.client.data.pacs.connecting import connections
    from medfed.client.data.pacs.settings import load_pacs

    for connection in connections(load_pacs(file)):
        with connection as pacs:
            typer.echo(pacs.echo())


@pacs_app.command("find")
def find_studies(
    file: File,
    modality: Modality = None,
    from_date: FromDate = None,
    to_date: ToDate = None,
    description: Description = None,
    patients: Patients = None,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """List the studies that fit: dates, modalities, counts; no names. Options narrow pacs.query.

    Exit code 0 if any fits, else 3.
    """
    settings, query = _settings(file, modality, from_date, to_date, description, patients, limit)
    found = _find(settings, query)
    if as_json:
        typer.echo(json.dumps(_found_table(found), indent=1))
    else:
        _print_found(found)
    if not found.studies:
        raise typer.Exit(_EXIT_INCOMPLETE)


@pacs_app.command("retrieve")
def retrieve_studies(
    file: File,
    out: Annotated[Path, typer.Option(help="The hospital's own folder; made if need be.")],
    modality: Modality = None,
    from_date: FromDate = None,
    to_date: ToDate = None,
    description: Description = None,
    patients: Patients = None,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Fetch the studies that fit into a folder. Run it again to go on: what is there stays.

    Exit code 0 if all that was found is there, else 3. The files are as they are in the PACS, with
    names and all: de-identification comes later.
    """
    from medfed.cli.data_progress import show_progress
    from medfed.client.data.pacs.connecting import connect
    from medfed.client.data.pacs.patience import Patience
    from medfed.client.data.pacs.retrieve import retrieve

    settings, query = _settings(file, modality, from_date, to_date, description, patients, limit)
    found = _find(settings, query)
    with connect(settings) as pacs, show_progress("fetching", quiet=as_json) as progress:
        report = retrieve(pacs, found.studies, out, Patience.of(settings), progress)
    if as_json:
        typer.echo(json.dumps({**_found_table(found), **report.to_json()}, indent=1))
    else:
        for one in report.failures:
            lack = "" if one.missing is None else f"{one.missing} instances are missing. "
            typer.echo(f"study {one.study}, series {one.series}: {lack}{one.reason}", err=True)
        left = found.num_series - report.num_series - len(report.failures)
        if left:
            typer.echo(f"{left} more series were not tried. Run the same command again.", err=True)
        typer.echo(
            f"{report.num_series} of {found.num_series} series are in {out}, "
            f"{report.num_present} of them from before; {report.num_instances} instances fetched "
            f"({report.num_bytes / 1e6:.1f} MB)."
        )
    if report.num_series < found.num_series or not found.studies:
        raise typer.Exit(_EXIT_INCOMPLETE)


@pacs_app.command()
def send(
    file: File,
    objects: Annotated[list[Path], typer.Argument(metavar="OBJECT.dcm...", help="DICOM files.")],
) -> None:
    """Store results (`medfed data result`) in the PACS, by STOW-RS or C-STORE.

    Exit code 0 if all were stored, else 3.
    """
    from functools import partial

    from medfed.client.data.pacs.connecting import connect
    from medfed.client.data.pacs.patience import Patience
    from medfed.client.data.pacs.settings import load_pacs

    settings = load_pacs(file)
    patience = Patience.of(settings)
    stored = 0
    with connect(settings) as pacs:
        for path in objects:
            why = patience.ask(partial(pacs.store, path))
            stored += not why
            if why:
                typer.echo(f"{path}: {why}. Its log says more.", err=True)
    typer.echo(f"{stored} of {len(objects)} objects stored.")
    if stored < len(objects):
        raise typer.Exit(_EXIT_INCOMPLETE)


def _settings(
    file: Path,
    modality: list[str] | None,
    from_date: str | None,
    to_date: str | None,
    description: str | None,
    patients: Path | None,
    limit: int | None,
) -> "tuple[PacsSection, Query]":
    """What the file says, and its query with what the options say in place of it."""
    from pydantic import ValidationError

    from medfed.client.data.pacs.settings import Query, load_pacs
    from medfed.common.errors import DataError
    from medfed.common.study_file import describe_errors

    settings = load_pacs(file)
    said: dict[str, Any] = {
        "modalities": modality or None,
        "from_date": from_date,
        "to_date": to_date,
        "study_description": description,
        "patients": str(patients.absolute()) if patients else None,
        "max_studies": limit,
    }
    chosen = {key: value for key, value in said.items() if value is not None}
    try:
        query = Query.model_validate({**settings.query.model_dump(), **chosen})
    except ValidationError as error:
        raise DataError(describe_errors(error, Query, "the options")) from None
    return settings, query


def _find(settings: "PacsSection", query: "Query") -> "Found":
    from medfed.client.data.pacs.connecting import connect
    from medfed.client.data.pacs.find import find
    from medfed.client.data.pacs.patience import Patience

    with connect(settings) as pacs:
        return find(pacs, query, Patience.of(settings))


def _found_table(found: "Found") -> dict[str, Any]:
    return {
        # No UIDs and no ids: whoever has the PACS finds the study by its number again.
        "studies": [
            {
                "number": number,
                "date": study.date,
                "description": study.description,
                "series": [
                    {"modality": one.modality, "instances": one.num_instances}
                    for one in study.series
                ],
            }
            for number, study in enumerate(found.studies, start=1)
        ],
        "left_out": found.left_out,
        "is_cut": found.is_cut,
    }


def _print_found(found: "Found") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("study", "date", "modalities", "series", "instances"):
        table.add_column(name, justify="right" if name in ("series", "instances") else "left")
    table.add_column("description")
    for number, study in enumerate(found.studies[:_MAX_ROWS], start=1):
        counts = [one.num_instances for one in study.series]
        known = sum(count for count in counts if count is not None)
        # What a PACS sends is whatever somebody typed: no markup of theirs is obeyed.
        table.add_row(
            str(number),
            escape(study.date or "-"),
            escape(", ".join(sorted({one.modality for one in study.series}))),
            str(len(study.series)),
            f"{known:,}" if None not in counts else f"{known:,}+",
            escape(study.description),
        )
    console = Console(highlight=False)
    if found.studies:
        console.print(table)
    if len(found.studies) > _MAX_ROWS:
        console.print(f"and {len(found.studies) - _MAX_ROWS:,} more; --json lists them all.")
    console.print(f"{len(found.studies):,} studies, {found.num_series:,} series.")
    for why, number in found.left_out.items():
        console.print(f"{number:,} that the PACS named were left out: {why}.", markup=False)
    if found.is_cut:
        console.print("There are more: raise --limit, or narrow the query.")


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.add_typer(pacs_app, name="pacs")
