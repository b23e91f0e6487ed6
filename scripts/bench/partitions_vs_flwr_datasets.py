"""Partitions of medfed beside those of flwr-datasets: are they as skewed, over 50 seeds?

    python -m venv flwrds && flwrds/bin/pip install flwr-datasets==0.6.1
    python scripts/bench/partitions_vs_flwr_datasets.py --python flwrds/bin/python

flwr-datasets divides rows, medfed patients; here each patient has one image, so that both divide
the same. Without --python, medfed's half of the table.

Shapes: S sites, L classes.
"""

import argparse
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from medfed.common.errors import DataError
from medfed.common.study import PartitionSection
from medfed.simulations.partition import Cohort, partition_patients

SEEDS = 50
NUM_SITES = 6
MIN_PATIENTS = 8
# One in five of HAM10000's images by class: a long tail, as data sets of medicine have.
COUNTS = (65, 103, 220, 23, 223, 1341, 28)
POWER = np.arange(1, NUM_SITES + 1) ** -1.0

Sites = list[list[int]]


@dataclass(frozen=True)
class Case:
    """One way to divide, in both libraries. An empty class: flwr-datasets has none."""

    name: str
    section: dict[str, object] | None
    theirs: str = ""
    options: dict[str, object] | None = None
    seeded: bool = True


def cases(total: int) -> list[Case]:
    sizes = np.floor(total * POWER / POWER.sum()).astype(int)
    sizes[0] += total - sizes.sum()
    by_label: dict[str, object] = {"num_partitions": NUM_SITES, "partition_by": "label"}
    number: dict[str, object] = {"num_partitions": NUM_SITES}
    dirichlet = [
        Case(
            f"dirichlet, alpha {alpha:g}",
            {"method": "dirichlet", "alpha": alpha},
            "DirichletPartitioner",
            {**by_label, "alpha": alpha, "min_partition_size": MIN_PATIENTS},
        )
        for alpha in (0.1, 0.5, 1.0, 5.0)
    ]
    plain = [int(size) for size in sizes]
    return [
        Case("iid", {"method": "iid"}, "IidPartitioner", number, seeded=False),
        *dirichlet,
        Case(
            "dirichlet, alpha 0.5, power sizes",
            {"method": "dirichlet", "alpha": 0.5, "sizes": "power"},
            "InnerDirichletPartitioner",
            {"partition_sizes": plain, "partition_by": "label", "alpha": 0.5},
        ),
        Case(
            "pathological, 2 classes",
            {"method": "pathological", "classes_per_site": 2},
            "PathologicalPartitioner",
            {**by_label, "num_classes_per_partition": 2},
        ),
        Case(
            "power sizes",
            {"method": "quantity", "sizes": "power"},
            "SizePartitioner",
            {"partition_sizes": plain},
            seeded=False,
        ),
        Case("log-normal sizes", {"method": "quantity", "sigma": 1.0}),
        Case("linear sizes", None, "LinearPartitioner", number, seeded=False),
        Case("square sizes", None, "SquarePartitioner", number, seeded=False),
        Case("exponential sizes", None, "ExponentialPartitioner", number, seeded=False),
        Case(
            "natural column",
            {"method": "natural", "column": "label"},
            "NaturalIdPartitioner",
            {"partition_by": "label"},
            seeded=False,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", type=Path, help="python of a venv with flwr-datasets")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    arguments = parser.parse_args()
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(COUNTS)), COUNTS))
    asked = cases(len(labels))
    theirs = _theirs(arguments.python, asked, labels, arguments.seeds) if arguments.python else {}
    columns = ("partition", "library", "label distance", "size spread", "smallest", "classes")
    print(f"| {' | '.join((*columns, 'placed', 'refused'))} |")
    print(8 * "|---" + "|")
    for case in asked:
        if case.section is not None:
            ours = [_ours(case.section, labels, seed) for seed in range(arguments.seeds)]
            print(_row(case.name, "medfed", ours, labels))
        if case.name in theirs:
            print(_row(case.name, case.theirs, theirs[case.name], labels))


def _ours(section: dict[str, object], labels: np.ndarray, seed: int) -> Sites | None:
    cohort = Cohort(
        patients=tuple(f"{index:06d}" for index in range(len(labels))),
        labels=labels,
        num_images=np.ones(len(labels), dtype=np.int64),
        columns={"label": tuple(f"class-{label}" for label in labels)},
    )
    table = {"num_sites": NUM_SITES, "min_patients": MIN_PATIENTS, **section}
    try:
        partition = partition_patients(cohort, PartitionSection.model_validate(table), seed=seed)
    except DataError:
        return None
    return [list(members) for members in partition.sites.values()]


def _theirs(
    python: Path, asked: list[Case], labels: np.ndarray, seeds: int
) -> dict[str, list[Sites | None]]:
    request = {
        "labels": labels.tolist(),
        "seeds": seeds,
        "cases": [
            {"name": c.name, "class": c.theirs, "options": c.options, "seeded": c.seeded}
            for c in asked
            if c.theirs
        ],
    }
    script = Path(__file__).with_name("flwr_datasets_partitions.py")
    done = subprocess.run(
        [python, script], input=json.dumps(request), capture_output=True, text=True, check=True
    )
    answer: dict[str, list[Sites | str]] = json.loads(done.stdout)
    return {
        name: [None if isinstance(sites, str) else sites for sites in by_seed]
        for name, by_seed in answer.items()
    }


def _row(name: str, library: str, by_seed: Sequence[Sites | None], labels: np.ndarray) -> str:
    done = [sites for sites in by_seed if sites is not None]
    figures = np.array([_figures(sites, labels) for sites in done]).reshape(len(done), 5)
    cells = []
    for column, digits in zip(figures.T, (3, 3, 1, 2, 3), strict=True):
        error = column.std(ddof=1) / np.sqrt(len(column)) if len(column) > 1 else 0.0
        cells.append(f"{column.mean():.{digits}f} ± {error:.{digits}f}" if len(column) else "")
    return f"| {name} | {library} | {' | '.join(cells)} | {len(by_seed) - len(done)} |"


def _figures(sites: Sites, labels: np.ndarray) -> list[float]:
    """Mean distance of two sites' label shares, spread of sizes, smallest, classes, share placed.

    The distance is total variation, 0 to 1; the spread is standard deviation over mean.
    """
    counts_SL = np.array([np.bincount(labels[site], minlength=len(COUNTS)) for site in sites])
    sizes_S = counts_SL.sum(axis=1)
    shares_SL = counts_SL / np.maximum(sizes_S, 1)[:, None]
    distances = [np.abs(a - b).sum() / 2 for a, b in combinations(shares_SL, 2)]
    return [
        float(np.mean(distances)),
        float(sizes_S.std() / sizes_S.mean()),
        float(sizes_S.min()),
        float((counts_SL > 0).sum(axis=1).mean()),
        float(sizes_S.sum() / len(labels)),
    ]


if __name__ == "__main__":
    main()
