"""`medfed data scan`: what is in a folder of images, and what cannot be used and why."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
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
    folder: Annotated[Path, typer.Argument(help="Folder of DICOM, NIfTI, PNG, JPEG or TIFF.")],
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
    from medfed.cli.data_progress import show_progress
    from medfed.client.data.archive.limits import ReadLimits
    from medfed.client.data.archive.scan import scan_folder

    with show_progress("reading headers", quiet=as_json) as progress:
        found = scan_folder(folder, ReadLimits(), workers=workers, progress=progress)
    if unusable is not None:
        _write_unusable(unusable, found)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    else:
        _print(found, unusable)
    if not found.series:
        raise typer.Exit(_NOTHING_USABLE)


def _write_unusable(path: Path, found: "Inventory") -> None:
    from medfed.common.secret_files import write_secret

    rows = [
        json.dumps({"path": one.path, "category": one.category, "reason": one.reason})
        for one in found.unusable
    ]
    # Paths may hold names.
    write_secret(path, "".join(f"{row}\n" for row in rows).encode())


def _print(found: "Inventory", unusable: Path | None) -> None:
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
        _print_groups(found, console.print)
        _print_notes(found, say)
    if found.unusable:
        _print_unusable(found, say)
        if unusable is not None:
            say(f"Each with its reason: {unusable}")


def _print_groups(found: "Inventory", show: Callable[..., None]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from medfed.client.data.archive.inventory import groups_of

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("modality", "size", "scanner"):
        table.add_column(name)
    for name in ("patients", "studies", "series", "images", "noted"):
        table.add_column(name, justify="right")
    rows = groups_of(found.series)
    for row in rows[:_MAX_ROWS]:
        # Headers are whatever somebody wrote: no markup of theirs is obeyed.
        words = [escape(word or "-") for word in (row.modality, row.size, row.scanner)]
        numbers = (row.patients, row.studies, row.series, row.images, row.noted)
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
