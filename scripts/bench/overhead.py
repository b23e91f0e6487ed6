"""What medfed costs: `medfed simulate`, the whole process, over a plain PyTorch script.

    python scripts/bench/overhead.py --repeats 5 --with-flower --json overhead.json

Both do the same optimiser steps on the same images of the same sites and the same evaluations after
every round; medfed also checks, packs messages, writes checkpoints and records, and ends with the
report. Start to exit of each process counts. On one core: medfed with --workers 1 against the
plain loop with one thread. On two: --workers 2 against the plain loop with one and with two
threads; the ratio is to the faster of them. Processes are pinned to the cores and take turns;
before that, everyone runs once untimed, to warm the file cache and have its memory measured (all
its processes together).

--with-flower runs the study through stock `flwr run` beside them, on the largest number of cores.
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

from benchmark_study import BenchmarkStudy, Medfed, add_study_options, first_run, study_of
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
GOAL = 1.15


@dataclass
class Contestant:
    """One row of the table: what is run, and what came of it."""

    name: str
    run: Callable[[], Sample]
    figures: Callable[[], dict[str, float]]
    is_plain: bool = False
    detaches: bool = False
    peak_bytes: int = 0
    samples: list[Sample] = field(default_factory=list)
    last: dict[str, float] = field(default_factory=dict)

    @property
    def wall_s(self) -> float:
        return median([sample.wall_s for sample in self.samples])


def contestants_on(
    cores: Sequence[int], study: BenchmarkStudy, data: Path, flower: StockFlower | None
) -> list[Contestant]:
    """Return who runs on these cores."""
    work = data / f"on{len(cores)}"
    work.mkdir()
    for name in ("study.toml", "images.npz", "cache"):
        (work / name).symlink_to(data / name)
    found = []
    for threads in sorted({1, len(cores)}):
        out = work / f"plain{threads}.json"
        command = [sys.executable, HERE / "plain_loop.py", data, "--out", out]
        command += ["--rounds", study.rounds, "--epochs", study.epochs]
        command += ["--threads", threads, "--image-size", study.image_size]
        found.append(
            Contestant(
                f"plain PyTorch, {_plural(threads, 'thread')}",
                partial(run_process, command, cores=cores),
                partial(_last_figures, out),
                is_plain=True,
            )
        )
    medfed = Medfed(work)
    name = f"medfed simulate --workers {len(cores)}"
    found.append(Contestant(name, partial(medfed.run, cores, len(cores)), medfed.figures))
    if flower is not None:
        cold, warm = partial(flower.cold, cores, 1), partial(flower.warm, cores, 1)
        found.append(Contestant("stock flwr run (Ray), cold", cold, flower.figures, detaches=True))
        found.append(
            Contestant("stock flwr run (Ray), SuperLink warm", warm, flower.figures, detaches=True)
        )
    return found


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


def table(contestants: list[Contestant]) -> str:
    """Return the Markdown table of one number of cores."""
    base = min(one.wall_s for one in contestants if one.is_plain)
    rows = [
        [
            one.name,
            f"{one.wall_s:.2f}",
            spread([sample.wall_s for sample in one.samples], 2),
            f"{one.wall_s / base:.2f}",
            "-" if one.detaches else f"{median([sample.cpu_s for sample in one.samples]):.2f}",
            f"{one.peak_bytes / MIB:.0f}",
            f"{one.last['accuracy']:.3f}",
            f"{one.last['auroc']:.3f}",
        ]
        for one in contestants
    ]
    head = ["", "seconds, median", "range", "ratio", "CPU s", "peak MiB", "accuracy", "AUROC"]
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
    parser.add_argument("--with-flower", action="store_true", help="run stock Flower beside them")
    options = parser.parse_args()
    available = sorted(os.sched_getaffinity(0))
    if max(options.cores) > len(available) or min(options.cores) < 1:
        parser.error(f"--cores: expected 1 to {len(available)}, got {options.cores}")
    clean_up_when_terminated()
    machine, study = describe_machine(), study_of(options)
    sections, groups = [], {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medfed-bench-")))
        data, work = folder / "data", folder / "flower"
        data.mkdir()
        work.mkdir()
        first, steps = first_run(study, data, available[: max(options.cores)])
        flower = None
        if options.with_flower:
            flower = StockFlower(
                work, data, rounds=study.rounds, epochs=study.epochs, image_size=study.image_size
            )
            stack.callback(flower.stop)
        for count in sorted(set(options.cores)):
            guest = flower if count == max(options.cores) else None
            contestants = contestants_on(available[:count], study, data, guest)
            measure(contestants, options.repeats)
            base = min(one.wall_s for one in contestants if one.is_plain)
            groups[str(count)] = [_as_json(one, base) for one in contestants]
            sections.append(f"On {_plural(count, 'core')}:\n\n{table(contestants)}")
    text = (
        f"{study.num_sites} sites of {study.train_images} training and {study.test_images} test "
        f"images of {study.image_size}x{study.image_size}, {_plural(study.rounds, 'round')} of "
        f"{_plural(steps, 'step')}, median of {options.repeats}. Goal: at most {GOAL}. The very "
        f"first medfed run, which prepares the store, took {first.wall_s:.2f} s.\n\n"
    )
    text += "\n\n".join(sections) + f"\n\n{machine_lines(machine)}"
    result = {
        "machine": machine,
        "study": vars(study),
        "steps_a_round": steps,
        "goal": GOAL,
        "first_medfed_run_s": first.wall_s,
        "cores": groups,
    }
    publish(result, text, options.json)


if __name__ == "__main__":
    main()
