"""Cyclic weight transfer and FedBuff in whole runs: against plain loops, killed, short of sites.

The twins below know who trained when from the round records (or work it out by themselves), train
with the site's own function, and add up in NumPy.
"""

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from medfed.client.app import app as client_app
from medfed.client.data.site_data import load_site_data
from medfed.client.site import load_site
from medfed.client.training import Round, train_without_privacy
from medfed.common import messages
from medfed.common.errors import RunError
from medfed.common.ledger import Ledger
from medfed.common.models import build_model, trained_state
from medfed.common.models.cnn import lay_out_for_cpu
from medfed.common.seeding import numpy_rng
from medfed.common.state_dicts import StateDict, digest
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study_json
from medfed.common.tasks import make_task
from medfed.server import loop
from medfed.server.records import ArmFolder, RoundRecord
from medfed.simulations.auditing.findings import Status
from medfed.simulations.auditing.ledger_part import audit_run_ledgers
from medfed.simulations.reporting.order import order_table
from medfed.simulations.reporting.run_data import load_run
from medfed.simulations.study import Options, run_study

STUDY = """
[study]
name = "ordered"
seed = 3
[task]
classes = ["normal", "nodule", "effusion", "cardiomegaly"]
[data]
image_size = 16
[training]
rounds = 4
local_steps = 2
batch_size = 4
learning_rate = 0.05
[federation]
min_sites = 2
[evaluation]
every = 4
[privacy]
unit = "none"
[simulation]
dataset = "phantom"
arms = ["federated"]
max_epsilon = 50
resamples = 0
[simulation.phantom]
num_patients = 60
max_images_per_patient = 1
[simulation.partition]
num_sites = 4
"""
CYCLIC = ("federation.algorithm=cyclic",)
FEDBUFF = (
    "federation.algorithm=fedbuff",
    "simulation.pace.seconds={ site-1 = 1.0, site-2 = 1.2, site-3 = 2.0, site-4 = 5.0 }",
)
PRIVATE = (
    "training.rounds=2",
    "privacy.unit=patient",
    "privacy.noise_multiplier=1.0",
    "privacy.sample_rate=0.3",
    "privacy.expected_batch_size=4",
    "privacy.target_delta=1e-3",
)
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def prepare(prepared_run: Run) -> Run:
    """Makes a prepared run of the study above."""

    def make(*overrides: str) -> Path:
        return prepared_run(STUDY, overrides)

    return make


def arm(folder: Path) -> ArmFolder:
    return ArmFolder(folder / "arms" / "federated")


def records(folder: Path) -> list[RoundRecord]:
    return arm(folder).read_rounds()


def facts(folder: Path) -> list[Any]:
    """All that is the same in every run of the study."""
    return [
        (r.weights_sha256, r.order, r.under_way, r.clock_s, r.metrics,
         {name: (s.status, s.asked_in, s.start_sha256, s.epsilon) for name, s in r.sites.items()})
        for r in records(folder)
    ]  # fmt: skip


class Twin:
    """A study's sites, each trained from whatever weights, without a server."""

    def __init__(self, folder: Path) -> None:
        self.folder = arm(folder).folder
        self.study: StudyConfig = parse_study_json((self.folder / "study.json").read_text())
        self.task = make_task(self.study, ())
        self.first = trained_state(self.model())

    def model(self) -> torch.nn.Module:
        model = build_model(self.study, self.task.num_outputs)
        lay_out_for_cpu(model)
        return model

    def update(self, name: str, number: int, weights: StateDict) -> StateDict:
        site = load_site(self.folder / "sites" / name / "site.toml")
        data = load_site_data(site, self.study).train
        this = Round(self.study, name, number, torch.device("cpu"))
        return train_without_privacy(self.model(), weights, data, self.task, this).update


def test_cyclic_is_training_on_one_site_after_the_other(serial: Run) -> None:
    folder = serial(*CYCLIC)
    twin = Twin(folder)
    weights = twin.first
    for record in records(folder):
        assert sorted(record.order) == ["site-1", "site-2", "site-3", "site-4"]
        for name in record.order:
            assert record.sites[name].start_sha256 == digest(weights)
            update = twin.update(name, record.round_number, weights)
            weights = {key: np.add(array, update[key]) for key, array in weights.items()}
        assert record.weights_sha256 == digest(weights)
    assert len({tuple(record.order) for record in records(folder)}) > 1


