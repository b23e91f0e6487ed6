"""Whether the machine and what is installed on it will do."""

import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from medfed.client.agent.checks.finding import Finding, Subject
from medfed.common.processes import programs_folder, quiet_flower

_GIB = 1 << 30
_LEAST_MEMORY_GIB, _GOOD_MEMORY_GIB = 2, 8
_LEAST_DISK_GIB, _GOOD_DISK_GIB = 1, 10
_GOOD_CORES = 4
_SLOW_WRITE_MS = 200
_PATIENCE_S = 5.0


def check_programs(subject: Subject) -> Finding:
    """Check that what medfed needs is installed, in a version that it was tested with."""
    wrong = []
    for text in requires("medfed") or ():
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate():
            continue
        try:
            found = version(needed.name)
        except PackageNotFoundError:
            wrong.append(f"{needed.name} is missing")
            continue
        if not needed.specifier.contains(found, prereleases=True):
            wrong.append(f"{needed.name} is {found}, needed is {needed.specifier}")
    if wrong:
        return Finding(
            "programs", "failed", f"{'; '.join(wrong)}. Install medfed anew into its environment."
        )
    if not (programs_folder() / "flower-supernode").is_file():
        return Finding(
            "programs",
            "failed",
            f"flower-supernode is not in {programs_folder()}. Install medfed anew.",
        )
    return Finding(
        "programs",
        "ok",
        f"medfed {version('medfed')}, flwr {version('flwr')}, torch {version('torch')}, "
        f"Python {platform.python_version()}",
    )


def check_foreign_code(subject: Subject) -> Finding:
    """Check that nothing is installed or run that a server sends."""
    agent = quiet_flower(Path())
    if agent.get("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION") != "1":
        return Finding("foreign code", "failed", "Flower may install what a server names.")
    return Finding(
        "foreign code", "ok", "none is run: installation at run time is off, bundles are only names"
    )


def check_processor(subject: Subject) -> Finding:
    """Check cores and memory."""
    cores, total, free = _num_cores(), *_memory()
    text = f"{cores} cores, {free / _GIB:.1f} of {total / _GIB:.1f} GiB memory free"
    if free < _LEAST_MEMORY_GIB * _GIB:
        return Finding(
            "processor", "failed", f"{text}. Training needs {_LEAST_MEMORY_GIB} GiB at least."
        )
    if cores < _GOOD_CORES or free < _GOOD_MEMORY_GIB * _GIB:
        return Finding(
            "processor",
            "warning",
            f"{text}. Enough for small studies; large models or 3-D images need more.",
        )
    return Finding("processor", "ok", text)


def check_gpu(subject: Subject) -> Finding:
    """Check that a GPU, if there is one, computes."""
    import torch

    wish = subject.site.compute.device
    if wish == "cpu":
        return Finding("GPU", "ok", 'not used: compute.device = "cpu"')
    if not torch.cuda.is_available():
        if wish == "cuda":
            return Finding(
                "GPU",
                "failed",
                'none that torch can use, and compute.device = "cuda". Install the driver, or set '
                'it to "auto".',
            )
        return Finding("GPU", "ok", "none: this site trains on the processor")
    torch.ones(8, device="cuda").sum().item()
    free, total = torch.cuda.mem_get_info()
    name, count = torch.cuda.get_device_name(), torch.cuda.device_count()
    more = f", the first of {count}" if count > 1 else ""
    return Finding(
        "GPU",
        "ok",
        f"{name}{more}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free, CUDA "
        f"{torch.version.cuda}{_driver()}",
    )


def check_disk(subject: Subject) -> Iterator[Finding]:
    """Check the room for ledger, logs and replies, and that writing through to the disk works."""
    state = subject.site.state_folder
    place = next(one for one in (state, *state.parents) if one.is_dir())
    free = shutil.disk_usage(place).free
    text = f"{free / _GIB:.1f} GiB free for state, logs and replies"
    if free < _LEAST_DISK_GIB * _GIB:
        yield Finding("disk", "failed", f"{text}. Make room: {_LEAST_DISK_GIB} GiB at least.")
    elif free < _GOOD_DISK_GIB * _GIB:
        yield Finding("disk", "warning", f"{text}. A reply is as large as its model.")
    else:
        yield Finding("disk", "ok", text)
    yield _check_write(state)


def _check_write(state: Path) -> Finding:
    if not state.is_dir():
        return Finding("writing", "skipped", f"{state} is not there yet; the first start makes it.")
    try:
        with tempfile.NamedTemporaryFile(dir=state, prefix=".preflight-") as file:
            start = time.perf_counter()
            file.write(b"medfed" * 1000)
            file.flush()
            os.fsync(file.fileno())
            took = (time.perf_counter() - start) * 1000
    except OSError as error:
        return Finding(
            "writing",
            "failed",
            f"{state} cannot be written ({error.strerror}). Run as the site's user; nothing is "
            "trained that cannot be written down first.",
        )
    text = f"through to the disk in {took:.1f} ms"
    if took > _SLOW_WRITE_MS:
        return Finding("writing", "warning", f"{text}: slow; is {state} on a network drive?")
    return Finding("writing", "ok", text)


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> tuple[int, int]:
    """Total and free bytes, of the container if there is one with a limit."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        table = {
            name: int(rest.split()[0]) * 1024 for name, _, rest in (x.partition(":") for x in lines)
        }
        total, free = table["MemTotal"], table["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total, total
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no limit says "max"
        return total, free
    return min(total, limit), min(free, max(0, limit - used))


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    question = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(  # noqa: S603 - a fixed question
            question, capture_output=True, text=True, timeout=_PATIENCE_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return f", driver {answer.stdout.split()[0]}" if answer.stdout.split() else ""
