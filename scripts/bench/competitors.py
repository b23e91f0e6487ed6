"""NVFLARE's simulator and pfl's, run on the benchmark study: what `overhead.py --with` starts.

Each lies in a folder of its own, since what they depend on does not agree with what medfed depends
on. PyTorch comes from the environment that runs the benchmark. To make the folders:

    pip install --target OTHERS/nvflare nvflare==2.9.0
    pip install --target OTHERS/pfl pfl==0.6.0

OTHERS is given as --others, or in MEDFED_BENCH_OTHERS.
"""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import plain_loop
import torch
from benchmark_study import BenchmarkStudy
from measuring import Sample, run_process

HERE = Path(__file__).resolve().parent
RELEASES = {"nvflare": "2.9.0", "pfl": "0.6.0"}
OTHERS_VARIABLE = "MEDFED_BENCH_OTHERS"


def folder_of(name: str, others: Path | None) -> Path:
    """Return where `name` is installed.

    Raises:
        SystemExit: It is not; how to install it is in the message.
    """
    if others is None:
        others = Path(os.environ.get(OTHERS_VARIABLE, "others"))
    folder = (others / name).resolve()
    if not (folder / name).is_dir():
        raise SystemExit(
            f"Expected {name} in {folder}, found none. Install it there:\n"
            f"    pip install --target {folder} {name}=={RELEASES[name]}\n"
            f"or say where it is with --others or {OTHERS_VARIABLE}."
        )
    return folder


def _environment(folder: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{HERE}"}


# Memory of some gigabytes; and the faster way, as long as there is the memory.
_MOST_CLIENTS_AT_ONCE = 8


class Nvflare:
    """NVFLARE's FedAvg recipe on its simulator.

    All clients at once where they are few, as its simulator does unless told otherwise: each is a
    process for the whole run. With fewer at a time than there are, every client's turn of every
    round starts a process anew; so many are as many at a time as there are cores.
    """

    def __init__(self, folder: Path, work: Path, data: Path, study: BenchmarkStudy) -> None:
        self._folder = folder
        self._workspace = work / "nvflare"
        self._data = data
        self._study = study

    def clients_at_a_time(self, cores: Sequence[int]) -> int:
        sites = self._study.num_sites
        return sites if sites <= _MOST_CLIENTS_AT_ONCE else len(cores)

    def run(self, cores: Sequence[int]) -> Sample:
        shutil.rmtree(self._workspace, ignore_errors=True)
        study = self._study
        options = {
            "epochs": study.epochs,
            "batch-size": study.batch_size,
            "image-size": study.image_size,
        }
        command = [sys.executable, HERE / "nvflare_app" / "job.py", self._data]
        command += ["--workspace", self._workspace, "--rounds", str(study.rounds)]
        command += ["--image-size", str(study.image_size)]
        command += ["--clients-at-a-time", str(self.clients_at_a_time(cores))]
        command += ["--client-options", json.dumps(options)]
        sample = run_process(command, cores=cores, environment=_environment(self._folder))
        self._model()  # a run that failed may exit with 0
        return sample

    def figures(self) -> dict[str, float]:
        """Return the figures of the last model, which NVFLARE's clients have not evaluated."""
        model = plain_loop.Cnn(self._study.image_size)
        model.load_state_dict(torch.load(self._model(), weights_only=True)["model"])
        sites = plain_loop.load_sites(self._data)
        return plain_loop.evaluate(model, [test for _, test in sites.values()])

    def _model(self) -> Path:
        found = sorted(self._workspace.rglob("FL_global_model.pt"))
        if len(found) != 1:
            raise SystemExit(f"Expected NVFLARE's last model in {self._workspace}, got {found}.")
        return found[0]


class Pfl:
    """pfl's FedAvg on its PyTorch simulator, in one process or, with torchrun, one a core."""

    def __init__(self, folder: Path, work: Path, data: Path, study: BenchmarkStudy) -> None:
        self._folder = folder
        self._out = work / "pfl.json"
        self._data = data
        self._study = study

    def one_process(self, cores: Sequence[int]) -> Sample:
        """Run with as many threads of PyTorch as there are cores."""
        return self._run([sys.executable], len(cores), cores)

    def process_a_core(self, cores: Sequence[int]) -> Sample:
        """Run with a process of one thread on each core."""
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        return self._run([*torchrun, f"--nproc-per-node={len(cores)}"], 1, cores)

    def figures(self) -> dict[str, float]:
        return json.loads(self._out.read_text())[-1]

    def _run(self, start: list[str], threads: int, cores: Sequence[int]) -> Sample:
        self._out.unlink(missing_ok=True)
        study = self._study
        command = [*start, HERE / "pfl_app.py", self._data, "--out", self._out]
        command += ["--rounds", str(study.rounds), "--epochs", str(study.epochs)]
        command += ["--batch-size", str(study.batch_size)]
        command += ["--image-size", str(study.image_size), "--threads", str(threads)]
        return run_process(command, cores=cores, environment=_environment(self._folder))
