"""Opens what `--data` names: a hospital's own dataset.toml, or a public data set."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from medfed.client.data.records import SourceDataset
    from medfed.common.study import StudyConfig


@dataclass(frozen=True)
class Source:
    """A data set.

    Attributes:
        dataset: Its records.
        digest_again: Returns its digest anew, to find files that changed meanwhile.
    """

    dataset: "SourceDataset"
    digest_again: Callable[[], str]


def open_source(
    study: "StudyConfig", data: Path | None, *, key_file: Path | None, workers: int
) -> Source:
    """Open a data set.

    Args:
        study: What it is for.
        data: `dataset.toml`, or a public data set's folder or file; None for what the study names.
        key_file: The pseudonym key, made if it is not there; None for the data set's own if it
            has been made, else for one of this moment.
        workers: Processes that read headers.

    Raises:
        DataError: Files are missing or malformed.
    """
    if data is not None and data.suffix == ".toml":
        return _archive(study, data, key_file, workers)
    from medfed.simulations.datasets.catalogue import load_dataset

    return Source(load_dataset(study, data), lambda: load_dataset(study, data).digest)


def _archive(study: "StudyConfig", path: Path, key_file: Path | None, workers: int) -> Source:
    from medfed.cli.data_progress import show_progress
    from medfed.client.data.archive.dataset_file import load_dataset_file
    from medfed.client.data.archive.load import load_archive
    from medfed.client.data.key_place import find_key

    file = load_dataset_file(path)
    if key_file is None:
        own = find_key(file.folder, named=file.pseudonym_key).path
        key_file = own if own.exists() else None
    with show_progress("reading headers") as progress:
        loaded = load_archive(
            file,
            study.task,
            dimensions=study.data.dimensions,
            views=study.data.views,
            pseudonym_key=_key(key_file),
            workers=workers,
            progress=progress,
        )
    for key, number in loaded.chosen.left_out.items():
        typer.echo(f"{number:,} file(s) left out by {key}.", err=True)
    if loaded.num_other_views:
        typer.echo(
            f"{loaded.num_other_views:,} image(s) are of views that data.views does not name.",
            err=True,
        )
    return Source(loaded.dataset, loaded.digest_again)


def find_key_file(
    data: Path | None, *, home: Path, site: Path | None = None, stores: Path | None = None
) -> Path:
    """Return the file of the pseudonym key and say on standard error if it should move.

    Args:
        data: `dataset.toml`; anything else has no key of its own.
        home: Folder in which `keys/` lies where there is no dataset.toml.
        site: Folder of the site that a store is for.
        stores: Folder of the stores.

    Raises:
        DataError: There are two keys, or dataset.toml is malformed.
    """
    from medfed.client.data.archive.dataset_file import load_dataset_file
    from medfed.client.data.key_place import find_key

    named = ""
    if data is not None and data.suffix == ".toml":
        file = load_dataset_file(data)
        home, named = file.folder, file.pseudonym_key
    place = find_key(home, named=named, site=site, stores=stores)
    if place.note:
        typer.secho(place.note, fg="yellow", err=True)
    return place.path


def _key(key_file: Path | None) -> bytes:
    """The site's key; without one, a key for this moment, by which no pseudonym is known."""
    from medfed.client.data.pseudonym_key import load_or_create_key

    if key_file is None:
        return secrets.token_bytes(32)
    key_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return load_or_create_key(key_file)
