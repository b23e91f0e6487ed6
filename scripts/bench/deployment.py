"""What a real deployment costs a round, and what it needs of the server.

    python scripts/bench/deployment.py --part overhead     # 4 real sites against LocalGrid
    python scripts/bench/deployment.py --part memory       # the server at 4, 16 and 64 sites
    python scripts/bench/deployment.py --part joining      # from `site init` to the first round

overhead: the same study of 4 phantom sites, once on LocalGrid with as many workers as cores, once
over TLS with SuperNodes, all on this machine; seconds a round are the median of all but the first,
which loads data on both. Training is short, so that what is left is the deployment's own cost.
Bytes a round are those that sites were sent and sent, over the model's own size.

memory: sites that only answer (`tests/integration/fake_site.py`), each with 25 MB of its own. What
counts is the largest resident set of the SuperLink and of the ServerApp.
"""

import argparse
import json
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "integration"))

from deployment import deployment
from fake_site import FakeSite
from flwr.app import Message
from measuring import describe_machine, machine_lines, markdown_table, note, publish

from medfed.client.agent.keys import load_or_make_node_key
from medfed.common import messages
from medfed.common.messages import EvaluateReply, JoinReply, TrainReply
from medfed.common.study_file import load_study
from medfed.simulations.study import Options, prepare_run, run_study, start_study

MB = 1_000_000
# The small CNN's dense layer makes its size: about 64 * (side / 4)^2 * 128 numbers.
SIDES = {"1 MB": 32, "100 MB": 228}

_STUDY = """
[study]
name = "bench"
seed = 2
[task]
classes = ["normal", "nodule", "effusion", "cardiomegaly"]
[data]
image_size = {side}
[training]
rounds = {rounds}
local_steps = 1
batch_size = 4
[federation]
min_sites = 2
round_timeout_s = 1200
[privacy]
unit = "none"
[evaluation]
batch_size = 8
[simulation]
dataset = "phantom"
arms = ["federated"]
[simulation.phantom]
num_patients = 60
num_scanners = 4
[simulation.partition]
method = "natural"
column = "scanner"
"""


def main() -> None:
    """Run the parts asked for and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=("overhead", "memory", "joining"), action="append")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--sites", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    parts = options.part or ["overhead", "memory", "joining"]
    machine = describe_machine()
    result: dict[str, Any] = {"machine": machine}
    texts = [machine_lines(machine)]
    if "overhead" in parts:
        result["overhead"] = [overhead(size, side, options.rounds) for size, side in SIDES.items()]
        texts.append(_overhead_table(result["overhead"]))
    if "memory" in parts:
        result["memory"] = [memory(number) for number in options.sites]
        texts.append(_memory_table(result["memory"]))
    if "joining" in parts:
        result["joining"] = joining()
        rows = [[step, f"{seconds:.1f}"] for step, seconds in result["joining"].items()]
        texts.append(markdown_table(["step", "seconds"], rows))
    publish(result, "\n\n".join(texts), options.json)


def overhead(size: str, side: int, rounds: int) -> dict[str, Any]:
    """Run one study both ways and return seconds and bytes a round."""
    with tempfile.TemporaryDirectory() as scratch, deployment(Path(scratch)) as deployed:
        study = Path(scratch) / "study.toml"
        study.write_text(_STUDY.format(side=side, rounds=rounds))
        local = Path(scratch) / "local"
        start_study(load_study(study), local, None, Options())
        prepare_run(local)
        run_study(local, Options())
        here = _rounds(local / "arms" / "federated")
        note(f"{size}: LocalGrid {_seconds(here):.2f} s a round")

        deployed.medfed("data", "trial", study, "--out", "hospitals", timeout_s=600)
        _allow_no_privacy(deployed.folder / "hospitals")
        deployed.found()
        deployed.start_coordinator()
        hospitals = sorted((deployed.folder / "hospitals").iterdir())
        deployed.enrol({folder.name: folder for folder in hospitals})
        deployed.start_sites()
        arm = deployed.run(study, "bench", timeout_s=3000)
        there = _rounds(arm)
        note(f"{size}: deployed {_seconds(there):.2f} s a round")
        model = (arm / "model.safetensors").stat().st_size
        moved = [
            statistics.mean(site["bytes_up"] + site["bytes_down"] for site in r["sites"].values())
            for r in there
        ]
        same = [r["weights_sha256"] for r in here] == [r["weights_sha256"] for r in there]
        return {
            "size": size,
            "model_bytes": model,
            "local_s": _seconds(here),
            "deployed_s": _seconds(there),
            "bytes_per_site_and_round": statistics.median(moved),
            "same_weights": same,
        }


def memory(num_sites: int, side: int = 110) -> dict[str, Any]:
    """Run two rounds with sites that only answer; return the server's peak memory."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        deployed = stack.enter_context(deployment(scratch))
        study = scratch / "study.toml"
        study.write_text(_STUDY.format(side=side, rounds=2).partition("[simulation]")[0])
        deployed.found()
        deployed.start_coordinator()
        names = [f"site-{number:02d}" for number in range(num_sites)]
        hospitals = {name: _empty_site(scratch / "sites" / name) for name in names}
        deployed.enrol(hospitals)
        time.sleep(4)  # the supervisor tells Flower of the new keys
        turns = threading.Semaphore(2)
        for name, folder in hospitals.items():
            stack.enter_context(
                FakeSite(
                    f"127.0.0.1:{deployed.port}",
                    folder / "keys" / "ca.pem",
                    folder / "keys" / "node.key",
                    _answerer(name, turns),
                )
            )
        arm = deployed.submit(study, "bench")
        peaks: dict[str, int] = {}
        watch = {"SuperLink": "federation.superlink", "ServerApp": "flwr-serverapp"}
        while deployed.run_state("bench") not in ("finished", "failed", "stopped"):
            for name, program in watch.items():
                peak = max(map(_peak_bytes, deployed.pids(program)), default=0)
                peaks[name] = max(peaks.get(name, 0), peak)
            time.sleep(0.5)
        rounds = _rounds(arm)
        answered = [sum(s["status"] == "ok" for s in r["sites"].values()) for r in rounds]
        model = (arm / "model.safetensors").stat().st_size
        note(f"{num_sites} sites: {peaks}, answered {answered}")
        return {
            "sites": num_sites,
            "model_bytes": model,
            "answered": answered,
            "round_s": _seconds(rounds),
            **peaks,
        }


