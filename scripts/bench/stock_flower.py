"""Run the benchmark study through stock Flower: `flwr run` on its local simulation, which is Ray.

    python scripts/bench/stock_flower.py --rounds 10 --repeats 3

What is timed is `flwr run --stream`, from the start of the command until it returns.
  cold  no SuperLink is running: `flwr run` starts it, with an empty FLWR_HOME
  warm  the SuperLink of the run before is still there (Flower starts Ray anew for every run)

`flwr run` exits 0 for a run that failed, so `flwr list` is asked afterwards, outside the clock. The
app in stock_flower/ uses Flower's own FedAvg and the functions of plain_loop.py. To have it in one
table with medfed and the plain loop: overhead.py --with flower.
"""

import argparse
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from benchmark_study import BenchmarkStudy, add_study_options, first_run, study_of
from measuring import (
    MIB,
    MemoryWatch,
    Sample,
    alternate,
    clean_up_when_terminated,
    descendants,
    describe_machine,
    machine_lines,
    markdown_table,
    median,
    note,
    publish,
    run_process,
    spread,
)

HERE = Path(__file__).resolve().parent
_CONNECTION = '[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = ":local:"\n'
_BECOME_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)


class StockFlower:
    """A Flower home of its own in `work`, and the runs in it."""

    def __init__(self, work: Path, data: Path, study: BenchmarkStudy) -> None:
        self.out = work / "figures.json"
        self._home = work / "home"
        # Ray imports from the folder that it is started in: an empty one.
        self._empty = work / "empty"
        self._empty.mkdir()
        self._app = work / "stock-flower"
        self._config = {
            "data": f'"{data}"',
            "out": f'"{self.out}"',
            "rounds": study.rounds,
            "epochs": study.epochs,
            "batch-size": study.batch_size,
            "image-size": study.image_size,
        }
        self._num_sites = len(json.loads((data / "sites.json").read_text()))
        shutil.copytree(HERE / "stock_flower", self._app, ignore=shutil.ignore_patterns("__*"))
        shutil.copy(HERE / "plain_loop.py", self._app)
        ports = _free_ports(2)
        self._environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(self._home),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(ports[0]),
            "FLWR_LOCAL_CONTROL_API_PORT": str(ports[1]),
            "RAY_TMPDIR": str(work),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        # The SuperLink detaches itself: without this it would outlive us, and its memory would
        # not be among our descendants'.
        if ctypes.CDLL(None).prctl(_BECOME_SUBREAPER, 1, 0, 0, 0):
            raise SystemExit("Expected prctl(PR_SET_CHILD_SUBREAPER) to work; is this Linux?")

    def cold(self, cores: Sequence[int], threads: int) -> Sample:
        """Run with nothing there."""
        self.stop()
        return self.warm(cores, threads)

    def warm(self, cores: Sequence[int], threads: int) -> Sample:
        """Run with the SuperLink that is there, if one is (pinned as when it was started)."""
        self.out.unlink(missing_ok=True)
        if not self._home.exists():
            self._home.mkdir()
            (self._home / "config.toml").write_text(_CONNECTION)
        config = " ".join(f"{k}={v}" for k, v in {**self._config, "threads": threads}.items())
        simulation = (
            f"num-supernodes={self._num_sites} client-resources-num-cpus=1 "
            f"init-args-num-cpus={len(cores)} init-args-log-to-driver=false"
        )
        sample = run_process(
            [
                *("flwr", "run", self._app, "local", "--stream"),
                *("--run-config", config, "--federation-config", simulation),
            ],
            cores=cores,
            environment=self._environment,
            folder=self._empty,
        )
        self._check()
        return sample

    def figures(self) -> dict[str, float]:
        """Return the figures after the last round."""
        return json.loads(self.out.read_text())[-1]

    def stop(self) -> None:
        """End what `flwr run` left behind, all of it our descendants, and forget its state."""
        for ending in (signal.SIGTERM, signal.SIGKILL):
            for pid in descendants(os.getpid()):
                with suppress(ProcessLookupError):
                    os.kill(pid, ending)
            deadline = time.monotonic() + 5
            while descendants(os.getpid()) and time.monotonic() < deadline:
                with suppress(ChildProcessError):
                    os.waitpid(-1, os.WNOHANG)
                time.sleep(0.05)
        shutil.rmtree(self._home, ignore_errors=True)

    def _check(self) -> None:
        """Stop with Flower's log unless the last run completed and left its figures."""
        answer = subprocess.run(
            ["flwr", "list", "--format", "json"],
            env=self._environment,
            cwd=self._empty,
            capture_output=True,
            text=True,
            check=False,
        )
        runs = json.loads(answer.stdout)["runs"] if answer.returncode == 0 else []
        states = [run["status"] for run in sorted(runs, key=lambda run: run["pending-at"])]
        if states[-1:] != ["finished:completed"] or not self.out.exists():
            log = self._home / "local-superlink" / "superlink.log"
            tail = log.read_text(errors="replace")[-4000:] if log.exists() else answer.stderr
            raise SystemExit(f"{tail}\nFlower's run did not complete: {states or answer.stdout}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_study_options(parser)
    parser.add_argument("--num-cores", type=int, default=2, help="cores, and Ray's actors")
    options = parser.parse_args()
    clean_up_when_terminated()
    machine, study = describe_machine(), study_of(options)
    cores = sorted(os.sched_getaffinity(0))[: options.num_cores]
    with tempfile.TemporaryDirectory(prefix="medfed-bench-") as folder:
        data, work = Path(folder) / "data", Path(folder) / "flower"
        data.mkdir()
        work.mkdir()
        first_run(study, data, cores)
        flower = StockFlower(work, data, study)
        try:
            with MemoryWatch() as watch:
                flower.cold(cores, 1)
            note(f"first run done, peak {watch.peak_bytes / MIB:.0f} MiB")
            samples = alternate(
                {"cold": lambda: flower.cold(cores, 1), "warm": lambda: flower.warm(cores, 1)},
                options.repeats,
            )
            figures = flower.figures()
        finally:
            flower.stop()
    walls = {name: [sample.wall_s for sample in taken] for name, taken in samples.items()}
    rows = [
        [f"stock Flower, {name}", f"{median(wall):.2f}", spread(wall), f"{figures['accuracy']:.3f}"]
        for name, wall in walls.items()
    ]
    text = markdown_table(["", "seconds, median", "range", "accuracy"], rows)
    result = {
        "machine": machine,
        "study": {**vars(study), "batch_size": study.batch_size},
        "wall_s": walls,
        "peak_bytes": watch.peak_bytes,
        "figures": figures,
    }
    publish(result, f"{text}\n\n{machine_lines(machine)}", options.json)


if __name__ == "__main__":
    main()
