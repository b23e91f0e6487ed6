"""`medfed compare`: prints the table that `compare.html` and `compare.csv` hold."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from medfed.common.errors import RunError
from medfed.simulations.reporting.compare import compare_runs


def print_comparison(runs: Sequence[Path], out: Path, *, paired: bool = False) -> None:
    """Compare `runs`, write the pages into `out` and print the table."""
    if len(runs) < 2:
        raise RunError("Expected two or more run folders to compare.")
    comparison = compare_runs(runs, out, paired=paired)
    # A column for each run: there are few runs and many figures, and terminals are narrow.
    table = Table(title="Runs side by side", show_header=False)
    # Keys that begin alike must not be cut to the same text.
    table.add_column(style="dim", overflow="fold")
    for quantity, *values in zip(comparison.columns, *comparison.rows, strict=True):
        table.add_row(quantity, *values)
    if comparison.differing.rows:
        table.add_section()
    for key, *values in comparison.differing.rows:
        table.add_row(key, *values)
    console = Console()
    console.print(table)
    for runs_named, *differences in comparison.paired.rows:
        by_patient = Table(title=f"{runs_named}, patient by patient", show_header=False)
        for title, text in zip(comparison.paired.columns[1:], differences, strict=True):
            by_patient.add_row(title, text)
        console.print(by_patient)
    console.print(f"Page  {out / 'compare.html'}")
