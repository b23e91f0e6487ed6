"""`medfed data trial`: hospitals to rehearse a deployment with."""

from pathlib import Path
from typing import Annotated

import typer


def trial(
    study: Annotated[Path, typer.Argument(help="Study file with a simulation section.")],
    out: Annotated[Path, typer.Option(help="Gets one folder a site.")] = Path("hospitals"),
    data: Annotated[
        Path | None, typer.Option(help="Folder or file of the data set, in its official layout.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one value of the study."),
    ] = None,
    seeded_noise: Annotated[
        bool,
        typer.Option("--seeded-noise", help="Noise from the study's seed: for comparisons only."),
    ] = False,
) -> None:
    """Make each site of a simulated study a hospital's folder: a store and a site.toml."""
    from medfed.common.errors import StudyError
    from medfed.common.study_file import load_study, with_files
    from medfed.simulations.trial import write_trial_sites

    loaded = with_files(load_study(study, overrides or ()), study.parent)
    if loaded.simulation is None:
        raise StudyError(f"Expected a [simulation] section in {study}, found none.")
    if data is None and loaded.simulation.data:
        data = study.parent / loaded.simulation.data
    for path in write_trial_sites(loaded, data, out, seeded_noise=seeded_noise):
        typer.echo(path)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(trial)
