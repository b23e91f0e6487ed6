"""What the fault tests share: a federation of three hospitals, moments to strike at, and what must
hold afterwards, whatever was killed.

Four kinds of study run in it. Without privacy a site's training follows from the seed: the weights
must be those of an undisturbed simulation, bit for bit; so must those of split learning, which are
FedAvg's. With real noise, masked or not, a second training is a second release: it would have to be
charged, and one that is charged twice would show. Ledgers count the releases of all.
"""

import contextlib
import hashlib
import json
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Literal

import pytest
from deployment import Deployment, deployment
from flwr.clientapp import ClientApp

from medfed.client.app import app as client_app
from medfed.client.audit_log import AuditLog
from medfed.client.releases import read_releases
from medfed.client.site import load_site
from medfed.common.accounting import epsilon
from medfed.common.ledger import Entry, Summary, read_ledger
from medfed.common.state_dicts import digest
from medfed.common.study_file import load_study
from medfed.server.checkpoint import load_checkpoint
from medfed.server.records import ArmFolder, RoundRecord
from medfed.simulations.study import Options, prepare_run, run_study, start_study

Kind = Literal["exact", "noisy", "split", "masked"]
_WITH_NOISE = ("noisy", "masked")
SITES = ("scanner-1", "scanner-2", "scanner-3")
ROUNDS = 2

_NOISY = """
[training]
rounds = {rounds}
local_steps = 4
learning_rate = 0.1
[privacy]
unit = "patient"
noise_multiplier = 1.0
sample_rate = 0.3
images_per_patient = 2
target_delta = 1e-3
"""
_STUDY = """
[study]
name = "faults"
seed = 3
[task]
classes = ["normal", "nodule", "effusion", "cardiomegaly"]
[data]
image_size = 16
[simulation]
dataset = "phantom"
arms = ["federated"]
max_epsilon = 5000
[simulation.phantom]
num_patients = 120
num_scanners = 3
[simulation.partition]
method = "natural"
column = "scanner"
[simulation.public_num_patients]
scanner-1 = 30
scanner-2 = 40
scanner-3 = 25
"""
_KINDS = {
    "exact": """
[training]
rounds = {rounds}
local_epochs = 4
batch_size = 8
[privacy]
unit = "none"
""",
    "noisy": _NOISY,
    "masked": _NOISY
    + """\
[secure_aggregation]
enabled = true
""",
    "split": """
[training]
rounds = {rounds}
local_steps = 3
batch_size = 8
[privacy]
unit = "none"
""",
}


def write_study(
    folder: Path, kind: Kind, *, rounds: int = ROUNDS, **federation: float | str
) -> Path:
    """Write a study; `federation` goes into its section of that name."""
    lines = "".join(f"{key} = {value}\n" for key, value in federation.items())
    path = folder / f"{kind}-{len(list(folder.glob('*.toml')))}.toml"
    path.write_text(f"{_STUDY}{_KINDS[kind].format(rounds=rounds)}[federation]\n{lines}")
    return path


@contextlib.contextmanager
def three_hospitals(folder: Path, *sans: str) -> Iterator[Deployment]:
    """A coordinator that runs and three sites that are approved and not started."""
    with deployment(folder) as deployed:
        hospitals = folder / "hospitals"
        deployed.medfed("data", "trial", write_study(folder, "exact"), "--out", hospitals)
        deployed.found(*sans)
        deployed.start_coordinator()
        deployed.enrol({name: hospitals / name for name in SITES})
        yield deployed


@cache
def undisturbed(kind: Kind, rounds: int, app: ClientApp = client_app) -> tuple[str, ...]:
    """Digests of the weights after each round of a simulation, of split learning as FedAvg.

    Args:
        kind: Of the study.
        rounds: Of the study.
        app: What the simulated sites run: nothing disturbs them, unless this does.
    """
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        patch.setattr("medfed.simulations.study.client_app", app)
        run = Path(scratch) / "run"
        study = load_study(write_study(Path(scratch), kind, rounds=rounds))
        start_study(study, run, None, Options())
        prepare_run(run)
        run_study(run, Options(workers=1))
        return tuple(r.weights_sha256 for r in ArmFolder(run / "arms" / "federated").read_rounds())


