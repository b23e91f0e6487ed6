"""`medfed data deidentify`: copies of DICOM files that name nobody."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from medfed.client.data.deidentification.rules import Rules

_EXIT_REFUSED = 3
_HERE = Path("dataset.toml")


def deidentify(
    folder: Annotated[Path, typer.Argument(help="DICOM files. Only read.")],
    out: Annotated[Path, typer.Option(help="New folder for the copies.")],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DATASET.toml",
            help="Data set whose pseudonyms these are (default: dataset.toml, if one is here).",
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            help="Pseudonym key, made on first use (default: the data set's, or keys/pseudonym.key "
            "here). Keep it, and keep it here."
        ),
    ] = None,
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

    Refused files are named on the screen with the reason; the exit code is then 3. Of dataset.toml
    the key is taken, and whether ids are told by their issuer; not which text in pixels it allows.
    """
    import json

    from rich.console import Console
    from rich.progress import Progress

    from medfed.cli.data_source import find_key_file
    from medfed.client.data.deidentification.folders import deidentify_folder
    from medfed.client.data.pseudonym_key import load_or_create_key
    from medfed.common.errors import DataError
    from medfed.common.files import write_json

    if data is None and key is None and _HERE.is_file():
        data = _HERE
    rules = _rules(options, burnt_in, data)
    key = key or find_key_file(data, home=Path())
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
    if not (done.written or done.present or done.refused):
        raise DataError(f"Expected DICOM files below {folder}, found none. Name another folder.")
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


def _rules(options: str, burnt_in: str, data: Path | None) -> "Rules":
    from pydantic import ValidationError

    from medfed.client.data.archive.dataset_file import load_dataset_file
    from medfed.client.data.deidentification.rules import Rules
    from medfed.common.errors import DataError

    said: dict[str, object] = {
        "options": [name.strip() for name in options.split(",") if name.strip()],
        "burnt_in": burnt_in,
    }
    if data is not None:
        said["issuer_of_patient_id"] = load_dataset_file(data).deidentify.issuer_of_patient_id
    try:
        return Rules.model_validate(said)
    except ValidationError as error:
        reasons = "; ".join(str(part["msg"]) for part in error.errors())
        raise DataError(f"These rules cannot be used: {reasons}") from None


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(deidentify)
