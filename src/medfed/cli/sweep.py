"""`medfed simulate` of a study with `[sweep]`: run after run, then one page over all of them."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from medfed.cli.progress import show_progress
from medfed.cli.run_log import logging_into
from medfed.common.errors import RunError
from medfed.common.study import StudyConfig
from medfed.simulations.reporting.sweep import write_sweep_report
from medfed.simulations.study import Options, Preparing
from medfed.simulations.sweep import PlannedRun, planned_runs, run_sweep
from medfed.simulations.tracking import track


def finish_sweep(folder: Path, options: Options, console: Console, tool: str | None) -> None:
    """Run what is not finished, write the page and print where it is; track if there is a `tool`.

    Raises:
        RunError: Runs failed; says which and why. The page holds the others.
    """
    plan = planned_runs(folder)
    order = {run.folder: number for number, run in enumerate(plan, start=1)}

    @contextmanager
    def watch(run: PlannedRun, study: StudyConfig) -> Iterator[Preparing]:
        console.rule(f"Run {order[run.folder]} of {len(plan)}: {run.cell.label}, seed {run.seed}")
        with (
            logging_into(run.folder),
            show_progress(run.folder, study, console) as preparing,
        ):
            yield preparing

    failures = run_sweep(folder, options, watch)
    report = write_sweep_report(folder)
    lines = [f"Run folder  {folder}", f"Report      {report}"]
    if tool is not None:
        lines.append(f"Tracked     {track(folder, tool)}")
    Console(stderr=False, soft_wrap=True, highlight=False).print("\n".join(lines), markup=False)
    if failures:
        resume = shlex.quote(str(folder))
        listed = "\n".join(f"  {name}: {why}" for name, why in failures.items())
        raise RunError(
            f"{len(failures)} of {len(plan)} runs failed:\n{listed}\n"
            f"medfed simulate --resume {resume} tries them again; what is wrong with the study "
            "itself needs a new sweep. The report holds the other runs."
        )