def joining() -> dict[str, float]:
    """Time what a hospital types, from `site init` to the end of the first round."""
    with tempfile.TemporaryDirectory() as scratch, deployment(Path(scratch)) as deployed:
        study = Path(scratch) / "study.toml"
        study.write_text(_STUDY.format(side=32, rounds=1).replace("min_sites = 2", "min_sites = 1"))
        deployed.medfed("data", "trial", study, "--out", "hospitals")
        deployed.found()
        deployed.start_coordinator()
        deployed.medfed("federation", "invite", "north", "--out", "invite")
        north = deployed.folder / "north"
        deployed.sites["north"] = north
        store = deployed.folder / "hospitals" / "scanner-1" / "store"
        times: dict[str, float] = {}

        def step(name: str, what: Callable[[], object]) -> None:
            started = time.perf_counter()
            what()
            times[name] = time.perf_counter() - started

        site = north / "site.toml"
        step(
            "site init",
            lambda: deployed.medfed(
                *("site", "init", north, "--name", "north", "--store", store, "--yes"),
                *("--unit", "none"),
            ),
        )
        step("site enroll", lambda: deployed.medfed("site", "enroll", "invite", site))
        step("approve", lambda: deployed.medfed("federation", "approve", "north", "--yes"))
        step("site preflight", lambda: deployed.medfed("site", "preflight", site))

        def start() -> None:
            deployed.start_site("north")
            deployed.wait_for("north", lambda: deployed.is_ready("north"))

        step("site start, connected", start)
        step("first round", lambda: deployed.run(study, "first"))
        times["together"] = sum(times.values())
        return times


def _empty_site(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "site.toml").write_text(f'name = "{folder.name}"\n[data]\nstores = ["store"]\n')
    load_or_make_node_key(folder / "keys" / "node.key")
    return folder


def _answerer(name: str, turns: threading.Semaphore) -> Callable[[Message], Message]:
    rng = np.random.default_rng(sum(map(ord, name)))

    def answer(message: Message) -> Message:
        kind = message.metadata.message_type
        if kind == messages.JOIN:
            content = messages.pack_join_reply(JoinReply(site=name, public_num_patients=None))
        elif kind == messages.TRAIN:
            with turns:
                request = messages.unpack_model_request(message.content)
                # Noise: what compresses or repeats would be stored once for all sites.
                update = {
                    key: rng.normal(0, 1e-3, array.shape).astype(array.dtype)
                    for key, array in request.weights.items()
                }
            content = messages.pack_train_reply(
                TrainReply(
                    site=name, update=update, num_examples=10, loss=1.0, epsilon=None, noise="none"
                )
            )
        else:
            content = messages.pack_evaluate_reply(EvaluateReply(site=name, sums=None))
        return Message(content, reply_to=message)

    return answer


def _allow_no_privacy(hospitals: Path) -> None:
    for file in hospitals.glob("*/site.toml"):
        file.write_text(re.sub(r'unit = "\w+"', 'unit = "none"', file.read_text()))


def _rounds(arm: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (arm / "rounds.jsonl").read_text().splitlines()]


def _seconds(rounds: list[dict[str, Any]]) -> float:
    return statistics.median(r["seconds"] for r in rounds[1:] or rounds)


def _peak_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found.group(1)) * 1024 if found else 0


def _overhead_table(rows: list[dict[str, Any]]) -> str:
    return markdown_table(
        [
            "model",
            "LocalGrid, s a round",
            "deployed, s",
            "more, s",
            "bytes a site / model",
            "same weights",
        ],
        [
            [
                f"{row['model_bytes'] / MB:.1f} MB",
                f"{row['local_s']:.2f}",
                f"{row['deployed_s']:.2f}",
                f"{row['deployed_s'] - row['local_s']:.2f}",
                f"{row['bytes_per_site_and_round'] / row['model_bytes']:.2f}",
                "yes" if row["same_weights"] else "NO",
            ]
            for row in rows
        ],
    )


def _memory_table(rows: list[dict[str, Any]]) -> str:
    return markdown_table(
        ["sites", "model", "SuperLink, peak MB", "ServerApp, peak MB", "s a round", "answered"],
        [
            [
                str(row["sites"]),
                f"{row['model_bytes'] / MB:.1f} MB",
                f"{row.get('SuperLink', 0) / MB:.0f}",
                f"{row.get('ServerApp', 0) / MB:.0f}",
                f"{row['round_s']:.1f}",
                " and ".join(map(str, row["answered"])),
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
