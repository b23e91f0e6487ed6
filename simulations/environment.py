"""What a result came from: versions, machine, command. A figure is only as good as this record."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from medfed.server.records import now

_PACKAGES = ("medfed", "torch", "flwr", "opacus", "monai", "numpy", "dp-accounting")


def describe_environment(*, grid: str, workers: int) -> dict[str, Any]:
    """Return versions, processor, git commit and command of this process."""
    return {
        **{name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "git": _git_commit(),
        "command": " ".join(["medfed", *sys.argv[1:]]),
        "grid": grid,
        "workers": workers,
        "started": now(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _git_commit() -> str | None:
    """The commit of the source tree that this package runs from, if it is one."""
    here = Path(__file__).resolve().parent
    try:
        answer = subprocess.run(  # noqa: S603 - fixed arguments
            ["git", "-C", str(here), "rev-parse", "HEAD"],  # noqa: S607 - git from PATH
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
