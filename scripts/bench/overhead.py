"""What medfed costs: `medfed simulate`, the whole process, over a plain PyTorch script.

    python scripts/bench/overhead.py --repeats 5 --json overhead.json
    python scripts/bench/overhead.py --model unet --num-sites 64 --train-images 25 --test-images 10
    python scripts/bench/overhead.py --cores 2 --with nvflare pfl flower --others FOLDER

--model cnn, unet or report: which network and task; a plain script for each (plain_loop.py,
plain_unet.py, plain_report.py). Script and medfed do the same optimiser steps on the same images of
the same sites and the same evaluations after every round; medfed also computes its other figures,
checks, packs messages, writes checkpoints and records, and ends with the report. Start to exit of
each process counts. On one core: medfed with --workers 1 against the plain loop with one thread. On
two: --workers 2 against the plain loop with one and with two threads; the ratio is to the faster of
them. Processes are pinned to the cores and take turns; before that, everyone runs once untimed, to
warm the file cache and have its memory measured (all its processes together).

--with runs the CNN's study through others beside them, on the largest number of cores: stock `flwr
run` (stock_flower.py), NVFLARE's simulator and pfl's (competitors.py, which says how to install
them).
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmark_study import (
    FIGURES,
    MODELS,
    SCRIPTS,
    BenchmarkStudy,
    Medfed,
    add_study_options,
    first_run,
    study_of,
)
from competitors import OTHERS_VARIABLE, RELEASES, Nvflare, Pfl, folder_of
from measuring import (
    MIB,
    MemoryWatch,
    Sample,
    alternate,
    clean_up_when_terminated,
    describe_machine,
    machine_lines,
    markdown_table,
    median,
    note,
    publish,
    run_process,
    spread,
)
from stock_flower import StockFlower

HERE = Path(__file__).resolve().parent
GOAL = 1.05


@dataclass
class Contestant:
    """One row of the table: what is run, and what came of it.

    With `own_processes` some are not waited for by the one that is started: CPU seconds are not
    known.
    """

    name: str
    run: Callable[[], Sample]
    figures: Callable[[], dict[str, float]]
    is_plain: bool = False
    own_processes: bool = False
    peak_bytes: int = 0
    samples: list[Sample] = field(default_factory=list)
    last: dict[str, float] = field(default_factory=dict)

    @property
    def wall_s(self) -> float:
        return median([sample.wall_s for sample in self.samples])


def contestants_on(cores: Sequence[int], study: BenchmarkStudy, data: Path) -> list[Contestant]:
    """Return medfed and the plain loops on these cores."""
    work = data / f"on{len(cores)}"
    work.mkdir()
    for name in ("study.toml", "images.npz", "cache"):
        if (data / name).exists():
            (work / name).symlink_to(data / name)
    found = []
    for threads in sorted({1, len(cores)}):
        out = work / f"plain{threads}.json"
        command = [sys.executable, HERE / SCRIPTS[study.model], data, "--out", out]
        command += ["--rounds", study.rounds, "--epochs", study.epochs]
        command += ["--batch-size", study.batch_size]
        command += ["--threads", threads, "--image-size", study.image_size]
        found.append(
            Contestant(
                f"plain PyTorch, {_plural(threads, 'thread')}",
                partial(run_process, command, cores=cores),
                partial(_last_figures, out),
                is_plain=True,
            )
        )
    medfed = Medfed(work, FIGURES[study.model])
    name = f"medfed simulate --workers {len(cores)}"
    found.append(Contestant(name, partial(medfed.run, cores, len(cores)), medfed.figures))
    return found


class Guests:
    """The others that are run beside them. Close it: some leave processes behind."""

    def __init__(
        self, folders: dict[str, Path | None], work: Path, data: Path, study: BenchmarkStudy
    ) -> None:
        self._folders, self._work, self._data, self._study = folders, work, data, study
        self._flower: StockFlower | None = None

    def contestants(self, cores: Sequence[int]) -> list[Contestant]:
        """Return them, ready to run on these cores."""
        make = {"nvflare": self._nvflare, "pfl": self._pfl, "flower": self._stock_flower}
        return [one for name, folder in self._folders.items() for one in make[name](cores, folder)]

    def close(self) -> None:
        if self._flower is not None:
            self._flower.stop()

    def _nvflare(self, cores: Sequence[int], folder: Path) -> list[Contestant]:
        nvflare = Nvflare(folder, self._work, self._data, self._study)
        name = f"NVFLARE simulator, {nvflare.clients_at_a_time(cores)} clients at a time"
        return [Contestant(name, partial(nvflare.run, cores), nvflare.figures, own_processes=True)]

    def _pfl(self, cores: Sequence[int], folder: Path) -> list[Contestant]:
        pfl = Pfl(folder, self._work, self._data, self._study)
        name = f"pfl, {_plural(len(cores), 'thread')}"
        found = [Contestant(name, partial(pfl.one_process, cores), pfl.figures)]
        if len(cores) > 1:
            run = partial(pfl.process_a_core, cores)
            found.append(Contestant(f"pfl, torchrun, {len(cores)} processes", run, pfl.figures))
        return found

    def _stock_flower(self, cores: Sequence[int], _: None) -> list[Contestant]:
        self._flower = flower = StockFlower(self._work, self._data, self._study)
        runs = {"cold": flower.cold, "SuperLink warm": flower.warm}
        return [
            Contestant(
                f"stock flwr run (Ray), {name}",
                partial(run, cores, 1),
                flower.figures,
                own_processes=True,
            )
            for name, run in runs.items()
        ]


def measure(contestants: list[Contestant], repeats: int) -> None:
    """Run everyone once untimed, then in turns."""
    for one in contestants:
        with MemoryWatch() as watch:
            one.run()
        one.peak_bytes = watch.peak_bytes
        one.last = one.figures()
        note(f"untimed  {one.name}: peak {one.peak_bytes / MIB:.0f} MiB, {one.last}")
    samples = alternate({one.name: one.run for one in contestants}, repeats)
    for one in contestants:
        one.samples = samples[one.name]


def table(contestants: list[Contestant], figures: Sequence[str]) -> str:
    """Return the Markdown table of one number of cores."""
    base = min(one.wall_s for one in contestants if one.is_plain)
    rows = [
        [
            one.name,
            f"{one.wall_s:.2f}",
            spread([sample.wall_s for sample in one.samples], 2),
            f"{one.wall_s / base:.2f}",
            "-" if one.own_processes else f"{median([sample.cpu_s for sample in one.samples]):.2f}",
            f"{one.peak_bytes / MIB:.0f}",
            *(f"{one.last[name]:.3f}" for name in figures),
        ]
        for one in contestants
    ]
    head = ["", "seconds, median", "range", "ratio", "CPU s", "peak MiB", *figures]
    return markdown_table(head, rows)


def _as_json(one: Contestant, base: float) -> dict[str, Any]:
    return {
        "name": one.name,
        "wall_s": [sample.wall_s for sample in one.samples],
        "cpu_s": [sample.cpu_s for sample in one.samples],
        "max_rss_bytes": [sample.max_rss_bytes for sample in one.samples],
        "peak_bytes": one.peak_bytes,
        "ratio": one.wall_s / base,
        "figures": one.last,
    }


def _last_figures(path: Path) -> dict[str, float]:
    return json.loads(path.read_text())[-1]


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_study_options(parser)
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2], help="numbers of cores")
    parser.add_argument("--model", choices=MODELS, default="cnn")
    parser.add_argument(
        "--with", nargs="+", choices=(*RELEASES, "flower"), default=[], dest="guests",
        help="run these beside them (CNN only)",
    )  # fmt: skip
    parser.add_argument(
        "--others", type=Path, help=f"folder with nvflare/ and pfl/ (else {OTHERS_VARIABLE})"
    )
    options = parser.parse_args()
    available = sorted(os.sched_getaffinity(0))
    if max(options.cores) > len(available) or min(options.cores) < 1:
        parser.error(f"--cores: expected 1 to {len(available)}, got {options.cores}")
    if options.guests and options.model != "cnn":
        parser.error("--with: the others run the CNN's study; leave --model out")
    folders = {
        name: folder_of(name, options.others) if name in RELEASES else None
        for name in dict.fromkeys(options.guests)
    }
    clean_up_when_terminated()
    machine, study = describe_machine(), study_of(options)
    sections, groups = [], {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medfed-bench-")))
        data, work = folder / "data", folder / "others"
        data.mkdir()
        work.mkdir()
        first, steps = first_run(study, data, available[: max(options.cores)])
        guests = Guests(folders, work, data, study)
        stack.callback(guests.close)
        for count in sorted(set(options.cores)):
            cores = available[:count]
            contestants = contestants_on(cores, study, data)
            if count == max(options.cores):
                contestants += guests.contestants(cores)
            measure(contestants, options.repeats)
            base = min(one.wall_s for one in contestants if one.is_plain)
            groups[str(count)] = [_as_json(one, base) for one in contestants]
            sections.append(
                f"On {_plural(count, 'core')}:\n\n{table(contestants, FIGURES[study.model])}"
            )
    text = (
        f"{study.model}: {study.num_sites} sites of {study.train_images} training and "
        f"{study.test_images} test images of {study.image_size}x{study.image_size}, "
        f"{_plural(study.rounds, 'round')} of {_plural(steps, 'step')} of {study.batch_size}, "
        f"median of {options.repeats}. Goal: at most {GOAL}. The very first medfed run, which "
        f"prepares the store, took {first.wall_s:.2f} s.\n\n"
    )
    text += "\n\n".join(sections) + f"\n\n{machine_lines(machine)}"
    result = {
        "machine": machine,
        "study": {**vars(study), "batch_size": study.batch_size},
        "steps_a_round": steps,
        "goal": GOAL,
        "first_medfed_run_s": first.wall_s,
        "cores": groups,
    }
    publish(result, text, options.json)


if __name__ == "__main__":
    main()
