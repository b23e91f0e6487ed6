"""`medfed report --predictions`: what every model says of every held-out image, as a file."""

from pathlib import Path

import typer

from medfed.simulations.predictions import write_predictions
from medfed.simulations.reporting.run_data import SWEEP_FILE
from medfed.simulations.sweep import planned_runs


def print_predictions(folder: Path) -> None:
    """Write the predictions of a run, or of a sweep's finished runs, and print where they are."""
    if not (folder / SWEEP_FILE).exists():
        typer.echo(write_predictions(folder))
        return
    for run in planned_runs(folder):
        if run.is_finished:
            typer.echo(write_predictions(run.folder))