def replayed(folder: Path, size: int) -> list[str]:
    """Digests after each round of what the recorded orders of arrival come to."""
    twin = Twin(folder)
    starts, found = {1: twin.first}, []
    for record in records(folder):
        now = starts[record.round_number]
        total = {key: np.zeros(array.shape) for key, array in now.items()}
        for name in record.order:
            asked = record.sites[name].asked_in
            update = twin.update(name, asked, starts[asked])
            late = 1 / np.sqrt(1.0 + record.round_number - asked)
            total = {key: total[key] + late * update[key].astype(np.float64) for key in total}
        new = {
            key: (array.astype(np.float64) + total[key] / size).astype(array.dtype)
            for key, array in now.items()
        }
        starts[record.round_number + 1] = new
        found.append(digest(new))
    return found


def test_fedbuff_is_its_recorded_order_of_arrival_added_up(serial: Run) -> None:
    folder = serial(*FEDBUFF)
    assert replayed(folder, 2) == [record.weights_sha256 for record in records(folder)]


def test_fedbuff_takes_sites_by_a_clock_of_drawn_times(serial: Run) -> None:
    seconds = {"site-1": 1.0, "site-2": 1.2, "site-3": 2.0, "site-4": 5.0}
    clock, asked, due = 0.0, dict[str, int](), dict[str, float]()
    for record in records(serial(*FEDBUFF)):
        for name in seconds.keys() - asked.keys():
            asked[name] = record.round_number
            normal = numpy_rng(3, "pace", record.round_number, name).standard_normal()
            due[name] = clock + seconds[name] * exp(0.5 * normal)
        first = sorted(asked, key=lambda name: due[name])[:2]
        clock = due[first[-1]]
        assert record.order == first
        assert record.clock_s == clock
        assert {name: record.sites[name].asked_in for name in asked} == asked
        for name in first:
            del asked[name]
        assert record.under_way == asked
        assert {n for n, site in record.sites.items() if site.status == "training"} == set(asked)
    assert any(late for record in records(serial(*FEDBUFF)) for late in lateness(record))


def lateness(record: RoundRecord) -> list[int]:
    return [record.round_number - record.sites[name].asked_in for name in record.order]


@pytest.mark.parametrize("algorithm", [CYCLIC, FEDBUFF], ids=["cyclic", "fedbuff"])
@pytest.mark.parametrize(
    "moment", ["first update", pytest.param("checkpoint", marks=pytest.mark.slow)]
)
def test_threads_killed_and_resumed_end_in_the_bits_of_one_serial_run(
    prepare: Run,
    serial: Run,
    monkeypatch: pytest.MonkeyPatch,
    algorithm: tuple[str, ...],
    moment: str,
) -> None:
    folder = prepare(*algorithm)
    with monkeypatch.context() as patch:
        if moment == "checkpoint":
            die_at_checkpoint(patch, 3)
        else:
            die_after_updates(patch, 3, 1)
        with pytest.raises(KeyboardInterrupt):
            run_study(folder, Options(workers=2))
    run_study(folder, Options(workers=2))
    assert facts(folder) == facts(serial(*algorithm))


def die_at_checkpoint(patch: pytest.MonkeyPatch, number: int) -> None:
    save = loop.save_checkpoint

    def dying(*arguments: Any) -> None:
        if arguments[1].record.round_number == number:
            raise KeyboardInterrupt
        save(*arguments)

    patch.setattr(loop, "save_checkpoint", dying)


def die_after_updates(patch: pytest.MonkeyPatch, number: int, updates: int) -> None:
    """Kill the server once so many of a round's updates have been taken."""
    emit, seen = ArmFolder.emit, list[str]()

    def dying(self: ArmFolder, event: str, **values: Any) -> None:
        emit(self, event, **values)
        if event == "trained" and values["round"] == number:
            seen.append(values["site"])
        if len(seen) == updates and event == "trained":
            raise KeyboardInterrupt

    patch.setattr(ArmFolder, "emit", dying)


@pytest.mark.parametrize(
    ("algorithm", "updates"), [(CYCLIC, 3), (FEDBUFF, 1)], ids=["cyclic", "fedbuff"]
)
def test_a_round_that_is_redone_costs_nothing_where_noise_is_secret(
    prepare: Run, monkeypatch: pytest.MonkeyPatch, algorithm: tuple[str, ...], updates: int
) -> None:
    folder = prepare(*algorithm, *PRIVATE)
    for path in arm(folder).folder.glob("sites/*/site.toml"):
        text = path.read_text()
        assert "allow_seeded_noise = true" in text
        path.write_text(text.replace("allow_seeded_noise = true", "allow_seeded_noise = false"))
    with monkeypatch.context() as patch:
        die_after_updates(patch, 2, updates)
        with pytest.raises(KeyboardInterrupt):
            run_study(folder, Options(workers=1))
    run_study(folder, Options(workers=1))
    for path in sorted(arm(folder).folder.glob("sites/*/site.toml")):
        entries = Ledger(load_site(path).state_folder).entries()
        used = [
            record.sites[path.parent.name].asked_in or record.round_number
            for record in records(folder)
            if record.sites[path.parent.name].status == "ok"
        ]
        assert [entry.spend.round_number for entry in entries] == used
    findings = audit_run_ledgers(folder, delta=1e-3).findings
    assert [f.detail for f in findings if f.status is Status.FAIL] == []


