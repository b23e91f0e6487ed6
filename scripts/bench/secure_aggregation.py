"""What secure aggregation costs a site and the server, against plain updates and the exact mean.

    python scripts/bench/secure_aggregation.py --sites 8 32 --json secure_aggregation.json

One process, one thread; the model is float32 arrays of 10 million values. Every site of a round
does all of its part, the sum is compared with that of the encoded updates bit for bit, and the mean
with the plain one. Messages are packed and unpacked as they travel (common/messages.py), so bytes
are those of the records; times are CPU seconds, a site's median and the server's whole round.

  plain         pack the update; server: unpack, fold into the exact mean
  masked        four steps of secure aggregation, nobody drops out
  masked, lost  the same, and a quarter of the sites leave after they shared their secrets, in whose
                place the server removes masks
  noisy         as masked, with clipping and discrete Gaussian noise at each site (AES-256-CTR)
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from measuring import (
    describe_machine,
    machine_lines,
    markdown_table,
    median,
    note,
    publish,
)

from medfed.client import secure as site_side
from medfed.common import messages
from medfed.common.secure_sum import RoundContext, threshold_of
from medfed.common.secure_sum.discrete_gaussian import secure_words
from medfed.common.secure_sum.masking import Vector
from medfed.common.secure_sum.noisy_grid import NoisyGrid
from medfed.common.secure_sum.quantise import Grid
from medfed.common.state_dicts import StateDict
from medfed.server.aggregation.exact import WeightedMean
from medfed.server.secure import SecureRound

MB = 1e6
MAX_VALUE = 4.0
_Result = TypeVar("_Result")


@dataclass
class Cost:
    """What one way of aggregating took: seconds by site, seconds and bytes in all."""

    site_s: dict[str, float] = field(default_factory=dict)
    server_s: float = 0.0
    up_bytes: dict[str, int] = field(default_factory=dict)
    down_bytes: dict[str, int] = field(default_factory=dict)

    def at_site(self, site: str, work: Callable[[], _Result]) -> _Result:
        """Do `work` on the site's clock."""
        started = time.thread_time()
        result = work()
        self.site_s[site] = self.site_s.get(site, 0.0) + time.thread_time() - started
        return result

    @contextmanager
    def at_server(self) -> Any:
        """Run the block on the server's clock."""
        started = time.thread_time()
        yield
        self.server_s += time.thread_time() - started

    def up(self, site: str, num_bytes: int) -> None:
        """Note what a site sent."""
        self.up_bytes[site] = self.up_bytes.get(site, 0) + num_bytes

    def down(self, site: str, num_bytes: int) -> None:
        """Note what a site was sent beyond the model, which is the same for all ways."""
        self.down_bytes[site] = self.down_bytes.get(site, 0) + num_bytes


