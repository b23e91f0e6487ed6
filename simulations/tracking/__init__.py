"""`track`: a run's settings, figures and report in MLflow or TensorBoard.

Everything comes from the run folder, after the fact: training knows nothing of it, so no bit and no
second of it changes. A tool that is told of a run again, after `--resume` or from another shell
while it goes on, is told what it lacks: no point is there twice.
"""

import shlex
from importlib.util import find_spec
from pathlib import Path

from medfed.common.errors import RunError
from medfed.simulations.reporting.run_data import SWEEP_FILE
from medfed.simulations.sweep import planned_runs

# The tool, by the package that has to be there.
_PACKAGES = {"mlflow": "mlflow", "tensorboard": "tensorboard"}


def check_tool(tool: str) -> None:
    """Check, before anything is trained, that `tool` can be used.

    Raises:
        RunError: Unknown or not installed; how to install it.
    """
    if tool not in _PACKAGES:
        raise RunError(f"Expected --track {' or '.join(_PACKAGES)}, got {tool!r}.")
    if find_spec(_PACKAGES[tool]) is None:
        raise RunError(
            f"--track {tool} needs a package that is not installed. "
            f"Install it: pip install 'medfed[{tool}]'"
        )


def track(folder: Path, tool: str) -> str:
    """Tell `tool` of a run, or of each finished run of a sweep.

    Args:
        folder: Of a run or of a sweep; a run may be unfinished.
        tool: mlflow or tensorboard.

    Returns:
        Where to look at it, for a person.

    Raises:
        RunError: Not a run folder, or the tool's store cannot be reached.
    """
    check_tool(tool)
    from medfed.simulations.reporting.run_data import load_run
    from medfed.simulations.tracking.facts import facts_of

    is_sweep = (folder / SWEEP_FILE).exists()
    runs = [folder]
    if is_sweep:
        runs = [run.folder for run in planned_runs(folder) if run.is_finished]
    found = [facts_of(load_run(run)) for run in runs]
    if tool == "mlflow":
        from medfed.simulations.tracking.mlflow_store import write_to_mlflow

        return write_to_mlflow(found)
    from medfed.simulations.tracking.tensorboard_files import write_event_files

    write_event_files(found)
    return f"tensorboard --logdir {shlex.quote(str(folder))}"
