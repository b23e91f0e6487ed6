"""`run_to_report`: a study, and the page about it."""

from pathlib import Path

from medfed.simulations.reporting.beside import Beside
from medfed.simulations.reporting.figures import plots_of
from medfed.simulations.reporting.report import report_of
from medfed.simulations.reporting.run_data import RunData, load_run, with_ends
from medfed.simulations.study import Options, Preparing, run_arms, write_ends


def run_to_report(run: Path, options: Options, preparing: Preparing | None = None) -> RunData:
    """Bring the study in folder `run` to its end and write its report; return what that shows.

    Where several workers train, the figures are begun in a process beside this one while it works
    out the intervals.

    Raises:
        MedfedError: What stopped it; nothing that was done is lost.
    """
    study = run_arms(run, options, preparing)
    loaded = load_run(run, ends=False)
    with Beside(plots_of(loaded), in_two=options.num_workers(study) > 1) as figures:
        write_ends(run, study, options)
        loaded = with_ends(loaded)
        report_of(loaded, figures.finish())
    return loaded
