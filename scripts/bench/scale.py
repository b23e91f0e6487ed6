"""What many sites cost: the same hundred sites a round, out of more and more that joined.

    python scripts/bench/scale.py --sites 200 1000 10000 --json scale.json

`medfed simulate --workers 1`, the whole process. In every round `--participants` sites train and as
many evaluate, out of all; after the last round all evaluate. A site has 15 training and 10 test
images of 28x28. Goal: a round costs what its participants cost, and memory does not grow with the
sites that joined.
"""

import argparse
import json
import os
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from benchmark_study import FIGURES, Medfed
from measuring import (
    MIB,
    clean_up_when_terminated,
    describe_machine,
    machine_lines,
    markdown_table,
    median,
    note,
    publish,
)

_TRAIN, _TEST = 15, 10
_TOML = """\
[study]
name = "scale"
seed = 1

[task]
classes = ["normal", "pneumonia"]

[data]
image_size = 28

[training]
rounds = {rounds}
local_steps = 4
batch_size = 4

[federation]
fraction = {fraction}

[evaluation]
fraction = {fraction}

[privacy]
unit = "none"

[simulation]
dataset = "medmnist"
name = "pneumoniamnist"
arms = ["federated"]
resamples = 0

[simulation.partition]
method = "iid"
num_sites = {sites}
min_patients = 4
"""


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        round_s: Median of the rounds before the last.
        joining_s: From the arm's start to the start of its first round.
        last_s: The last round, in which all sites evaluate.
        whole_s: The process.
        peak_bytes: Its largest resident set.
    """

    sites: int
    round_s: float
    joining_s: float
    last_s: float
    whole_s: float
    peak_bytes: int


def measure(folder: Path, sites: int, participants: int, rounds: int) -> Measured:
    """Run the study with so many sites."""
    folder.mkdir()
    _write_images(folder / "images.npz", sites)
    fraction = participants / sites
    (folder / "study.toml").write_text(_TOML.format(rounds=rounds, fraction=fraction, sites=sites))
    medfed = Medfed(folder, FIGURES["cnn"])
    sample = medfed.run(sorted(os.sched_getaffinity(0))[:1], 1)
    arm = medfed.last_run / "arms" / "federated"
    records = [json.loads(line) for line in (arm / "rounds.jsonl").read_text().splitlines()]
    started = json.loads((arm / "events.jsonl").read_text().splitlines()[0])["time"]
    return Measured(
        sites=sites,
        round_s=median([record["seconds"] for record in records[:-1]]),
        joining_s=(_time(records[0]["started"]) - _time(started)).total_seconds(),
        last_s=records[-1]["seconds"],
        whole_s=sample.wall_s,
        peak_bytes=sample.max_rss_bytes,
    )


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _write_images(path: Path, sites: int) -> None:
    """A MedMNIST file: noise, and in class 1 a brighter lower half."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", sites * _TRAIN), ("val", 0), ("test", sites * _TEST)):
        labels = np.arange(count) % 2
        images = rng.integers(80, 140, (count, 28, 28), dtype=np.uint8)
        images[labels == 1, 14:] += 60
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = images, labels[:, None]
    np.savez(path, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sites", type=int, nargs="+", default=[200, 1000, 10000])
    parser.add_argument("--participants", type=int, default=100, help="sites a round")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--json", type=Path, help="write everything to this file")
    options = parser.parse_args()
    if min(options.sites) < options.participants or options.rounds < 2:
        parser.error("expected at least --participants sites, and two rounds")
    clean_up_when_terminated()
    found = []
    with tempfile.TemporaryDirectory(prefix="medfed-bench-") as folder:
        for sites in options.sites:
            own = Path(folder) / str(sites)
            found.append(measure(own, sites, options.participants, options.rounds))
            note(f"{sites} sites: {found[-1]}")
    first = found[0]
    rows = [
        [
            f"{one.sites}",
            f"{one.round_s:.2f}",
            f"{one.round_s / first.round_s:.2f}",
            f"{1000 * one.joining_s / one.sites:.1f}",
            f"{1000 * one.last_s / one.sites:.1f}",
            f"{one.whole_s:.0f}",
            f"{one.peak_bytes / MIB:.0f}",
            f"{one.peak_bytes / first.peak_bytes:.2f}",
        ]
        for one in found
    ]
    head = [
        *("sites", "a round, s", "ratio", "joining, ms a site", "last round, ms a site"),
        *("whole process, s", "peak MiB", "ratio"),
    ]
    machine = describe_machine()
    text = f"{options.participants} of the sites train and evaluate in each round.\n\n"
    text += f"{markdown_table(head, rows)}\n\n{machine_lines(machine)}"
    publish({"machine": machine, "runs": [vars(one) for one in found]}, text, options.json)


if __name__ == "__main__":
    main()
