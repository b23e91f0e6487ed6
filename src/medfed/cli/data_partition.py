"""`medfed data partition`: how a study's partition divides a data set, without training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from medfed.simulations.partition.describe import PartitionSummary


def partition(
    study: Annotated[Path, typer.Argument(help="Study file with a simulation section.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder or file of the data set, in its official layout.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one value of the study."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the figure here: a .png or .svg file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Show which patients and classes each site of a study would get."""
    import json

    from rich.console import Console
    from rich.progress import Progress

    from medfed.common.errors import StudyError
    from medfed.common.study_file import load_study, with_files

    if out is not None and out.suffix not in (".png", ".svg"):
        raise StudyError(f"Expected --out to end in .png or .svg, got {out.name}.")
    loaded = with_files(load_study(study, overrides or ()), study.parent)
    if data is None and loaded.simulation is not None and loaded.simulation.data:
        data = study.parent / loaded.simulation.data
    # torch takes seconds to import, and a mistake in the study is told at once.
    from medfed.simulations.partition.describe import describe_partition

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("preparing", total=None)
        summary = describe_partition(
            loaded, data, lambda done, total: bars.update(task, completed=done, total=total)
        )
    if out is not None:
        _write_figure(summary, out)
    if as_json:
        typer.echo(json.dumps(summary.to_json(), indent=1))
        return
    _print_table(summary, Console(highlight=False))
    if out is not None:
        typer.echo(f"Figure  {out}")


def _print_table(summary: "PartitionSummary", console: "Console") -> None:
    from rich.table import Table

    lines = _lines(summary)
    wide = sum(max(map(len, column)) + 3 for column in zip(*lines, strict=True))
    if wide > console.width:
        # Many classes make a table wide that may as well be long.
        lines = list(zip(*lines, strict=True))
    table = Table(title=f"{summary.dataset}: {summary.method}", caption="Patients")
    for number, heading in enumerate(lines[0]):
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for cells in lines[1:]:
        table.add_row(*cells)
    console.print(table)
    for site in summary.sites:
        if site.scanner:
            facts = ", ".join(f"{name} {value:g}" for name, value in site.scanner.items())
            console.print(f"Scanner of {site.name}: {facts}", markup=False)
    for name, reason in summary.left_out.items():
        console.print(f"Left out: {name}: {reason}", markup=False)


def _lines(summary: "PartitionSummary") -> list[tuple[str, ...]]:
    """The table as text, headings first, a line for each site."""
    from medfed.simulations.reporting.tables import ABSENT

    wrong = any(site.wrong_labels for site in summary.sites)
    headings = ("Site", "All", "Train", "Test", *summary.classes)
    lines = [(*headings, "Wrong labels") if wrong else headings]
    for site in summary.sites:
        counts = [site.patients, site.train.patients, site.test.patients, *site.by_class]
        if wrong:
            counts.append(site.wrong_labels)
        lines.append((site.name, *(str(count) if count else ABSENT for count in counts)))
    return lines


def _write_figure(summary: "PartitionSummary", out: Path) -> None:
    import numpy as np

    from medfed.common.files import write_atomically
    from medfed.simulations.reporting.drawing import draw
    from medfed.simulations.reporting.partition_plot import patients_by_class

    drawing = draw(
        "partition",
        "Patients of each site by class, and training beside held-out.",
        lambda: patients_by_class(
            [site.name for site in summary.sites],
            summary.classes,
            np.array([site.by_class for site in summary.sites], dtype=np.int64),
            [site.train.patients for site in summary.sites],
            [site.test.patients for site in summary.sites],
        ),
    )
    if drawing is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, drawing.png if out.suffix == ".png" else drawing.svg)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(partition)
