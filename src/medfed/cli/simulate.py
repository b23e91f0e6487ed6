"""`medfed simulate`: start or resume a study, show it live, end with the report."""

import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from rich.console import Console

from medfed.cli.progress import show_progress
from medfed.cli.run_log import logging_into
from medfed.cli.sweep import finish_sweep
from medfed.common.errors import MedfedError, StudyError
from medfed.common.models import check_model
from medfed.common.study import StudyConfig
from medfed.common.study_file import load_study, with_files
from medfed.simulations.finishing import run_to_report
from medfed.simulations.plugins import complete
from medfed.simulations.reporting.headline import headline, privacy_tile
from medfed.simulations.reporting.report import REPORT_FILE
from medfed.simulations.reporting.run_data import SWEEP_FILE, RunData
from medfed.simulations.study import (
    GridName,
    Options,
    check_device,
    read_run,
    start_study,
)
from medfed.simulations.sweep import start_sweep
from medfed.simulations.tracking import check_tool, track

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SimulateRequest:
    """The command line of `medfed simulate`."""

    study: Path | None
    data: Path | None
    overrides: tuple[str, ...]
    out: Path | None
    resume: Path | None
    grid: str
    workers: int
    strict: bool
    track: str | None


def run_simulation(request: SimulateRequest, *, quiet: bool) -> None:
    """Run the request to its end and print the run folder and its report."""
    if request.grid not in ("local", "ray"):
        raise StudyError(f"Expected --grid local or ray, got {request.grid!r}.")
    if request.track is not None:
        check_tool(request.track)
    options = Options(
        grid=cast(GridName, request.grid), workers=request.workers, strict=request.strict
    )
    console = Console(stderr=True, quiet=quiet)
    if request.resume is not None and (request.resume / SWEEP_FILE).exists():
        _refuse_others(request)
        finish_sweep(request.resume, options, console, request.track)
        return
    run, study = _open(request, options)
    if study.sweep is not None:
        finish_sweep(run, options, console, request.track)
        return
    try:
        with logging_into(run), show_progress(run, study, console) as preparing:
            loaded = run_to_report(run, options, preparing)
    except MedfedError:
        if request.resume is None and not (run / "simulation.json").exists():
            # Refused before anything was trained: the next try may have the same name.
            shutil.rmtree(run)
        raise
    dataset = loaded.simulation["dataset"]
    if dataset["num_quarantined"]:
        console.print(
            f"{dataset['num_quarantined']} image(s) could not be used and were left out; "
            f"each is listed with its reason in {dataset['quarantine_list']}",
            style="yellow",
        )
    lines = [] if quiet else ["", *_summary(loaded), ""]
    lines += [f"Run folder  {run}", f"Report      {run / REPORT_FILE}"]
    if request.track is not None:
        lines.append(f"Tracked     {track(run, request.track)}")
    Console(stderr=False, soft_wrap=True, highlight=False).print("\n".join(lines), markup=False)


def _summary(run: RunData) -> list[str]:
    """The top of the report in words: what came out, and at what privacy."""
    summary, privacy = headline(run), privacy_tile(run)
    return [
        summary.sentence,
        f"{privacy.label}: {privacy.value} ({privacy.note})",
        *summary.notices,
    ]


def _open(request: SimulateRequest, options: Options) -> tuple[Path, StudyConfig]:
    if request.resume is not None:
        _refuse_others(request)
        return request.resume, read_run(request.resume)[0]
    if request.study is None:
        raise StudyError("Expected a study file or --resume RUN. Try: medfed simulate --help")
    study = with_files(load_study(request.study, request.overrides), request.study.parent)
    if study.simulation is None:
        raise StudyError(
            f"{request.study} has no [simulation] section, so there is nothing to simulate on. "
            'Add it, e.g. [simulation] dataset = "phantom".'
        )
    data = request.data
    if data is None and study.simulation.data:
        data = request.study.parent / study.simulation.data
    run = request.out or Path("runs") / f"{study.study.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if study.sweep is None:  # else each of its runs, which may differ in their plug-ins
        study = complete(study)
    check_model(study)
    check_device(study)
    start = start_study if study.sweep is None else start_sweep
    start(study, run, data, options)
    return run, study


def _refuse_others(request: SimulateRequest) -> None:
    if request.study or request.overrides or request.out or request.data:
        raise StudyError(
            "--resume goes on with the run's own study and data: give the run folder alone."
        )
