"""How long the gate takes to state an epsilon while a ledger grows, round by round.

    .venv/bin/python scripts/bench/accounting.py [--rounds 200]

Processor time of one thread. "first" holds what a fresh process pays once for a kind of training;
the other columns are over the rounds after it. The last case composes 10,000 single events in each
round, as though the ledger kept no summary.
"""

import argparse
import json
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

from medfed.common.accounting import GaussianEvent, epsilon

DELTA = 1e-5
KINDS = 20
CASES: dict[str, tuple[GaussianEvent, list[GaussianEvent]]] = {
    "noise 1, rate 1/32": (GaussianEvent(1.0, 1 / 32, 5), []),
    "noise 0.7, rate 0.005": (GaussianEvent(0.7, 0.005, 20), []),
    "noise 0.7, rate 0.00064 (100,000 patients)": (GaussianEvent(0.7, 0.00064, 100), []),
    "noise 20, rate 0.01": (GaussianEvent(20.0, 0.01, 500), []),
    "noise 8, nothing drawn": (GaussianEvent(8.0, 1.0, 1), []),
    "discrete Gaussian, noise 8": (GaussianEvent(8.0, 1.0, 1, mechanism="discrete_gaussian"), []),
    f"noise 1, rate 1/32, beside {KINDS} earlier kinds": (
        GaussianEvent(1.0, 1 / 32, 5),
        [GaussianEvent(2.0 + 0.1 * kind, 0.02, 50) for kind in range(KINDS)],
    ),
    "the same as 10,000 entries": (
        GaussianEvent(1.0, 1 / 32, 5),
        [GaussianEvent(2.0 + 0.1 * (entry % KINDS), 0.02, 1) for entry in range(10_000)],
    ),
}


def measure(one_round: GaussianEvent, earlier: list[GaussianEvent], rounds: int) -> list[float]:
    """Return the processor seconds of each decision."""
    held = list(earlier)
    seconds = []
    for _ in range(rounds):
        held.append(one_round)
        start = time.process_time()
        epsilon(held, DELTA)
        seconds.append(time.process_time() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    epsilon([GaussianEvent(3.0, 0.5, 1)], DELTA)  # imports
    for name, (one_round, earlier) in CASES.items():
        first, *rest = measure(one_round, earlier, rounds)
        rest.sort()
        figures = {
            "case": name,
            "first_ms": round(1e3 * first, 1),
            "median_ms": round(1e3 * rest[len(rest) // 2], 1),
            "p95_ms": round(1e3 * rest[int(0.95 * len(rest))], 1),
            "max_ms": round(1e3 * rest[-1], 1),
        }
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
