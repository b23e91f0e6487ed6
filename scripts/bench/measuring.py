"""What the benchmarks share: running processes on chosen cores, medians, tables, the machine.

Figures of one table come from one run of one script, in turns, so that whatever slows the machine
slows everyone. Only their ratios are meant to be compared with other machines.
"""

import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
MIB = 1 << 20
_PACKAGES = ("medfed", "torch", "flwr", "ray", "opacus", "numpy")


@dataclass(frozen=True)
class Sample:
    """One finished process: wall and CPU seconds, and the largest resident set.

    CPU and memory are those of the process and of the children that it waited for: not of a
    SuperLink that detached itself.
    """

    wall_s: float
    cpu_s: float
    max_rss_bytes: int


def run_process(
    command: Sequence[str | Path],
    *,
    cores: Sequence[int],
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Sample:
    """Run `command` pinned to `cores` and return what it took.

    Raises:
        SystemExit: It failed; the end of its output is in the message.
    """
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env=None if environment is None else dict(environment),
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        try:
            # wait4 and not wait: it tells the memory of this child and not of all so far.
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall_s = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            tail = output.read().decode(errors="replace")[-4000:]
            raise SystemExit(f"{' '.join(map(str, command))}\n{tail}\nexit {process.returncode}")
    return Sample(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


class MemoryWatch:
    """Largest memory of all of this process' descendants together, sampled while it is open.

    Proportional set sizes: a page that several processes share is counted once. Reading them takes
    time from whoever is measured, so open one around runs that are not timed.
    """

    def __init__(self, every_s: float = 0.3) -> None:
        self.peak_bytes = 0
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(self._every_s):
            total = sum(_proportional_bytes(pid) for pid in descendants(os.getpid()))
            self.peak_bytes = max(self.peak_bytes, total)


def descendants(root: int) -> list[int]:
    """Return the processes that `root` started, and those that they started."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name in brackets may hold anything; what follows the last one is numbers.
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue  # It ended while we looked.
        children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _proportional_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def clean_up_when_terminated() -> None:
    """Let SIGTERM end this process as Ctrl-C does: children stopped, temporary folders removed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def alternate(
    contestants: Mapping[str, Callable[[], Sample]], repeats: int
) -> dict[str, list[Sample]]:
    """Run A B C A B C ..., `repeats` times; say on stderr how it goes."""
    samples: dict[str, list[Sample]] = {name: [] for name in contestants}
    for turn in range(1, repeats + 1):
        for name, run in contestants.items():
            sample = run()
            samples[name].append(sample)
            note(f"{turn}/{repeats}  {name}: {sample.wall_s:.2f} s, CPU {sample.cpu_s:.2f} s")
    return samples


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Return lowest and highest, as text."""
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is text, the others are figures."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *rows])


def describe_machine() -> dict[str, Any]:
    """Return what a reader needs to judge the figures."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1
        ),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
        "load_before": round(os.getloadavg()[0], 2),
    }


def machine_lines(machine: Mapping[str, Any]) -> str:
    """Return the machine as a line of Markdown, with a warning if others were using it."""
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    text = (
        f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"{machine['system']}, Python {machine['python']}, {packages}; commit {machine['commit']}, "
        f"{machine['date']}."
    )
    if machine["load_before"] > 0.3:
        text += f"\n\n**Machine shared:** load average {machine['load_before']} before the start."
    return text


def publish(result: Mapping[str, Any], text: str, json_file: Path | None) -> None:
    """Print the Markdown and write the whole result, samples included, to `json_file`."""
    print(text)
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        note(f"wrote {json_file}")


def note(text: str) -> None:
    """Say something on stderr."""
    print(text, file=sys.stderr, flush=True)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    git = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"]
    answer = subprocess.run(git, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"
