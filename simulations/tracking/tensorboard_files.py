"""A run for TensorBoard: event files in `tensorboard/` of its folder, written anew each time.

Every arm is a run of TensorBoard's, so that a chart holds one figure of all arms. Runs of a sweep
also have hyperparameters: the settings in which they differ, and the federated arm's last figures.
"""

import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from medfed.simulations.reporting.arms import FEDERATED
from medfed.simulations.reporting.tables import to_markdown
from medfed.simulations.tracking.facts import RunFacts

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EVENTS_FOLDER = "tensorboard"


def write_event_files(runs: Sequence[RunFacts]) -> None:
    """Write each run's event files anew: its records are whole, so nothing is added to old ones.

    `tensorboard --logdir` finds all runs of a folder, each under its own name.
    """
    from torch.utils.tensorboard import SummaryWriter

    varied = _varied(runs)
    for run in runs:
        folder = run.folder / EVENTS_FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        for arm in dict.fromkeys(point.arm for point in run.points):
            with SummaryWriter(str(folder / arm)) as writer:
                for point in run.points:
                    if point.arm == arm:
                        writer.add_scalar(point.figure, point.value, point.step, point.time_s)
        with SummaryWriter(str(folder)) as writer:
            # Four spaces are Markdown for: as it stands.
            lines = (f"    {key} = {value}" for key, value in sorted(run.settings.items()))
            writer.add_text("study", "\n".join(lines))
            writer.add_text("results", to_markdown(run.table))
            writer.add_text("report", str(run.report.resolve()))
            if varied:
                _add_hyperparameters(writer, run, {key: run.settings.get(key) for key in varied})


def _varied(runs: Sequence[RunFacts]) -> list[str]:
    """Return the settings that are not the same in all runs."""
    keys = sorted({key for run in runs for key in run.settings})
    return [key for key in keys if len({run.settings.get(key) for run in runs}) > 1]


def _add_hyperparameters(
    writer: "SummaryWriter", run: RunFacts, settings: Mapping[str, str | None]
) -> None:
    from torch.utils.tensorboard.summary import hparams

    last = {f"last/{point.figure}": point.value for point in run.points if point.arm == FEDERATED}
    numbers = {key: _number_or_text(value) for key, value in settings.items()}
    # `writer.add_hparams` would open a second file for these.
    for summary in hparams(numbers, last):
        writer.file_writer.add_summary(summary)
    for figure, value in last.items():
        writer.add_scalar(figure, value)


def _number_or_text(value: str | None) -> float | str:
    try:
        return float(value or "")
    except ValueError:
        return value or "unset"
