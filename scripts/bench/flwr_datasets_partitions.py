"""Partitions by flwr-datasets, for `partitions_vs_flwr_datasets.py`: runs in a venv that has it.

Imports no medfed. Reads {"labels": [...], "seeds": n, "cases": [{"name", "class", "options",
"seeded"}]} from standard input; writes, for each case by name, one entry a seed: the row indices of
every partition, or the error's text where it refused.
"""

import json
import sys
import warnings

import datasets
import numpy as np
from flwr_datasets import partitioner


def main() -> None:
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    asked = json.load(sys.stdin)
    labels = np.array(asked["labels"])
    found = {}
    for case in asked["cases"]:
        found[case["name"]] = [divide(labels, case, seed) for seed in range(asked["seeds"])]
    json.dump(found, sys.stdout)


def divide(labels: np.ndarray, case: dict, seed: int) -> list[list[int]] | str:
    """Row indices by partition. Rows are shuffled first: some partitioners cut them as they lie."""
    order = np.random.default_rng(seed).permutation(len(labels))
    table = {"row": order.tolist(), "label": labels[order].tolist()}
    options = dict(case["options"]) | ({"seed": seed} if case["seeded"] else {})
    try:
        one = getattr(partitioner, case["class"])(**options)
        one.dataset = datasets.Dataset.from_dict(table)
        return [list(one.load_partition(i)["row"]) for i in range(one.num_partitions)]
    except ValueError as error:
        return str(error)


if __name__ == "__main__":
    main()