class Row:
    """One row of the fault table: a run, and the federation that it is to survive in.

    Args:
        federation: Its sites run.
        kind: Of the study.
        name: Of the run.
        rounds: Of the study.
        settings: Of the study's [federation].
    """

    def __init__(
        self,
        federation: Deployment,
        kind: Kind,
        name: str,
        *,
        rounds: int = ROUNDS,
        **settings: float | str,
    ) -> None:
        settings = {"min_sites": len(SITES), **settings}
        if kind == "split":
            settings["algorithm"] = '"split"'
        self.federation = federation
        self.name = name
        self.kind = kind
        self._rounds = rounds
        study = write_study(federation.folder, kind, rounds=rounds, **settings)
        self.arm = federation.submit(study, name)
        self.run = ArmFolder(self.arm).read_plan().run

    def state(self, site: str) -> Path:
        """The state folder of a site."""
        return self.federation.sites[site] / "state"

    def num_charges(self, site: str) -> int:
        """How many entries of this run a site's ledger holds; cheap."""
        ledger = self.state(site) / "ledger.jsonl"
        return ledger.read_bytes().count(self.run.encode()) if ledger.exists() else 0

    def num_rounds(self) -> int:
        """How many rounds are complete; cheap."""
        rounds = self.arm / "rounds.jsonl"
        return rounds.read_bytes().count(b"\n") if rounds.exists() else 0

    def num_answers(self, site: str, kind: str) -> int:
        """How often a site has answered a kind of message of this run."""
        return self.num_events(site, "answered", kind)

    def num_events(self, site: str, event: str, kind: str) -> int:
        """How often an event about a kind of message of this run is in a site's audit log."""
        lines = (self.state(site) / "audit.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines if f'"{event}"' in line]
        facts = [one["facts"] for one in events if one["event"] == event]
        return sum(fact["run"] == self.run and fact["kind"] == kind for fact in facts)

    def sites_trained(self, round_number: int) -> list[str]:
        """Whose updates of a round have arrived so far."""
        lines = (self.arm / "events.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        return [
            event["site"]
            for event in events
            if event["event"] == "trained" and event["round"] == round_number
        ]

    def until(self, what: str, happened: Callable[[], bool]) -> None:
        """Wait for a moment that lasts for milliseconds only, and comes before the run's end."""
        looked = time.monotonic()

        def happened_or_over() -> bool:
            nonlocal looked
            if happened():
                return True
            if time.monotonic() - looked > 1:
                looked = time.monotonic()
                state = self.federation.run_state(self.name)
                assert state in ("waiting", "running"), f"{what}: {state}\n{self.federation.logs()}"
            return False

        until(what, happened_or_over)

    def until_training(self, site: str, round_number: int) -> None:
        """Wait until a site has charged a round, and so begins to train it."""
        self.until(f"{site} trains", lambda: self.num_charges(site) >= round_number)

    @contextlib.contextmanager
    def frozen_in_training(self, site: str, round_number: int) -> Iterator[None]:
        """Hold a site's worker in the midst of a round's training for the time of the block."""
        worker = int(self.federation.site_status(site)["worker_pid"])
        self.until_training(site, round_number)
        with frozen(worker):
            # What the charge paid for is not made yet.
            assert (self.state(site) / "replies" / "charging.json").exists()
            yield

    def finish(self) -> list[RoundRecord]:
        """Wait for the run's end and return its rounds, one by one and whole."""
        self.federation.wait_for_run(self.name)
        arm = ArmFolder(self.arm)
        records = arm.read_rounds()
        assert [record.round_number for record in records] == list(range(1, self._rounds + 1))
        study = load_study(self.arm.parents[1] / "study.toml")
        checkpoint = load_checkpoint(arm.checkpoint, study.for_sites().digest())
        assert checkpoint is not None
        assert digest(checkpoint.weights) == records[-1].weights_sha256
        for site in SITES:
            self.check_site(site, records)
        return records

    def finish_whole(self) -> None:
        """The same, and every site took part in every round, at the cost of one release each."""
        records = self.finish()
        for record in records:
            assert {name: site.status for name, site in record.sites.items()} == dict.fromkeys(
                SITES, "ok"
            )
        for site in SITES:
            entries = self.entries(site)
            numbers = [entry.spend.round_number for entry in entries]
            once = numbers if self.kind != "split" else sorted(set(numbers))
            assert once == list(range(1, self._rounds + 1)), site
            if self.kind in _WITH_NOISE:
                assert records[-1].sites[site].epsilon == self.epsilon(site)
        if self.kind not in _WITH_NOISE:
            expected = undisturbed(self.kind, self._rounds)
            assert [record.weights_sha256 for record in records] == list(expected)

    def check_site(self, site: str, records: list[RoundRecord]) -> None:
        """What a site charged is what it released: one entry each, for the very weights it got."""
        # Verifies the chain and every signature.
        entries = self.entries(site)
        charged = Counter(entry.spend.round_number for entry in entries)
        # In split learning a round that is begun anew is trained anew, to the same bits: entries
        # of both have one name (`_check_release`).
        is_split = self.kind == "split"
        assert is_split or set(charged.values()) <= {1}, f"{site} was charged twice: {charged}"
        completed = {record.round_number for record in records if record.sites[site].status == "ok"}
        assert completed <= set(charged), f"{site}: {completed - set(charged)} were not charged"
        listed, num_torn = read_releases(self.state(site))
        assert not num_torn
        updates = [one for one in listed if one.kind == "update" and one.run == self.run]
        first = Counter(
            update.round_number
            for update in updates
            if not any(part.cost.startswith("sent again") for part in update.quantities)
        )
        assert set(first) <= set(charged), f"{site}: an update left that was not charged"
        assert is_split or set(first.values()) <= {1}, f"{site} released twice: {first}"
        for entry in entries:
            self._check_release(entry, records)
        AuditLog(self.state(site)).verify()

    def entries(self, site: str) -> list[Entry]:
        """This run's entries in a site's ledger, verified."""
        copy = read_ledger(self.state(site))
        assert not copy.torn
        return [entry for entry in copy.entries if entry.spend.run == self.run]

    def epsilon(self, site: str) -> float:
        """What all of a site's ledger comes to."""
        policy = load_site(self.federation.sites[site] / "site.toml").policy
        entries = read_ledger(self.state(site)).entries
        spent = Summary.of(entry.spend for entry in entries)
        return epsilon(spent.events, policy.target_delta)

    def _check_release(self, entry: Entry, records: list[RoundRecord]) -> None:
        """A round was trained from the weights that the round before ended in, on record."""
        spend = entry.spend
        assert spend.noise == ("secure" if self.kind in _WITH_NOISE else "none")
        if self.kind == "split":  # it names the weights of the site's own parts
            sites = records[spend.round_number - 1].sites.values()
            [start] = {site.start_sha256 for site in sites}
            parts = [spend.study, self.run, str(spend.round_number), start]
            assert spend.release == hashlib.sha256("\x1f".join(parts).encode()).hexdigest()
        elif spend.round_number > 1:
            before = records[spend.round_number - 2].weights_sha256
            parts = [spend.study, self.run, str(spend.round_number), before]
            assert spend.release == hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def until(what: str, happened: Callable[[], bool], timeout_s: float = 300) -> None:
    """Wait for a moment that lasts for milliseconds only."""
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:.0f} s"
        time.sleep(0.003)


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a process for the time of the block; it may be killed meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def kill_agent(federation: Deployment, site: str) -> None:
    """Kill a site's supervisor; return once its SuperNode and worker have ended with it."""
    status = federation.site_status(site)
    federation.kill(f"site-{site}")
    children = [Path(f"/proc/{status[pid]}") for pid in ("supernode_pid", "worker_pid")]
    until("its children end", lambda: not any(child.exists() for child in children))
