"""`medfed simulate`: start or resume a study, show it live, end with the report."""

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from rich.console import Console

from medfed.cli.progress import show_progress
from medfed.common.errors import MedfedError, StudyError
from medfed.common.files import read_json
from medfed.common.models import check_model
from medfed.common.study import StudyConfig
from medfed.common.study_file import load_study, with_files
from medfed.simulations.reporting.headline import headline, privacy_tile
from medfed.simulations.reporting.report import write_report
from medfed.simulations.reporting.run_data import load_run
from medfed.simulations.study import GridName, Options, read_run, run_study, start_study

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


def run_simulation(request: SimulateRequest, *, quiet: bool) -> None:
    """Run the request to its end and print the run folder and its report."""
    if request.grid not in ("local", "ray"):
        raise StudyError(f"Expected --grid local or ray, got {request.grid!r}.")
    options = Options(
        grid=cast(GridName, request.grid), workers=request.workers, strict=request.strict
    )
    run, study = _open(request, options)
    console = Console(stderr=True, quiet=quiet)
    try:
        with _logging_into(run), show_progress(run, study, console) as preparing:
            run_study(run, options, preparing)
    except MedfedError:
        if request.resume is None and not (run / "simulation.json").exists():
            # Refused before anything was trained: the next try may have the same name.
            shutil.rmtree(run)
        raise
    report = write_report(run)
    dataset = read_json(run / "simulation.json")["dataset"]
    if dataset["num_quarantined"]:
        console.print(
            f"{dataset['num_quarantined']} image(s) could not be used and were left out; "
            f"each is listed with its reason in {dataset['quarantine_list']}",
            style="yellow",
        )
    lines = [] if quiet else ["", *_summary(run), ""]
    lines += [f"Run folder  {run}", f"Report      {report}"]
    Console(stderr=False, soft_wrap=True, highlight=False).print("\n".join(lines), markup=False)


def _summary(run: Path) -> list[str]:
    """The top of the report in words: what came out, and at what privacy."""
    data = load_run(run)
    summary, privacy = headline(data), privacy_tile(data)
    return [
        summary.sentence,
        f"{privacy.label}: {privacy.value} ({privacy.note})",
        *summary.notices,
    ]


def _open(request: SimulateRequest, options: Options) -> tuple[Path, StudyConfig]:
    if request.resume is not None:
        if request.study or request.overrides or request.out or request.data:
            raise StudyError(
                "--resume goes on with the run's own study and data: give the run folder alone."
            )
        return request.resume, read_run(request.resume)[0]
    if request.study is None:
        raise StudyError("Expected a study file or --resume RUN. Try: medfed simulate --help")
    study = with_files(load_study(request.study, request.overrides), request.study.parent)
    if study.simulation is None:
        raise StudyError(
            f"{request.study} has no [simulation] section, so there is nothing to simulate on. "
            'Add it, e.g. [simulation] dataset = "phantom".'
        )
    check_model(study)
    data = request.data
    if data is None and study.simulation.data:
        data = request.study.parent / study.simulation.data
    run = request.out or Path("runs") / f"{study.study.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    start_study(study, run, data, options)
    return run, study


@contextmanager
def _logging_into(run: Path) -> Iterator[None]:
    """Keep the log with the run, whatever is shown on the screen."""
    handler = logging.FileHandler(run / "medfed.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.setLevel(logging.INFO)
    logger = logging.getLogger("medfed")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
