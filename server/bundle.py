"""The bundle as a project for `flwr run`, and which arm a run is about.

The arm comes with the run (`run_config`) and names a folder on the coordinator's machine.
"""

import json
from pathlib import Path

from medfed.common.bundle import BUNDLE_FILES, bundle_contents

__all__ = ["BUNDLE_FILES", "RUNS_FOLDER", "run_config", "write_bundle"]

RUNS_FOLDER = "MEDFED_RUNS_FOLDER"
"""Environment variable: the folder that an arm's name is relative to, in a deployment."""


def write_bundle(folder: Path) -> Path:
    """Write the descriptor project of the installed release into `folder` and return it.

    Flower takes the folder's name for the app's: letters, digits and dashes only.

    Raises:
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in bundle_contents().items():
        (folder / name).write_bytes(content)
    return folder


def run_config(arm: Path) -> str:
    """Return what `flwr run --run-config` needs to run the arm in folder `arm`."""
    # A JSON string is a TOML string too. To Flower's parser any quote ends it, escaped or not.
    path = json.dumps(str(arm.resolve()))[1:-1].replace('\\"', "\\u0022")
    return f'arm="{path}"'
