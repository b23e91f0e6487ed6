"""kill -9 at fifty random moments of runs under DP: the ledgers never under-count.

After each kill, as the files lie: every ledger verifies, holds every release that left and every
round that the server completed, and is within the budget. Each run, resumed until it ends, stops
where the uninterrupted one does, with the same weights and the same entries.

Imports take seconds and touch nothing, so a process that has imported everything forks for each
start; what is killed is the whole `medfed simulate`, with all of its threads.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from medfed.client.releases import read_releases
from medfed.common.accounting import epsilon
from medfed.common.ledger import Ledger, Summary, check_heads, read_ledger
from medfed.common.ledger.countersigning import read_countersignatures
from medfed.server.records import ArmFolder

KILLS = 50
MAX_EPSILON = 5.2  # Four rounds of six cost 4.99 at delta 1e-3, five cost more.
STUDY = f"""
[study]
name = "tiny"
seed = 3
[task]
classes = ["normal", "nodule", "effusion", "cardiomegaly"]
[data]
image_size = 16
[training]
rounds = 6
local_steps = 3
learning_rate = 0.1
[federation]
min_sites = 2
[privacy]
noise_multiplier = 1.0
sample_rate = 0.3
expected_batch_size = 8
images_per_patient = 2
target_delta = 1e-3
[simulation]
dataset = "phantom"
max_epsilon = {MAX_EPSILON}
arms = ["federated"]
[simulation.phantom]
num_patients = 120
num_scanners = 3
[simulation.partition]
method = "natural"
column = "scanner"
"""

# Reads one list of arguments a line; says the child's process id, then how it ended. The first
# child writes down what a whole run imports: its parent imports that before it forks again.
FORKING = """
import contextlib, importlib, json, os, sys
from medfed.cli import main
modules = sys.argv[1]
known = False
for line in sys.stdin:
    if os.path.exists(modules) and not known:
        known = True
        for name in json.load(open(modules)):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    child = os.fork()
    if child == 0:
        log = os.open(modules + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = ["medfed", *json.loads(line)]
        code = 1
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        finally:
            if code == 0 and not known:
                json.dump(sorted(sys.modules), open(modules, "w"))
            os._exit(code if isinstance(code, int) else 1)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass
class Medfed:
    """Starts `medfed`, and kills it."""

    forking: "subprocess.Popen[str]"
    log: Path

    def start(self, *arguments: object) -> int:
        """Start `medfed ARGUMENTS`; return its process id."""
        assert self.forking.stdin is not None
        self.forking.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
        self.forking.stdin.flush()
        return self._read()

    def wait(self) -> int:
        """Return the exit status, negative for a signal."""
        return self._read()

    def _read(self) -> int:
        assert self.forking.stdout is not None
        line = self.forking.stdout.readline()
        assert line, self.log.read_text() if self.log.exists() else "no start"
        return int(line)


@pytest.fixture
def medfed(tmp_path: Path) -> Iterator[Medfed]:
    modules = tmp_path / "modules.json"
    environment = {**os.environ, "MEDFED_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", FORKING, str(modules)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment,
    ) as process:
        yield Medfed(process, modules.with_suffix(".json.log"))
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


def arm_of(run: Path) -> ArmFolder:
    return ArmFolder(run / "arms" / "federated")


def states_of(run: Path) -> list[Path]:
    return sorted(run.glob("arms/federated/sites/*/state"))


def weights_of(run: Path) -> str:
    path = run / "arms" / "federated" / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_files(run: Path) -> int:
    """Check what a kill left behind; return how many entries there are in all ledgers."""
    entries = 0
    completed = arm_of(run).read_rounds() if (run / "arms" / "federated").exists() else []
    for state in states_of(run):
        site = state.parent.name
        held = set()
        if (state / "ledger.jsonl").exists():
            copy = read_ledger(state)
            entries += len(copy.entries)
            held = {entry.spend.round_number for entry in copy.entries}
            assert len(held) == len(copy.entries)
            spent = epsilon(Summary.of(entry.spend for entry in copy.entries).events, 1e-3)
            assert spent <= MAX_EPSILON
        left = {r.round_number for r in read_releases(state)[0] if r.kind == "update"}
        assert left <= held, f"{site}: rounds {left - held} left and were not charged"
        done = {
            record.round_number
            for record in completed
            if site in record.sites and record.sites[site].status == "ok"
        }
        assert done <= held, f"{site}: rounds {done - held} completed and were not charged"
    return entries


@pytest.mark.slow
def test_ledgers_never_under_count_when_runs_are_killed_fifty_times(
    medfed: Medfed, tmp_path: Path
) -> None:
    study = tmp_path / "tiny.toml"
    study.write_text(STUDY)
    whole = tmp_path / "whole"
    medfed.start("simulate", "--quiet", study, "--out", whole)
    assert medfed.wait() == 0, medfed.log.read_text()
    rounds = [record.round_number for record in arm_of(whole).read_rounds()]
    assert rounds == [1, 2, 3, 4]  # the budget ended it
    assert check_files(whole) == 4 * len(states_of(whole)) > 0

    clock = random.Random(50)
    kills, within_rounds, number = 0, 0, 0
    while kills < KILLS:
        run = tmp_path / f"run-{number}"
        if start_and_kill(medfed, study, run, clock):
            kills += 1
            within_rounds += events_of(run)[-1:] in (["round"], ["trained"], ["completed"])
            check_files(run)
        else:
            check_ended(run, whole)
            number += 1
    if (run / "run.json").exists():  # or the last kill was before there was a run
        medfed.start("simulate", "--quiet", "--resume", run)
        assert medfed.wait() == 0, medfed.log.read_text()
        check_ended(run, whole)
    # Not most of them while data is read and the report drawn.
    assert within_rounds >= KILLS // 3, within_rounds


def start_and_kill(medfed: Medfed, study: Path, run: Path, clock: random.Random) -> bool:
    """Start or resume `run` and kill it at a random moment; False if it ended before."""
    resumes = (run / "run.json").exists()
    if not resumes:
        shutil.rmtree(run, ignore_errors=True)
    ended = run / "arms" / "federated" / "outcome.json"
    only_report = ended.exists()
    seen = len(events_of(run))
    arguments = ["--resume", run] if resumes else [study, "--out", run]
    process = medfed.start("simulate", "--quiet", *arguments)
    # By events and not by the clock alone: else most moments fall before the first round.
    events = clock.randrange(14)
    deadline = time.monotonic() + 5
    while len(events_of(run)) < seen + events and time.monotonic() < deadline:
        if ended.exists():
            break
        time.sleep(0.002)
    time.sleep(clock.uniform(0, 0.1 if events else 0.5))
    if not only_report:  # it was killed there before: else most moments fall there
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    status = medfed.wait()
    assert status in (0, -signal.SIGKILL), medfed.log.read_text()
    return status != 0


def events_of(run: Path) -> list[str]:
    """Return what happened so far in the federated arm."""
    path = run / "arms" / "federated" / "events.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["event"] for line in lines if line.endswith("\n")]


def check_ended(run: Path, whole: Path) -> None:
    """The resumed run is the uninterrupted one: weights, rounds and entries."""
    assert weights_of(run) == weights_of(whole)
    sums = [record.weights_sha256 for record in arm_of(run).read_rounds()]
    assert sums == [record.weights_sha256 for record in arm_of(whole).read_rounds()]
    heads = read_countersignatures(run / "arms" / "federated" / "heads.jsonl")
    for state in states_of(run):
        site = state.parent.name
        entries = Ledger(state).entries()
        assert [entry.spend.round_number for entry in entries] == [1, 2, 3, 4]
        of_site = [signed for signed in heads if signed.site == site]
        assert {signed.round_number for signed in of_site} == {1, 2, 3, 4}
        assert check_heads(entries, of_site) == []
        kept = read_countersignatures(state / "countersignatures.jsonl")
        assert check_heads(entries, kept) == []
        assert set(kept) <= set(of_site)
