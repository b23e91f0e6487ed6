"""A run for TensorBoard: event files in `tensorboard/` of its folder, written anew each time."""

import shutil
from collections.abc import Sequence

from medfed.simulations.reporting.tables import to_markdown
from medfed.simulations.tracking.facts import RunFacts

EVENTS_FOLDER = "tensorboard"


def write_event_files(runs: Sequence[RunFacts]) -> None:
    """Write each run's event files anew: its records are whole, so nothing is added to old ones.

    `tensorboard --logdir` finds all runs of a folder, each under its own name.
    """
    from torch.utils.tensorboard import SummaryWriter

    for run in runs:
        folder = run.folder / EVENTS_FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        with SummaryWriter(str(folder)) as writer:
            for name, step, value, time_s in run.points:
                writer.add_scalar(name, value, step, time_s)
            # Four spaces are Markdown for: as it stands.
            lines = (f"    {key} = {value}" for key, value in sorted(run.settings.items()))
            writer.add_text("study", "\n".join(lines))
            writer.add_text("results", to_markdown(run.table))
            writer.add_text("report", str(run.report.resolve()))
