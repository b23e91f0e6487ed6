"""One study ends in the same bits wherever it runs: threads, Ray, a real SuperLink."""

import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison import differences, facts
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from medfed.client.app import app as client_app
from medfed.common import messages
from medfed.simulations.study import Options, run_study

KINDS = ("private", "plain")
ALL_KINDS = (
    *(*KINDS, "scaffold", "cyclic", "fedbuff", "ditto", "fedbn", "masks", "reports", "harmonised"),
    *("secure", "shared noise", "scarce", "scarce private", "split"),
)
# On a real SuperLink a message takes seconds, both masked kinds have the same five phases, and what
# fedbn keeps at a site is kept as ditto's.
DEPLOYED = (
    *(*KINDS, "scaffold", "fedbuff", "ditto", "masks", "reports", "harmonised", "shared noise"),
    *("scarce", "split"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_facts_are_complete_when_a_run_is_finished(
    kind: str, serial: Callable[[str], Path]
) -> None:
    found = facts(serial(kind))
    assert found["outcome"] == ("finished", "")
    ledgers = [name for name in found if name.startswith("ledger of")]
    assert len(ledgers) == 3
    assert all(len(found[name]) == 2 for name in ledgers)
    assert found["round 1"]["weights_sha256"] != found["round 2"]["weights_sha256"]
    for site in found["round 2"]["sites"].values():
        assert site["status"] == "ok"
        assert site["metrics"]
        assert min(site["bytes_up"], site["bytes_down"]) > 0
    assert len({site["weight"] for site in found["round 2"]["sites"].values()}) == 3


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_local_grid_agrees_with_itself_when_sites_run_side_by_side(
    kind: str, serial: Callable[[str], Path], prepare: Callable[..., Path]
) -> None:
    run = prepare(kind)
    run_study(run, Options(grid="local", workers=2))
    assert differences(serial(kind), run) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_ray_agrees_with_local_grid(
    kind: str, serial: Callable[[str], Path], prepare: Callable[..., Path]
) -> None:
    run = prepare(kind)
    # A process of its own, as `medfed simulate --grid ray` is: Ray leaves threads and hooks behind.
    program = (
        "import sys; from pathlib import Path; "
        "from medfed.simulations.study import Options, run_study; "
        "run_study(Path(sys.argv[1]), Options(grid='ray', workers=2))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(run)],
        env={**os.environ, "FLWR_HOME": str(run.parent / "flower")},
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert differences(serial(kind), run) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", DEPLOYED)
def test_superlink_agrees_with_local_grid(
    kind: str,
    serial: Callable[[str], Path],
    prepare: Callable[..., Path],
    loopback: Any,
) -> None:
    run = prepare(kind)
    loopback.run(run / "arms" / "federated", timeout_s=900)
    assert differences(serial(kind), run) == [], loopback.logs()


@pytest.mark.slow
def test_superlink_ends_as_local_grid_does_when_a_client_process_is_killed(
    prepare: Callable[..., Path], loopback: Any
) -> None:
    local = prepare("private", "training.rounds=1")
    run_study(local, Options(grid="local", workers=1))

    run = prepare("private", "training.rounds=1")
    arm = run / "arms" / "federated"
    ledger = arm / "sites" / "scanner-2" / "state" / "ledger.jsonl"
    killed = threading.Event()

    def kill_once_it_trains() -> None:
        # The ledger is written ahead of training, and training takes seconds of imports alone.
        while not killed.is_set():
            if ledger.exists() and ledger.stat().st_size and loopback.kill_client("scanner-2"):
                killed.set()
            time.sleep(0.05)

    watcher = threading.Thread(target=kill_once_it_trains, daemon=True)
    watcher.start()
    try:
        loopback.run(arm, timeout_s=900)
        assert killed.is_set(), loopback.logs()
    finally:
        killed.set()
        watcher.join()
    # It is asked once more in the same round, and trains under the charge that stands.
    assert facts(run)["round 1"]["sites"]["scanner-2"]["status"] == "ok"
    assert differences(local, run) == []
    assert facts(run)["ledger of scanner-2"]


def test_comparison_fails_when_one_bit_of_the_weights_differs(
    serial: Callable[[str], Path], tmp_path: Path
) -> None:
    run = shutil.copytree(serial("private"), tmp_path / "tiny")
    assert differences(serial("private"), run) == []
    path = run / "arms" / "federated" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-4] ^= 1  # the lowest bit of the last float's mantissa
    path.write_bytes(content)
    assert differences(serial("private"), run) == ["model.safetensors"]


def test_comparison_fails_when_a_metric_differs_in_the_last_place(
    serial: Callable[[str], Path], tmp_path: Path
) -> None:
    run = shutil.copytree(serial("plain"), tmp_path / "tiny")
    path = run / "arms" / "federated" / "rounds.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    metrics = records[0]["metrics"]
    metrics["loss"] = float(np.nextafter(metrics["loss"], np.inf))
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert differences(serial("plain"), run) == ["round 1"]


_FLIPPED = 8


class _OneBitOff(ClientApp):
    """Flips one bit of the largest value in one site's first update.

    Not the lowest: weights are larger than updates, and their sum may round that one away.
    """

    def __call__(self, message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        is_target = message.metadata.dst_node_id == 2 and message.metadata.group_id == "1"
        if is_target and message.metadata.message_type == messages.TRAIN:
            record = reply.content["arrays"]
            update = {name: array.copy() for name, array in messages.unpack_arrays(record).items()}
            _flip_largest(update)
            reply.content["arrays"] = messages.pack_arrays(update)
        return reply


def _flip_largest(update: dict[str, Any]) -> None:
    name = max(update, key=lambda key: float(np.abs(update[key]).max()))
    flat = update[name].reshape(-1)
    at = int(np.abs(flat).argmax())
    [bits] = struct.unpack("<I", struct.pack("<f", flat[at]))
    [flat[at]] = struct.unpack("<f", struct.pack("<I", bits ^ 1 << _FLIPPED))


def test_comparison_fails_when_one_bit_of_one_update_differs(
    serial: Callable[[str], Path],
    prepare: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = prepare("plain")
    monkeypatch.setattr("medfed.simulations.study.client_app", _OneBitOff())
    run_study(run, Options(grid="local", workers=1))
    found = differences(serial("plain"), run)
    assert {"model.safetensors", "round 1", "round 2"} <= set(found)
