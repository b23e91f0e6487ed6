"""`medfed data scan`: what is in a folder of images, and what cannot be used and why."""

import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from medfed.client.data.archive.dataset_file import DatasetFile
    from medfed.client.data.archive.inventory import Inventory

_NOTHING_USABLE = 2
_MAX_ROWS = 40
_MAX_REASONS = 5
_CATEGORIES = {
    "unreadable": "cannot be read",
    "refused": "refused",
    "duplicate": "is there twice",
    "not_an_image": "no image",
}


def scan(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER|DATASET.toml",
            help="Folder of DICOM, NIfTI, PNG, JPEG or TIFF; or a data set file, to see how many "
            "of its images have labels.",
        ),
    ],
    workers: Annotated[int, typer.Option(min=1, help="Processes that read headers.")] = 1,
    unusable: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write every unusable file with its reason here."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Say what a folder of images holds, from headers alone; nothing is changed.

    Exit code 0 if anything is usable, else 2. What is printed names files: it is for this
    hospital's own eyes.
    """
    found, labelled = _scanned(folder, workers, quiet=as_json)
    if unusable is not None:
        _write_unusable(unusable, found)
    if as_json:
        typer.echo(json.dumps(found.to_json(labelled=labelled), indent=1))
    else:
        _print(found, labelled, unusable)
    if not found.series:
        raise typer.Exit(_NOTHING_USABLE)


def _scanned(path: Path, workers: int, *, quiet: bool) -> tuple["Inventory", dict[str, int] | None]:
    """What is there and, of a data set file, how many images of each series have a label."""
    from medfed.cli.data_progress import show_progress
    from medfed.client.data.archive.limits import ReadLimits
    from medfed.client.data.archive.scan import scan_folder

    with show_progress("reading headers", quiet=quiet) as progress:
        if path.suffix != ".toml":
            return scan_folder(path, ReadLimits(), workers=workers, progress=progress), None
        from medfed.client.data.archive.choosing import scan_archive
        from medfed.client.data.archive.dataset_file import load_dataset_file

        file = load_dataset_file(path)
        chosen = scan_archive(file, workers=workers, progress=progress)
    for key, number in chosen.left_out.items():
        typer.echo(f"{number:,} file(s) left out by {key}.", err=True)
    from medfed.client.data.labels.joining import join_labels

    joined = join_labels(
        file.labels,
        chosen.inventory,
        file.folder,
        file.limits,
        structures=file.structures,
        pseudonym_key=_known_key(file),
        issuer=file.deidentify.issuer_of_patient_id,
        archive_folders=[file.path(folder) for folder in file.archive.folders],
    )
    return chosen.inventory, joined.images_with_labels()


def _known_key(file: "DatasetFile") -> bytes:
    """The key of the data set if there is one yet: a scan makes none."""
    from medfed.client.data.key_place import find_key
    from medfed.client.data.pseudonym_key import load_or_create_key

    path = find_key(file.folder, named=file.pseudonym_key).path
    return load_or_create_key(path) if path.exists() else secrets.token_bytes(32)


def _write_unusable(path: Path, found: "Inventory") -> None:
    from medfed.common.files import write_secret

    rows = [
        json.dumps({"path": one.path, "category": one.category, "reason": one.reason})
        for one in found.unusable
    ]
    # Paths may hold names.
    write_secret(path, "".join(f"{row}\n" for row in rows).encode())


def _print(found: "Inventory", labelled: dict[str, int] | None, unusable: Path | None) -> None:
    from rich.console import Console

    counts = found.counts()
    console = Console(highlight=False)
    console.print(
        f"{counts['files']:,} files: {counts['usable_files']:,} usable, in "
        f"{counts['series']:,} series of {counts['studies']:,} studies and "
        f"{counts['patients']:,} patients; {counts['images']:,} images."
    )

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    if found.series:
        if labelled is not None:
            number = sum(labelled.values())
            say(f"{number:,} of {counts['images']:,} images have a label, a mask or a report.")
        _print_groups(found, labelled, console.print)
        _print_notes(found, say)
    if found.unusable:
        _print_unusable(found, say)
        if unusable is not None:
            say(f"Each with its reason: {unusable}")


def _print_groups(
    found: "Inventory", labelled: dict[str, int] | None, show: Callable[..., None]
) -> None:
    from rich.markup import escape
    from rich.table import Table

    from medfed.client.data.archive.inventory import groups_of

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("modality", "size", "scanner"):
        table.add_column(name)
    columns = ["patients", "studies", "series", "images", "noted"]
    for name in [*columns, *(["labelled"] if labelled is not None else [])]:
        table.add_column(name, justify="right")
    rows = groups_of(found.series, labelled)
    for row in rows[:_MAX_ROWS]:
        # Headers are whatever somebody wrote: no markup of theirs is obeyed.
        words = [escape(word or "-") for word in (row.modality, row.size, row.scanner)]
        numbers = [row.patients, row.studies, row.series, row.images, row.noted]
        numbers += [] if row.labelled is None else [row.labelled]
        table.add_row(*words, *(f"{number:,}" for number in numbers))
    show(table)
    if len(rows) > _MAX_ROWS:
        show(f"and {len(rows) - _MAX_ROWS:,} more kinds; --json lists them all.")


def _print_notes(found: "Inventory", say: Callable[[str], None]) -> None:
    from medfed.client.data.archive.inventory import printable

    noted = [series for series in found.series if series.notes]
    if not noted:
        return
    say(f"\n{len(noted):,} series to look at:")
    for series in noted[:_MAX_REASONS]:
        say(f"  {printable(series.files[0])}: {'; '.join(series.notes)}")
    if len(noted) > _MAX_REASONS:
        say(f"  and {len(noted) - _MAX_REASONS:,} more; --json lists them all.")


def _print_unusable(found: "Inventory", say: Callable[[str], None]) -> None:
    from medfed.client.data.archive.inventory import unusable_kinds

    say(f"\n{len(found.unusable):,} files give no image:")
    example = {(one.category, one.what): one.reason for one in reversed(found.unusable)}
    for (category, what), number in unusable_kinds(found.unusable):
        say(f"  {number:>7,}  {_CATEGORIES[category]}: {what}")
        if category != "not_an_image":
            say(f"           e.g. {example[category, what]}")


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(scan)
