"""`write_sweep_report`: all runs of a sweep as one page, tables and figures to keep."""

from functools import partial
from pathlib import Path

from medfed.common.errors import RunError
from medfed.common.files import write_atomically
from medfed.common.study_file import study_to_toml
from medfed.simulations.reporting import bytes_plot, rounds_plot, sweep_plots
from medfed.simulations.reporting.drawing import draw
from medfed.simulations.reporting.latex import to_latex
from medfed.simulations.reporting.rendering import render
from medfed.simulations.reporting.report import write_figures
from medfed.simulations.reporting.run_data import RunData
from medfed.simulations.reporting.sweep_csv import cells_csv, pairs_csv
from medfed.simulations.reporting.sweep_data import CellRuns, SweepData, load_sweep
from medfed.simulations.reporting.sweep_sites import sites_csv, sites_table
from medfed.simulations.reporting.sweep_tables import (
    cells_table,
    cells_tables,
    effects_table,
    pairs_table,
    runs_csv,
    shown_figures,
    target_table,
)
from medfed.simulations.reporting.tables import Table, to_markdown

_FIGURES = {
    "cells": ("Every cell's arms: mean and standard deviation over seeds.", sweep_plots.plot_cells),
    "rounds": ("The federated model round by round.", rounds_plot.plot_rounds),
    "against-key": ("The federated model over what varies.", sweep_plots.plot_against_key),
    "bytes": ("The federated model over the bytes of updates.", bytes_plot.plot_cells),
    "privacy": ("The federated model over epsilon.", sweep_plots.plot_against_epsilon),
}

# Longer tables are files only.
_MOST_ROWS = 80


def write_sweep_report(folder: Path) -> Path:
    """Write report.html, figures/, and each table as .csv (unrounded), .md and .tex.

    Tables are runs, cells, pairs, sites; effects where several things vary, target where there is
    one.

    Runs that are not finished are left out, and counted.

    Returns:
        Path of report.html.

    Raises:
        RunError: Not a sweep's folder, a damaged file, or a folder that cannot be written to.
    """
    sweep = load_sweep(folder)
    drawings = {
        name: drawing
        for name, (title, plot) in _FIGURES.items()
        if (drawing := draw(name, title, partial(plot, sweep))) is not None
    }
    tables = {
        "cells": cells_table(sweep),
        "pairs": pairs_table(sweep),
        "effects": effects_table(sweep),
        "target": target_table(sweep),
        "sites": sites_table(sweep),
    }
    leading, others = cells_tables(sweep)
    shown = shown_figures(sweep)
    page = render(
        "sweep.html.j2",
        f"{sweep.study.study.name} · medfed sweep",
        name=sweep.study.study.name,
        description=sweep.study.study.description,
        figures=drawings,
        leading=shown[0].title if shown else "",
        cells_leading=leading,
        cells_others=others,
        most_rows=_MOST_ROWS,
        higher=shown[0].higher_is_better if shown else None,
        **tables,
        extras=sweep.extras,
        target_value=sweep.study.sweep.target if sweep.study.sweep else None,
        runs=_runs_table(sweep),
        seeds=", ".join(map(str, sweep.seeds)),
        num_seeds=len(sweep.seeds),
        finished=sweep.num_finished,
        planned=sweep.num_planned,
        study_toml=study_to_toml(sweep.study),
    )
    try:
        write_figures(folder / "figures", drawings)
        write_atomically(folder / "runs.csv", runs_csv(sweep).encode())
        write_atomically(folder / "cells.csv", cells_csv(sweep).encode())
        write_atomically(folder / "pairs.csv", pairs_csv(sweep).encode())
        write_atomically(folder / "sites.csv", sites_csv(sweep).encode())
        for name, table in tables.items():
            if not table and name not in ("cells", "pairs"):
                continue
            write_atomically(folder / f"{name}.md", to_markdown(table).encode())
            write_atomically(folder / f"{name}.tex", to_latex(table).encode())
        write_atomically(folder / "report.html", page.encode())
    except OSError as error:
        raise RunError(
            f"The report cannot be written to {folder} ({error.strerror}). "
            "Make room, or copy the folder to where you may write."
        ) from None
    return folder / "report.html"


def _runs_table(sweep: SweepData) -> Table:
    """Where each run's own report is."""

    def state(cell: CellRuns, seed: int, run: RunData | None) -> str:
        name = f"{cell.cell.name}-s{seed}"
        if run is not None:
            return f"runs/{name}/report.html"
        why = sweep.failures.get(name)
        return "not finished" if why is None else f"failed: {why}"

    rows = [
        (cell.cell.name, cell.cell.label, str(seed), state(cell, seed, run))
        for cell in sweep.cells
        for seed, run in zip(sweep.seeds, cell.runs, strict=True)
    ]
    return Table(("Cell", "Settings", "Seed", "Report"), tuple(rows), text=frozenset({0, 1, 3}))
