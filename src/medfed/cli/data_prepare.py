"""`medfed data prepare`: from a data set to the store that training reads."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from medfed.client.data.records import SourceDataset
    from medfed.client.data.store import Store
    from medfed.common.study import StudyConfig


def prepare(
    study: Annotated[Path, typer.Argument(help="Study file that the store is for.")],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="This site's own dataset.toml, or a public data set in its official layout.",
        ),
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option(
            metavar="SITE.toml",
            help="Put the store into this site's folder, with its key, and name it there.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the store, without --site (default: stores).")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one value of the study."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that decode.")] = 1,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a data set with unreadable images.")
    ] = False,
) -> None:
    """Decode, resample and check all images of a data set once; training reads the result.

    What was interrupted goes on where it stopped. Patients enter under pseudonyms that only the
    key in keys/ beside dataset.toml can make (or where its pseudonym_key says).
    """
    from medfed.cli.data_source import find_key_file, open_source
    from medfed.client.data.key_place import share_with_site
    from medfed.client.data.site_stores import name_store
    from medfed.client.site import load_site
    from medfed.common.errors import DataError
    from medfed.common.study_file import load_study, with_files

    if site is not None and out is not None:
        raise DataError("Expected --site or --out, got both: with --site the store lies there.")
    loaded = with_files(load_study(study, overrides or ()), study.parent)
    if data is None and loaded.simulation is not None and loaded.simulation.data:
        data = study.parent / loaded.simulation.data
    home = load_site(site).folder if site is not None else None
    parent = home / "stores" if home is not None else (out or Path("stores"))
    key_file = find_key_file(data, home=parent.absolute().parent, site=home, stores=parent)
    source = open_source(loaded, data, key_file=key_file, workers=workers)
    store = prepare_dataset(
        source.dataset,
        loaded,
        parent=parent,
        key_file=key_file,
        workers=workers,
        strict=strict,
        read_again=source.digest_again,
    )
    if home is not None:
        share_with_site(key_file, home)
    replaced = name_store(site, store) if site is not None else ()
    _say(store, site, replaced)


def prepare_dataset(
    dataset: "SourceDataset",
    study: "StudyConfig",
    *,
    parent: Path,
    key_file: Path,
    workers: int,
    strict: bool,
    read_again: Callable[[], str] | None,
) -> "Store":
    """Prepare a store of any data set, a public one or an archive's, with a bar on the screen.

    Args:
        dataset: The source records.
        study: What the store is for.
        parent: Folder that holds stores.
        key_file: The pseudonym key; made if it is not there.
        workers: Processes that decode.
        strict: Refuse the first image that cannot be used.
        read_again: Returns the data set's digest anew, to find files that changed meanwhile.
    """
    from medfed.cli.data_progress import show_progress
    from medfed.client.data.prepare import prepare_store
    from medfed.client.data.pseudonym_key import load_or_create_key

    key_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = load_or_create_key(key_file)
    with show_progress("preparing") as progress:
        return prepare_store(
            dataset,
            study.task,
            study.data,
            parent=parent,
            pseudonym_key=key,
            strict=strict,
            progress=progress,
            workers=workers,
            digest_again=read_again,
        )


def _say(store: "Store", site: Path | None, replaced: tuple[str, ...]) -> None:
    patients = len(set(store.patients))
    typer.echo(f"{store.folder}: {len(store):,} images of {patients:,} patients, {store.task}")
    if store.num_quarantined:
        typer.secho(
            f"{store.num_quarantined:,} image(s) could not be used: "
            f"{store.folder / 'quarantine.jsonl'} says which and why.",
            fg="yellow",
        )
    if site is not None:
        instead = f", in place of {', '.join(replaced)}" if replaced else ""
        typer.echo(f"{site} names it now{instead}.")
    folder = shlex.quote(str(store.folder))
    typer.echo(f"Look at it: medfed data view {folder} --out sheet.png")


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(prepare)