def update_of(site: int, num_values: int) -> StateDict:
    """Return an update of a few large arrays and one small one."""
    rng = np.random.default_rng(site)
    sizes = [num_values // 2, num_values // 4, num_values - num_values // 2 - num_values // 4 - 64]
    arrays = {f"layer{i}": rng.standard_normal(n, np.float32) for i, n in enumerate([*sizes, 64])}
    return {name: array * np.float32(0.01) for name, array in arrays.items()}


def plain(names: list[str], num_values: int) -> tuple[Cost, StateDict]:
    """Send updates as they are; return the cost and the mean."""
    cost, mean = Cost(), None
    for index, name in enumerate(names):
        update = update_of(index, num_values)
        record = cost.at_site(name, lambda update=update: messages.pack_arrays(update))
        cost.up(name, record.count_bytes())
        with cost.at_server():
            received = messages.unpack_arrays(record)
            mean = mean or WeightedMean(received)
            mean.add(received, 1)
    assert mean is not None
    with cost.at_server():
        result = mean.result()
    return cost, result


def masked(
    names: list[str], num_values: int, encode: Callable[[StateDict], Vector], num_lost: int
) -> tuple[Cost, Vector, Vector]:
    """Run a round in which the last `num_lost` sites leave after they shared their secrets.

    Returns the cost, the sum that the server got, and the sum of what the sites encoded.
    """
    cost = Cost()
    context = RoundContext(
        study="benchmark",
        run="benchmark",
        round_number=1,
        num_participants=len(names),
        threshold=threshold_of(2 / 3, len(names)),
    )
    with cost.at_server():
        server = SecureRound(context, names, num_values)
    states = _agree(cost, server, context, names)
    expected = np.zeros(num_values, dtype=np.uint32)
    for index, name in enumerate(names[: len(names) - num_lost]):
        update = update_of(index, num_values)
        with cost.at_server():
            parcels = server.parcels(name)
        cost.down(name, len(parcels))
        vector = cost.at_site(name, lambda update=update: encode(update))
        expected += vector

        def work(name: str = name, parcels: bytes = parcels, vector: Vector = vector) -> Any:
            states[name] = site_side.mask(site_side.receive_shares(states[name], parcels), vector)
            return messages.pack_arrays({"masked": vector})

        record = cost.at_site(name, work)
        cost.up(name, record.count_bytes())
        with cost.at_server():
            server.on_masked(name, messages.unpack_arrays(record)["masked"])
    with cost.at_server():
        survivors = server.survivors()
    for name in sorted(server.summed):
        cost.down(name, len(survivors))
        state = states[name]
        _, answer = cost.at_site(name, lambda state=state: site_side.reveal(state, survivors))
        cost.up(name, len(answer))
        with cost.at_server():
            server.on_reveal(name, answer)
    with cost.at_server():
        total = server.result()
    return cost, total, expected


def _agree(
    cost: Cost, server: SecureRound, context: RoundContext, names: list[str]
) -> dict[str, site_side.SiteState]:
    """The two steps before training."""
    states: dict[str, site_side.SiteState] = {}
    for name in names:
        states[name], answer = cost.at_site(
            name, lambda name=name: site_side.offer_keys(context, name)
        )
        cost.up(name, len(answer))
        with cost.at_server():
            server.on_keys(name, answer)
    with cost.at_server():
        roster = server.roster()
    for name in names:
        cost.down(name, len(roster))
        state = states[name]
        states[name], answer = cost.at_site(
            name, lambda state=state: site_side.share_secrets(state, roster)
        )
        cost.up(name, len(answer))
        with cost.at_server():
            server.on_shares(name, answer)
    with cost.at_server():
        server.sharers()
    return states


def measure(num_sites: int, num_values: int) -> dict[str, Cost]:
    """Run every way once with the same updates, and check the results."""
    names = [f"site-{index:02d}" for index in range(num_sites)]
    costs: dict[str, Cost] = {}
    costs["plain"], mean = plain(names, num_values)
    note(f"{num_sites} sites, plain: {costs['plain'].server_s:.1f} s at the server")
    grid = Grid(max_value=MAX_VALUE, total_weight=num_sites, num_sites=num_sites)
    for way, num_lost in (("masked", 0), ("masked, lost", num_sites // 4)):
        costs[way], total, expected = masked(
            names, num_values, lambda update: grid.encode(update, 1)[0], num_lost
        )
        _must_agree(total, expected)
        note(f"{num_sites} sites, {way}: {costs[way].server_s:.1f} s at the server")
        if not num_lost:
            secure = grid.decode(total, num_sites, mean)
            worst = max(float(np.max(np.abs(secure[n] - mean[n]))) for n in mean)
            if worst > num_sites * MAX_VALUE * 2.0**-31 + 1e-8:
                raise SystemExit(f"The masked mean is {worst:g} from the plain one.")
            note(f"largest difference of the masked mean from the plain one: {worst:.2g}")
    noisy = NoisyGrid(
        max_update_norm=1.0,
        noise_multiplier=1.0,
        num_sites=num_sites,
        threshold=threshold_of(2 / 3, num_sites),
        honest_sites=2 / 3,
        num_values=num_values,
    )
    costs["noisy"], total, expected = masked(
        names, num_values, lambda update: noisy.encode(update, secure_words()), 0
    )
    _must_agree(total, expected)
    return costs


def _must_agree(total: Vector, expected: Vector) -> None:
    if not np.array_equal(total, expected):
        raise SystemExit("The unmasked sum is not the sum of the sites' vectors.")


def rows_of(num_sites: int, costs: Mapping[str, Cost]) -> list[list[str]]:
    """Return the table's rows for one number of sites."""
    base = costs["plain"]
    base_up = median(list(base.up_bytes.values()))
    rows = []
    for way, cost in costs.items():
        site_s = median(list(cost.site_s.values()))
        # A site that left sent no update: the median is over all, the table is about those that
        # stayed, who are most.
        up = median(list(cost.up_bytes.values()))
        down = median(list(cost.down_bytes.values())) if cost.down_bytes else 0
        rows.append(
            [
                f"{num_sites} sites, {way}",
                f"{up / MB:.3f}",
                f"{up / base_up:.4f}",
                f"{down / MB:.3f}",
                f"{site_s:.2f}",
                f"{cost.server_s:.2f}",
                f"{cost.server_s / base.server_s:.2f}",
            ]
        )
    return rows


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--values", type=int, default=10_000_000)
    parser.add_argument("--json", type=Path, help="write the samples here")
    options = parser.parse_args()
    machine = describe_machine()
    measured = {num: measure(num, options.values) for num in options.sites}
    head = ["", "up MB", "x plain", "down MB*", "site s", "server s", "x plain"]
    table = markdown_table(head, [row for n, c in measured.items() for row in rows_of(n, c)])
    text = (
        f"{options.values:,} parameters, one thread, CPU seconds. Site: median of all sites.\n\n"
        f"{table}\n\n* beyond the model itself\n\n{machine_lines(machine)}"
    )
    result = {
        "machine": machine,
        "values": options.values,
        "costs": {
            str(n): {way: json.loads(json.dumps(vars(c))) for way, c in costs.items()}
            for n, costs in measured.items()
        },
    }
    publish(result, text, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
