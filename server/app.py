"""The ServerApp: the same object over a real SuperLink, on Ray and in one process.

`run_config["arm"]` names the arm's folder on the coordinator's machine; everything else is in it.
Sites get to see what a run is configured with: in a deployment the name is relative to the folder
of runs, which the supervisor puts into the environment.
"""

import logging
import os
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from medfed.common.errors import MedfedError, RunError
from medfed.common.study_file import parse_study_json
from medfed.server.bundle import RUNS_FOLDER
from medfed.server.loop import run_study
from medfed.server.records import ArmFolder

log = logging.getLogger(__name__)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the arm that the run's configuration names."""
    runs = os.environ.get(RUNS_FOLDER, "")
    folder = Path(runs) / str(context.run_config.get("arm", ""))
    if not (folder / "plan.json").is_file():
        raise RunError(
            f"Expected run_config arm to name an arm's folder, got {str(folder)!r}. "
            "`medfed simulate` and `medfed federation run` set it."
        )
    if runs:
        _log_into(folder / "server.log")
    arm = ArmFolder(folder)
    study = parse_study_json((folder / "study.json").read_text(encoding="utf-8"))
    torch.set_num_threads(study.compute.threads)
    try:
        run_study(grid, study, arm.read_plan(), arm)
    except MedfedError as error:
        arm.write_outcome("failed", str(error))
        arm.emit("failed", reason=str(error))
        raise


def _log_into(file: Path) -> None:
    """Keep the log with the run: Flower drops what a ServerApp prints."""
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    ours = logging.getLogger("medfed")
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
