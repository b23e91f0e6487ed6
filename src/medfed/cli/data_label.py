"""`medfed data label`: what tables, folders, masks and reports say of an archive's images."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from medfed.client.data.labels.joined import LabelJoin

_EXIT_MEND = 3
_MAX_SHOWN = 10

Say = Callable[[str], None]


def label(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET.toml", help="The data set file.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Write the joined labels here, by pseudonym."),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            help="Pseudonym key, made on first use (default: dataset.toml's, or keys/pseudonym.key "
            "beside it)."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that read headers.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Join labels to the images of an archive and list what does not fit; nothing is changed.

    Exit code 3 if something must be mended: sources contradict each other and labels.conflicts is
    "refuse", or classes were read in an encoding that is a guess. What is printed names files: it
    is for this hospital's own eyes.
    """
    from medfed.cli.data_progress import show_progress
    from medfed.cli.data_source import find_key_file
    from medfed.client.data.archive.choosing import scan_archive
    from medfed.client.data.archive.dataset_file import load_dataset_file
    from medfed.client.data.labels.joined_table import write_joined_table
    from medfed.client.data.labels.joining import join_labels
    from medfed.client.data.pseudonym_key import load_or_create_key

    file = load_dataset_file(dataset)
    if key is None:
        key = find_key_file(dataset, home=file.folder)
    key.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    secret = load_or_create_key(key)
    with show_progress("reading headers", quiet=as_json) as progress:
        chosen = scan_archive(file, workers=workers, progress=progress)
    found = join_labels(
        file.labels,
        chosen.inventory,
        file.folder,
        file.limits,
        structures=file.structures,
        pseudonym_key=secret,
        issuer=file.deidentify.issuer_of_patient_id,
        archive_folders=[file.path(folder) for folder in file.archive.folders],
    )
    if out is not None:
        write_joined_table(out, found, secret)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    else:
        _print(found, file.labels.conflicts, out)
    if found.doubts or (found.conflicts and file.labels.conflicts == "refuse"):
        raise typer.Exit(_EXIT_MEND)


def _print(found: "LabelJoin", conflicts: str, out: Path | None) -> None:
    from rich.console import Console

    console = Console(highlight=False)

    def say(text: str) -> None:
        # Cells and paths are whatever somebody wrote: no markup of theirs is obeyed.
        console.print(text, markup=False, soft_wrap=True)

    _print_sources(found, say)
    counts = found.counts()
    say(
        f"\n{counts['images']:,} images of {counts['patients']:,} patients; "
        f"{counts['with_mask']:,} with a mask, {counts['with_report']:,} with a report, "
        f"{counts['unlabelled']:,} without any label, {counts['left_out']:,} left out."
    )
    if counts["classes"]:
        _print_classes(found, console.print)
    if found.structures:
        say(f"Structures of masks, in order: {', '.join(found.structures)}")
    _list("rows or files mean no image or cannot be used", [
        f"{one.source}{f', line {one.row}' if one.row else ''}: {one.reason}"
        for one in found.unmatched_rows
    ], say, total=sum(one.unmatched for one in found.sources))  # fmt: skip
    _list("label files cannot be used", [one.reason for one in found.problems], say)
    _list(f"conflicts ({conflicts})", [
        f"{one.what}: {one.subject}: {'; '.join(f'{who} says {what}' for who, what in one.said)}. "
        f"{one.way_out}" for one in found.conflicts
    ], say)  # fmt: skip
    _list("suggestions", list(found.suggestions), say)
    for doubt in found.doubts:
        console.print(f"\nTo mend: {doubt}", markup=False, soft_wrap=True, style="red")
    if out is not None:
        say(f"\nJoined labels, by pseudonym: {out}")


def _print_sources(found: "LabelJoin", say: Say) -> None:
    for one in found.sources:
        say(
            f"{one.name}: {one.rows:,} looked at, {one.matched:,} used, {one.empty:,} say nothing, "
            f"{one.unmatched:,} without image"
        )
        if not one.rows:
            say("  Nothing was found there: mend its pattern, folder or file.")
        for note in one.notes:
            say(f"  {note}")


def _print_classes(found: "LabelJoin", show: Callable[..., None]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("class")
    for name in ("images", "patients"):
        table.add_column(name, justify="right")
    for name, of in found.counts()["classes"].items():
        table.add_row(escape(name), f"{of['images']:,}", f"{of['patients']:,}")
    show(table)


def _list(what: str, rows: list[str], say: Say, *, total: int | None = None) -> None:
    number = len(rows) if total is None else total
    if not number:
        return
    say(f"\n{number:,} {what}:")
    for row in rows[:_MAX_SHOWN]:
        say(f"  {row}")
    if number > _MAX_SHOWN:
        say(f"  and {number - _MAX_SHOWN:,} more; --json lists them.")


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(label)
