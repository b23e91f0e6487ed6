"""Beam search against greedy writing: words a second, BLEU and findings, on a trained run.

    python scripts/bench/beam_search.py runs/results/phantom_reports-1 --beams 1 3 5

Takes the run's federated model and its sites' held-out images; one thread. The beams take turns.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import describe_machine, machine_lines, markdown_table, median, publish

from medfed.client.batches import BatchLoader
from medfed.client.data.site_data import load_site_data
from medfed.client.site import load_site
from medfed.common.metrics import add_sums
from medfed.common.tasks import Batch, Report, make_task
from medfed.server.words import read_vocabulary
from medfed.simulations.explaining.load import load_trained

_AT_ONCE = 32


def load_batches(run: Path, task: Report) -> list[Batch]:
    """Return the held-out images of all sites, `_AT_ONCE` a batch."""
    study = load_trained(run).study
    batches = []
    for path in sorted((run / "arms" / "federated" / "sites").glob("*/site.toml")):
        held_out = load_site_data(load_site(path), study).test
        loader = BatchLoader(held_out, task, study, torch.device("cpu"))
        for start in range(0, len(held_out), _AT_ONCE):
            chosen = np.arange(start, min(start + _AT_ONCE, len(held_out)))
            batches.append(loader.evaluation_batch(chosen))
    return batches


def main() -> None:
    """Write all held-out reports with each beam, in turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--beams", nargs="*", type=int, default=[1, 3, 5])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = describe_machine()
    trained = load_trained(options.run)
    words = read_vocabulary(options.run / "arms" / "federated" / "vocabulary.json")
    tasks = {beam: _task(trained.study, beam, words) for beam in options.beams}
    batches = load_batches(options.run, tasks[options.beams[0]])
    samples: dict[int, list[float]] = {beam: [] for beam in options.beams}
    figures: dict[int, dict[str, Any]] = {}
    with torch.inference_mode():
        for _ in range(options.repeats):
            for beam, task in tasks.items():
                started = time.perf_counter()
                written = [task.write(trained.model, batch.inputs[0]) for batch in batches]
                seconds = time.perf_counter() - started
                number = sum(len(report.tokens) for part in written for report in part)
                samples[beam].append(number / seconds)
        for beam, task in tasks.items():
            sums = add_sums(task.evaluate(trained.model, batch) for batch in batches)
            figures[beam] = task.metrics(sums)
    rows = [_row(beam, samples, figures, options.beams[0]) for beam in options.beams]
    head = ("beam", "words a second", "ratio", "BLEU-4", "ROUGE-L", "finding F1")
    text = f"{markdown_table(head, rows)}\n\n{machine_lines(machine)}"
    result = {"machine": machine, "words_a_second": samples, "figures": figures}
    publish(result, text, options.json)


def _task(study: Any, beam: int, words: tuple[str, ...]) -> Report:
    report = study.task.report.model_copy(update={"beam_size": beam})
    section = study.task.model_copy(update={"report": report})
    task = make_task(study.model_copy(update={"task": section}), words)
    assert isinstance(task, Report)
    return task


def _row(
    beam: int,
    samples: dict[int, list[float]],
    figures: dict[int, dict[str, Any]],
    first: int,
) -> tuple[str, ...]:
    speed = median(samples[beam])
    found = figures[beam]
    return (
        "greedy" if beam == 1 else str(beam),
        f"{speed:.0f}",
        f"{speed / median(samples[first]):.2f}",
        *(f"{found[key]:.3f}" for key in ("bleu4", "rouge_l", "finding_f1")),
    )


if __name__ == "__main__":
    main()