class Unlucky(ClientApp):
    """Answers for `site` in `round_number` with the error of a node that is not there any more."""

    def __init__(self, site: str, round_number: int) -> None:
        super().__init__()
        self.asks = 0
        self._about = (site, messages.TRAIN, str(round_number))

    def __call__(self, message: Message, context: Context) -> Message:
        site = Path(str(context.node_config["site"])).parent.name
        if (site, message.metadata.message_type, message.metadata.group_id) == self._about:
            self.asks += 1
            return Message(Error(5, "gone"), reply_to=message)
        return client_app(message, context)


def test_a_lost_and_a_refusing_site_are_skipped_in_the_middle_of_a_cycle(
    prepare: Run, serial: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = records(serial(*CYCLIC))
    lost, refusing = whole[1].order[1], whole[1].order[2]
    folder = prepare(*CYCLIC)
    path = arm(folder).folder / "sites" / refusing / "site.toml"
    # Told the truth, that the next site sees its update alone, it does not take part.
    path.write_text(path.read_text().replace("[policy]", "[policy]\nmin_participants = 2"))
    app = Unlucky(lost, 2)
    monkeypatch.setattr("medfed.simulations.study.client_app", app)
    run_study(folder, Options(workers=2))
    assert app.asks > 1  # a message that was lost on the way is tried again
    first, second, third, _ = records(folder)
    assert (first.sites[refusing].status, first.sites[refusing].reason) == ("refused", "policy")
    assert second.sites[lost].status == "lost"
    assert refusing not in second.sites  # it has left for good
    for record in (first, third):
        assert record.order == [n for n in whole[record.round_number - 1].order if n != refusing]
    assert second.order == [n for n in whole[1].order if n not in (lost, refusing)]
    assert second.sites[lost].start_sha256 == second.sites[second.order[1]].start_sha256
    twin, weights = Twin(folder), None
    for record in records(folder):
        weights = twin.first if weights is None else weights
        for name in record.order:
            update = twin.update(name, record.round_number, weights)
            weights = {key: np.add(array, update[key]) for key, array in weights.items()}
        assert record.weights_sha256 == digest(weights)


class Gated(ClientApp):
    """Holds back some trainings until others begin; (site, round) to (site, round)."""

    def __init__(self, gates: dict[tuple[str, str], tuple[str, str]]) -> None:
        super().__init__()
        self._gates = gates
        self._begun = {about: threading.Event() for about in gates.values()}

    def __call__(self, message: Message, context: Context) -> Message:
        site = Path(str(context.node_config["site"])).parent.name
        about = (site, message.metadata.group_id)
        if message.metadata.message_type == messages.TRAIN:
            if about in self._begun:
                self._begun[about].set()
            if about in self._gates:
                assert self._begun[self._gates[about]].wait(60)
        return client_app(message, context)


def test_sites_that_really_are_late_come_in_a_later_round(
    prepare: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepare(*FEDBUFF[:1], "evaluation.every=1", "simulation.partition.num_sites=3")
    arm(folder).write_plan(replace(arm(folder).read_plan(), virtual_seconds=None))
    slow, other = "site-3", "site-1"
    gates = {(slow, "1"): (other, "3"), (other, "3"): (slow, "4")}
    monkeypatch.setattr("medfed.simulations.study.client_app", Gated(gates))
    run_study(folder, Options(workers=3))
    found = records(folder)
    assert [sorted(record.order) for record in found[:3]] == [
        ["site-1", "site-2"], ["site-1", "site-2"], ["site-2", "site-3"],
    ]  # fmt: skip
    assert [record.sites[slow].status for record in found[:3]] == ["training", "training", "ok"]
    assert (found[2].sites[slow].asked_in, found[2].under_way) == (1, {other: 3})
    # Who is training is not asked for figures, before the last round.
    assert [record.sites[slow].metrics is None for record in found] == [True, True, False, False]
    assert all(site.metrics for site in found[-1].sites.values())
    assert all(record.clock_s is None for record in found)
    assert replayed(folder, 2) == [record.weights_sha256 for record in found]


@pytest.mark.slow
def test_a_silent_site_leaves_its_place_in_the_buffer_to_the_next(prepare: Run) -> None:
    folder = prepare(*FEDBUFF, "simulation.failures.first_round={ site-1 = 3 }")
    run_study(folder, Options(workers=2))
    found = records(folder)
    assert all(len(record.order) == 2 for record in found)
    failed = [(r, n) for r in found for n, s in r.sites.items() if s.status == "failed"]
    assert {name for _, name in failed} == {"site-1"}
    for record, name in failed:
        assert name not in record.under_way
    assert replayed(folder, 2) == [record.weights_sha256 for record in found]


def test_report_tells_who_trained_after_whom(serial: Run) -> None:
    cyclic = order_table(load_run(serial(*CYCLIC)))
    assert [row[1] for row in cyclic.rows] == [
        " → ".join(record.order) for record in records(serial(*CYCLIC))
    ]
    rows = order_table(load_run(serial(*FEDBUFF))).rows
    assert len(rows) == 4
    for row, record in zip(rows, records(serial(*FEDBUFF)), strict=True):
        assert ("late" in row[2]) == any(lateness(record))
        assert all(name in row[3] for name in record.under_way)


@pytest.mark.parametrize(
    ("place", "told"),
    [(0, "round 2 began from other weights"), (2, "that it was not sent in its turn")],
)
def test_audit_finds_weights_that_were_not_those_of_the_turn(
    serial: Run, tmp_path: Path, place: int, told: str
) -> None:
    run = shutil.copytree(serial(*CYCLIC), tmp_path / "run")

    def failed() -> list[str]:
        findings = audit_run_ledgers(run, delta=1e-3).findings
        return [finding.detail for finding in findings if finding.status is Status.FAIL]

    assert failed() == []
    found = records(run)
    site = found[1].sites[found[1].order[place]]
    events = arm(run).folder / "events.jsonl"
    events.write_text(events.read_text().replace(site.start_sha256, "0" * 64))
    site.start_sha256 = "0" * 64
    arm(run).rewrite_rounds(found)
    assert any(told in detail for detail in failed())


@pytest.mark.parametrize(
    ("changes", "num_training"),
    [((), 4), (("federation.fraction=0.5",), 2), (FEDBUFF, 2)],
    ids=["all", "half", "buffer"],
)
def test_pooled_arm_takes_the_steps_of_those_that_train_for_a_round(
    prepare: Run, changes: tuple[str, ...], num_training: int
) -> None:
    folder = prepare('simulation.arms=["federated","pooled"]', *changes)
    pooled = parse_study_json((folder / "arms" / "pooled" / "study.json").read_text())
    assert pooled.training.local_steps == 2 * num_training


def test_baselines_train_without_the_rule_that_combines_sites(prepare: Run) -> None:
    folder = prepare(
        'simulation.arms=["federated","pooled","local"]',
        "training.rounds=1",
        "aggregation.rule=median",
        "aggregation.num_byzantine=1",
        "aggregation.max_norm=0.001",
        "federation.min_sites=3",
    )
    run_study(folder, Options(workers=1))
    ends = {path.name: ArmFolder(path).read_outcome() for path in (folder / "arms").iterdir()}
    assert len(ends) == 6
    assert {end["state"] for end in ends.values() if end is not None} == {"finished"}
    # One site, one update: none is scaled.
    [pooled] = ArmFolder(folder / "arms" / "pooled").read_rounds()
    assert pooled.sites["pooled"].reason == ""


def test_a_draw_of_too_few_sites_is_refused_before_any_of_them_is_charged(prepare: Run) -> None:
    folder = prepare(*PRIVATE, "federation.fraction=0.25")
    with pytest.raises(RunError, match="of the 4 sites that are here is fewer than the 2"):
        run_study(folder, Options(workers=1))
    for path in arm(folder).folder.glob("sites/*/site.toml"):
        assert not Ledger(load_site(path).state_folder).entries()


def test_a_run_that_diverged_is_told_to_start_anew_not_to_wait(prepare: Run) -> None:
    folder = prepare("training.learning_rate=1e30")
    with pytest.raises(RunError, match=r"NaN|finite") as raised:
        run_study(folder, Options(workers=1))
    assert "lower training.learning_rate" in str(raised.value)
    assert "sites are back" not in str(raised.value)
