"""`medfed data deidentify`: copies of DICOM files that name nobody."""

from pathlib import Path
from typing import Annotated

import typer

_EXIT_REFUSED = 3


def deidentify(
    folder: Annotated[Path, typer.Argument(help="DICOM files. Only read.")],
    out: Annotated[Path, typer.Option(help="New folder for the copies.")],
    key: Annotated[
        Path, typer.Option(help="Pseudonym key, made on first use. Keep it, and keep it here.")
    ] = Path("keys/pseudonym.key"),
    options: Annotated[
        str,
        typer.Option(help="Options of DICOM PS3.15 E.3, separated by commas; empty for none."),
    ] = "retain_longitudinal_modified",
    burnt_in: Annotated[
        str, typer.Option(help="Text in pixels: refuse the file, mask the text, or keep it.")
    ] = "refuse",
    report: Annotated[
        Path | None, typer.Option(help="Writes what was done, as JSON without identities.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Write de-identified copies of DICOM files (PS3.15 Basic Profile); the source stays as it is.

    Refused files are named on the screen with the reason; the exit code is then 3.
    """
    import json

    from pydantic import ValidationError
    from rich.console import Console
    from rich.progress import Progress

    from medfed.client.data.deidentification.folders import deidentify_folder
    from medfed.client.data.deidentification.rules import Rules
    from medfed.client.data.pseudonym_key import load_or_create_key
    from medfed.common.errors import DataError
    from medfed.common.files import write_json

    chosen = [name.strip() for name in options.split(",") if name.strip()]
    try:
        rules = Rules.model_validate({"options": chosen, "burnt_in": burnt_in})
    except ValidationError as error:
        reasons = "; ".join(str(part["msg"]) for part in error.errors())
        raise DataError(f"These rules cannot be used: {reasons}") from None
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("De-identifying", total=None)
        done = deidentify_folder(
            folder,
            out,
            rules,
            load_or_create_key(key),
            lambda number, total: progress.update(task, completed=number, total=total),
        )
    answer = done.to_json(load_or_create_key(key))
    if report is not None:
        write_json(report, answer)
    for path, reason in done.refused.items():
        typer.echo(f"refused {path}: {reason}", err=True)
    if as_json:
        typer.echo(json.dumps(answer, indent=1, sort_keys=True))
    else:
        masked = sum(1 for one in done.written.values() if one.boxes)
        typer.echo(
            f"{len(done.written)} written ({masked} with text painted over), "
            f"{len(done.present)} already there, {len(done.refused)} refused: {out}"
        )
    if done.refused:
        raise typer.Exit(_EXIT_REFUSED)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(deidentify)
