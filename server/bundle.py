"""The bundle that `flwr run` submits: it names the apps and carries no code.

What trains at a site is the medfed that the site installed and vetted. The bundle is the same for
every run of a release, byte for byte, so that a site can allow it by its hash; which arm to run
comes with the run (`run_config`) and stays on the coordinator's machine.
"""

import json
from importlib.metadata import version
from pathlib import Path

BUNDLE_FILES = ("LICENSE", "README.md", "pyproject.toml")

_PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "medfed-study"
version = "{version}"
description = "Names the medfed apps that both sides have installed; holds no code"
license = "Apache-2.0"
dependencies = ["flwr>=1.41,<1.42"]

[tool.flwr.app]
publisher = "medfed"
fab-include = ["README.md", "LICENSE"]

[tool.flwr.app.components]
serverapp = "medfed.server.app:app"
clientapp = "medfed.client.app:app"

[tool.flwr.app.config]
arm = ""
"""

_README = """\
# medfed study

Descriptor for `flwr run`. It holds no code: coordinator and sites run the medfed {version} that
they have installed. `arm` names the study's folder on the coordinator's machine.
"""

_LICENSE = """\
SPDX-License-Identifier: Apache-2.0
https://www.apache.org/licenses/LICENSE-2.0
"""


def write_bundle(folder: Path) -> Path:
    """Write the descriptor project of the installed release into `folder` and return it.

    Flower takes the folder's name for the app's: letters, digits and dashes only.

    Raises:
        OSError: The folder cannot be written.
    """
    release = version("medfed")
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "pyproject.toml": _PYPROJECT.format(version=release),
        "README.md": _README.format(version=release),
        "LICENSE": _LICENSE,
    }
    for name, text in contents.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def run_config(arm: Path) -> str:
    """Return what `flwr run --run-config` needs to run the arm in folder `arm`."""
    # A JSON string is a TOML string too. To Flower's parser any quote ends it, escaped or not.
    path = json.dumps(str(arm.resolve()))[1:-1].replace('\\"', "\\u0022")
    return f'arm="{path}"'
