"""What the ledger costs a round: deciding and writing the entry, at 10, 1,000 and 10,000 entries.

    python scripts/bench/ledger.py --repeats 15 --json ledger.json

Every figure is milliseconds, the median of the repeats, writing through to the disk included:

  ledger     open, verify (by the seal), add up, is this release there already, append, seal anew
  charge     the gate's whole decision (client.spending.charge): the same with epsilon after it
  keep       keep the coordinator's signature of the round before
  unsealed   open without a seal: every line is verified, as after a restore from a backup

Warm is a process that has charged before. Cold is a new process for each figure, as Flower starts
one for each message: its imports are not counted (they are torch's and Flower's), its first epsilon
is. The entries are spread over several settings (noise, rate), as several studies leave them:
epsilon is composed over all of them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from measuring import (
    clean_up_when_terminated,
    describe_machine,
    machine_lines,
    markdown_table,
    median,
    note,
    publish,
)

from medfed.client.site import SiteConfig
from medfed.client.spending import charge
from medfed.common.ledger import Ledger, ServerKey, Spend

GOAL_MS = 50.0
SIZES = (10, 1_000, 10_000)
SPEND = Spend(
    release="r" * 64,
    study="5" * 64,
    run="bench-20261123-220000",
    round_number=1,
    unit="patient",
    images_per_patient=4,
    noise_multiplier=2.0,
    sample_rate=0.01,
    steps=3,
    max_grad_norm=1.0,
    noise="secure",
)


def setting(number: int, settings: int) -> Spend:
    """The spend of the `number`-th entry: alike settings stand together, as runs leave them."""
    kind = number % settings
    return replace(
        SPEND,
        release=f"{number:064x}",
        round_number=number + 1,
        noise_multiplier=2.0 + 0.1 * kind,
        sample_rate=0.01 + 0.001 * kind,
    )


def make_site(folder: Path) -> SiteConfig:
    policy = {"max_epsilon": 1e6, "target_delta": 1e-5}
    table = {"name": "bench", "data": {"stores": ["store"]}, "policy": policy, "folder": folder}
    return SiteConfig.model_validate(table)


def build(folder: Path, size: int, settings: int) -> None:
    with Ledger(folder / "state").locked() as ledger:
        for number in range(size):
            ledger.append(setting(number, settings))


def spend_once(folder: Path, spend: Spend) -> None:
    """What the gate does but for epsilon."""
    with Ledger(folder / "state").locked() as ledger:
        ledger.has(spend)
        ledger.summary.plus(spend)
        ledger.append(spend)


def milliseconds(what: Callable[[], Any]) -> float:
    started = time.perf_counter()
    what()
    return 1e3 * (time.perf_counter() - started)


def measure_here(
    folder: Path, repeats: int, settings: int, *, first: int
) -> dict[str, list[float]]:
    """Measure in this process; the first repeat is what a cold process would pay."""
    site = make_site(folder)
    key = ServerKey.load_or_make(folder / "server.key")
    taken: dict[str, list[float]] = {"ledger": [], "charge": [], "keep": []}
    for repeat in range(repeats):
        spend = setting(first + 2 * repeat, settings)
        taken["ledger"].append(milliseconds(partial(spend_once, folder, spend)))
        spend = setting(first + 2 * repeat + 1, settings)
        taken["charge"].append(milliseconds(partial(charge, site, spend)))
        with Ledger(site.state_folder).locked() as ledger:
            head = ledger.head
        signed = key.sign(run=spend.run, site="bench", round_number=spend.round_number, head=head)
        keep = partial(Ledger(site.state_folder).keep_countersignature, signed)
        taken["keep"].append(milliseconds(keep))
    return taken


def measure_cold(folder: Path, repeats: int, settings: int, first: int) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {}
    for repeat in range(repeats):
        command = [sys.executable, __file__, "--child", str(folder), str(first + 2 * repeat)]
        command += ["--settings", str(settings)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        for name, values in json.loads(answer.stdout).items():
            taken.setdefault(name, []).extend(values)
    return taken


def measure(size: int, repeats: int, settings: int) -> dict[str, dict[str, list[float]]]:
    with tempfile.TemporaryDirectory(prefix="medfed-bench-") as name:
        folder = Path(name)
        build(folder, size, settings)
        warm = measure_here(folder, repeats + 1, settings, first=size)
        cold = measure_cold(folder, max(3, repeats // 3), settings, size + 4 * repeats)

        def unsealed() -> None:
            with Ledger(folder / "state").locked():
                pass

        (folder / "state" / "ledger.seal").unlink()
        once = {"unsealed": [milliseconds(unsealed)]}
        note(f"{size} entries, {settings} setting(s): done")
        return {"warm": {k: v[1:] for k, v in warm.items()}, "cold": cold, "once": once}


def rows_of(result: dict[int, dict[str, dict[str, list[float]]]]) -> str:
    head = ["entries", "ledger, warm", "ledger, cold", "charge, warm", "charge, cold", "keep, warm"]
    rows = [
        [
            f"{size:,}",
            *(
                f"{median(taken[when][name]):.1f}"
                for name, when in (
                    ("ledger", "warm"),
                    ("ledger", "cold"),
                    ("charge", "warm"),
                    ("charge", "cold"),
                    ("keep", "warm"),
                )
            ),
            f"{taken['once']['unsealed'][0]:.0f}",
        ]
        for size, taken in result.items()
    ]
    return markdown_table([*head, "unsealed"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15, help="measurements of each figure")
    parser.add_argument("--settings", type=int, default=4, help="different noise and rate")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        folder, first = options.child
        print(json.dumps(measure_here(Path(folder), 1, options.settings, first=int(first))))
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    clean_up_when_terminated()
    machine = describe_machine()
    result = {size: measure(size, options.repeats, options.settings) for size in SIZES}
    text = (
        f"{options.settings} settings, median of {options.repeats} (warm) and "
        f"{max(3, options.repeats // 3)} processes (cold), ms. Goal: charge below "
        f"{GOAL_MS:g} ms at 10,000 entries.\n\n{rows_of(result)}\n\n{machine_lines(machine)}"
    )
    publish({"machine": machine, "settings": options.settings, "ms": result}, text, options.json)


if __name__ == "__main__":
    main()
