"""The bundle that a run hands out: it names the apps and carries no code.

What trains at a site is the medfed that the site installed and vetted. The bundle is the same for
every run of a release, byte for byte and on every machine, so that a site can allow it by its hash.
"""

import hashlib
import io
import zipfile
from importlib.metadata import version

BUNDLE_FILES = ("LICENSE", "README.md", "pyproject.toml")

# Flower writes pyproject.toml anew while it builds: this is how it comes out.
_PYPROJECT = """\
[build-system]
requires = [
    "setuptools>=77",
]
build-backend = "setuptools.build_meta"

[project]
name = "medfed-study"
version = "{version}"
description = "Names the medfed apps that both sides have installed; holds no code"
license = "Apache-2.0"
dependencies = [
    "flwr>=1.41,<1.42",
]

[tool.flwr.app]
publisher = "medfed"
fab-include = [
    "README.md",
    "LICENSE",
]

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

_DATE = (2024, 10, 1, 0, 0, 0)
_UNIX = 3


def bundle_contents() -> dict[str, bytes]:
    """Return the files of the installed release's bundle."""
    release = version("medfed")
    return {
        "LICENSE": _LICENSE.encode(),
        "README.md": _README.format(version=release).encode(),
        "pyproject.toml": _PYPROJECT.format(version=release).encode(),
    }


def bundle_bytes() -> bytes:
    """Return the installed release's bundle in Flower's format.

    Written here, not by Flower's builder: the bytes must not depend on its version, on the
    operating system or on a compression library. A test compares the two.
    """
    contents = bundle_contents()
    names = ["pyproject.toml", *(name for name in sorted(contents) if name != "pyproject.toml")]
    manifest = [
        f"{name},{hashlib.sha256(contents[name]).hexdigest()},{8 * len(contents[name])}"
        for name in names
    ]
    contents[".info/CONTENT"] = "\n".join(manifest).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for name in [*names, ".info/CONTENT"]:
            entry = zipfile.ZipInfo(name, _DATE)
            entry.create_system = _UNIX
            entry.external_attr = 0o600 << 16
            bundle.writestr(entry, contents[name])
    return buffer.getvalue()


def bundle_digest() -> str:
    """Return the SHA-256 of `bundle_bytes`: what a site's allow-list holds."""
    return hashlib.sha256(bundle_bytes()).hexdigest()
