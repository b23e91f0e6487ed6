"""The tables of a run as files: unrounded CSV for programs, Markdown and LaTeX for a paper."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medfed.common.files import write_atomically
from medfed.simulations.reporting import deployed, results
from medfed.simulations.reporting.arms import FEDERATED, FEDERATED_GLOBAL, POOLED, model_name
from medfed.simulations.reporting.latex import to_latex
from medfed.simulations.reporting.matrix import matrix_table
from medfed.simulations.reporting.run_data import RunData
from medfed.simulations.reporting.tables import Table, to_markdown
from medfed.simulations.reporting.uncertainty import gaps_table, intervals_table, subgroups_table

ALL_SITES = "all sites"
_LOCAL_MEAN = "local mean"


def kept_tables(run: RunData) -> dict[str, str]:
    """Return the text of every file by its name; what a run has nothing to say on is left out."""
    tables = {
        "comparison": Table((), ()) if run.deployed else results.comparison_table(run),
        "intervals": intervals_table(run),
        "sites": deployed.sites_table(run) if run.deployed else results.sites_table(run),
        "subgroups": subgroups_table(run),
        "gaps": gaps_table(run),
        "matrix": matrix_table(run),
    }
    files = {"figures.csv": _csv(_FIGURE_COLUMNS, _figures(run))}
    if run.uncertainty.get("subgroups"):
        files["subgroups.csv"] = _csv(_GROUP_COLUMNS, _groups(run))
    for name, table in tables.items():
        if table:
            files |= {f"{name}.md": to_markdown(table), f"{name}.tex": to_latex(table)}
    return files


def write_tables(folder: Path, files: Mapping[str, str]) -> None:
    """Write `files` into `folder`; tables that a run no longer has are taken away."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.suffix in (".csv", ".md", ".tex") and path.name not in files:
            path.unlink()
    for name, text in files.items():
        write_atomically(folder / name, text.encode())


_FIGURE_COLUMNS = ("model", "held_out_images_of", "figure", "value", "low", "high")
_GROUP_COLUMNS = ("column", "group", "patients", "figure", "value", "low", "high")


def _figures(run: RunData) -> Iterator[Sequence[Any]]:
    """One line a model, place and figure; intervals as far as the bootstrap gave them."""
    keys = [one.key for one in run.task.figures]
    intervals = run.uncertainty.get("figures") or {}
    kinds = {FEDERATED: FEDERATED, POOLED: POOLED, _LOCAL_MEAN: "local"}
    means: dict[str, Mapping[str, float | None]] = {
        name: arm.final_metrics for name, arm in run.arms.items()
    }
    if run.federated and run.federated.final_global_metrics:
        means[FEDERATED_GLOBAL] = run.federated.final_global_metrics
    if run.local_arms:
        means[_LOCAL_MEAN] = {key: results.local_mean(run, key) for key in keys}
    for name, figures in means.items():
        for key in keys:
            if (value := figures.get(key)) is not None:
                facts = (intervals.get(key) or {}).get("arms", {}).get(kinds.get(name), {})
                yield model_name(name), ALL_SITES, key, value, facts.get("low"), facts.get("high")
    for name, arm in run.arms.items():
        for site in run.site_names:
            figures = arm.site_metrics(site)
            yield from (
                (model_name(name), site, key, figures[key], None, None)
                for key in keys
                if key in figures
            )


def _groups(run: RunData) -> Iterator[Sequence[Any]]:
    for column, groups in run.uncertainty["subgroups"].items():
        for group, facts in groups.items():
            for key, one in facts["figures"].items():
                yield (column, group, facts["patients"], key,
                       one.get("value"), one.get("low"), one.get("high"))  # fmt: skip


def _csv(columns: Sequence[str], rows: Iterator[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
    return text.getvalue()
