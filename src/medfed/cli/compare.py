"""`medfed compare`: prints the table that `compare.html` and `compare.csv` hold."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from medfed.common.errors import RunError
from medfed.simulations.reporting.compare import compare_runs


def print_comparison(runs: Sequence[Path], out: Path) -> None:
    """Compare `runs`, write the pages into `out` and print the table."""
    if len(runs) < 2:
        raise RunError("Expected two or more run folders to compare.")
    comparison = compare_runs(runs, out)
    table = Table(title="Runs side by side")
    for column in comparison.columns:
        table.add_column(column)
    for row in comparison.rows:
        table.add_row(*row)
    console = Console(soft_wrap=True)
    console.print(table)
    for key, *values in comparison.differing.rows:
        console.print(f"{key}: {' | '.join(values)}", highlight=False)
    console.print(f"Page  {out / 'compare.html'}")
