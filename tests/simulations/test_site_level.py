"""Site-level privacy in whole runs: noise on the sum, ledger of the server, resume, bad sites."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from medfed.client.app import app as client_app
from medfed.common import messages
from medfed.common.accounting import GaussianEvent, epsilon
from medfed.common.errors import RefusalReason, RunError
from medfed.common.ledger import Ledger
from medfed.common.ledger.countersigning import read_countersignatures
from medfed.common.messages import Refusal, TrainReply
from medfed.common.study_file import load_study
from medfed.server import loop
from medfed.server.checkpoint import load_checkpoint
from medfed.server.records import ArmFolder, RoundRecord
from medfed.simulations.study import Options, prepare_run, run_study, start_study

STUDY = """
[study]
name = "tiny"
seed = 3
[task]
classes = ["normal", "nodule", "effusion", "cardiomegaly"]
[data]
image_size = 16
[model]
freeze = ["classifier.1.*"]
[training]
rounds = 4
local_steps = 1
batch_size = 4
[federation]
min_sites = 2
ema_decay = 0.5
[evaluation]
every = 2
[privacy]
unit = "site"
noise_multiplier = 1.5
target_delta = 1e-3
[privacy.site]
expected_sites = 5
max_update_norm = 0.1
adaptive_quantile = 0.5
count_noise_multiplier = 2.0
[simulation]
dataset = "phantom"
arms = ["federated"]
[simulation.phantom]
num_patients = 60
num_scanners = 2
max_images_per_patient = 1
[simulation.partition]
method = "iid"
num_sites = 5
"""
Reply = Callable[[str, Message, Message], Message]


@pytest.fixture
def prepare(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a prepared run of the study above."""
    monkeypatch.setenv("MEDFED_CACHE", str(cache))

    def make(name: str, *overrides: str) -> Path:
        (tmp_path / "study.toml").write_text(STUDY)
        run = tmp_path / name / "tiny"
        start_study(load_study(tmp_path / "study.toml", list(overrides)), run, None, Options())
        prepare_run(run)
        return run

    return make


@pytest.fixture
def changing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Reply], None]:
    """Lets a function change what sites answer: (site, request, reply) -> reply."""

    def install(change: Reply) -> None:
        class Changed(ClientApp):
            def __call__(self, message: Message, context: Context) -> Message:
                site = Path(str(context.node_config["site"])).parent.name
                return change(site, message, client_app(message, context))

        monkeypatch.setattr("medfed.simulations.study.client_app", Changed())

    return install


def run(folder: Path) -> None:
    run_study(folder, Options(workers=1))


def federated(folder: Path) -> ArmFolder:
    return ArmFolder(folder / "arms" / "federated")


def outcome_of(folder: Path) -> tuple[list[RoundRecord], bytes, float | None]:
    """What must not differ between two runs of the same bits."""
    arm = federated(folder)
    study = load_study(folder / "study.toml")
    checkpoint = load_checkpoint(arm.checkpoint, study.digest())
    assert checkpoint is not None
    records = [replace(record, started="", seconds=0.0, sites={}) for record in arm.read_rounds()]
    return records, (arm.folder / "model.safetensors").read_bytes(), checkpoint.update_bound


def test_run_states_epsilon_of_a_site_and_clips_adaptively(prepare: Callable[..., Path]) -> None:
    folder = prepare("run")
    run(folder)
    records = federated(folder).read_rounds()
    assert len(records) == 4
    for record in records:
        event = GaussianEvent(1.5, 1.0, record.round_number)
        assert record.site_epsilon == epsilon([event], 1e-3)
        assert record.site_noise == "seeded"
        assert {site.status for site in record.sites.values()} == {"ok"}
        assert {site.weight for site in record.sites.values()} == {1}
        assert {site.loss for site in record.sites.values()} == {None}
        assert record.average_sha256 != ""
    # The first round's average is that round's weights; later ones are not.
    assert [r.average_sha256 == r.weights_sha256 for r in records] == [True, False, False, False]
    bounds = [record.update_bound for record in records]
    assert bounds[0] == 0.1
    assert len(set(bounds)) == 4
    spends = [e.spend for e in Ledger(federated(folder).folder / "server_state").entries()]
    assert [spend.round_number for spend in spends] == [1, 2, 3, 4]
    assert {(spend.unit, spend.noise) for spend in spends} == {("site", "seeded")}
    assert [spend.max_grad_norm for spend in spends] == bounds
    events = (federated(folder).folder / "events.jsonl").read_text().splitlines()
    completed = [e for e in map(json.loads, events) if e["event"] == "completed"]
    assert [e["epsilon"] for e in completed] == [record.site_epsilon for record in records]


@pytest.mark.parametrize("moment", ["before the checkpoint", "after the checkpoint"])
def test_resumed_run_equals_uninterrupted_with_adaptive_clipping_and_average(
    prepare: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    whole = prepare("whole", "federation.fraction=0.7")
    run(whole)

    folder = prepare("killed", "federation.fraction=0.7")
    save = loop.save_checkpoint

    def die_in_round_2(*arguments: object) -> None:
        if arguments[1].record.round_number == 2:  # type: ignore[attr-defined]
            if moment == "after the checkpoint":
                save(*arguments)  # type: ignore[arg-type]
            raise KeyboardInterrupt
        save(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "save_checkpoint", die_in_round_2)
    with pytest.raises(KeyboardInterrupt):
        run(folder)
    monkeypatch.setattr(loop, "save_checkpoint", save)
    run(folder)
    assert outcome_of(folder) == outcome_of(whole)
    # Seeded: the repeated release is the same bits and was charged once.
    entries = Ledger(federated(folder).folder / "server_state").entries()
    assert [entry.spend.round_number for entry in entries] == [1, 2, 3, 4]


def test_round_without_any_site_is_completed_with_noise_alone(prepare: Callable[..., Path]) -> None:
    folder = prepare("empty", "federation.fraction=1e-6", "training.rounds=2")
    run(folder)
    records = federated(folder).read_rounds()
    trained = [s for r in records for s in r.sites.values() if s.reason != "evaluation only"]
    assert trained == []
    assert len({record.weights_sha256 for record in records}) == 2
    assert records[-1].metrics is not None


def test_bad_updates_are_left_out_and_end_no_round(
    prepare: Callable[..., Path], changing: Callable[[Reply], None]
) -> None:
    def spoil(site: str, request: Message, reply: Message) -> Message:
        if request.metadata.message_type != messages.TRAIN:
            return reply
        update = messages.unpack_reply(reply.content)
        assert isinstance(update, TrainReply)
        value = {"site-1": np.nan, "site-2": np.inf, "site-3": 1e30, "site-4": 0.0}.get(site, 1.0)
        if site == "site-5":
            return Message(
                messages.pack_train_reply(replace(update, ledger_head="not a head")),
                reply_to=request,
            )
        with np.errstate(all="ignore"):
            arrays = {name: array * np.float32(value) for name, array in update.update.items()}
        spoiled = replace(update, update=arrays)
        return Message(messages.pack_train_reply(spoiled), reply_to=request)

    changing(spoil)
    # A quorum of all: with an answer short of it, a study of another unit would fail.
    folder = prepare("bad", "federation.min_sites=5", "training.rounds=2")
    run(folder)
    for record in federated(folder).read_rounds():
        status = {name: site.status for name, site in record.sites.items()}
        assert status == {
            "site-1": "rejected", "site-2": "rejected", "site-3": "ok", "site-4": "ok",
            "site-5": "rejected",
        }  # fmt: skip
        assert "NaN" in record.sites["site-1"].reason
        assert "hexadecimal" in record.sites["site-5"].reason


def test_sites_that_withdraw_end_the_run_before_the_next_round(
    prepare: Callable[..., Path], changing: Callable[[Reply], None]
) -> None:
    def withdraw(site: str, request: Message, reply: Message) -> Message:
        if request.metadata.message_type != messages.TRAIN or site == "site-1":
            return reply
        refusal = Refusal(site=site, reason=RefusalReason.BUDGET)
        return Message(messages.pack_refusal(refusal), reply_to=request)

    changing(withdraw)
    folder = prepare("withdrawn")
    with pytest.raises(RunError, match=r"Before round 2 1 sites .* quorum is 2"):
        run(folder)
    # Round 1 counts, with one answer of five: what it lacked does not show.
    assert len(federated(folder).read_rounds()) == 1


def test_budget_of_the_study_ends_training_and_keeps_the_model(
    prepare: Callable[..., Path],
) -> None:
    two, three = (epsilon([GaussianEvent(1.5, 1.0, rounds)], 1e-3) for rounds in (2, 3))
    folder = prepare("budget", f"privacy.site.max_epsilon={(two + three) / 2}")
    run(folder)
    outcome = federated(folder).read_outcome()
    assert outcome is not None
    assert outcome["state"] == "finished"
    assert "privacy budget spent before round 3" in outcome["reason"]
    assert [record.site_epsilon for record in federated(folder).read_rounds()][-1] == two
    assert (federated(folder).folder / "model.safetensors").exists()


def test_sites_are_not_told_how_many_were_drawn(
    prepare: Callable[..., Path], changing: Callable[[Reply], None]
) -> None:
    told = set()

    def listen(site: str, request: Message, reply: Message) -> Message:
        if request.metadata.message_type in (messages.TRAIN, messages.EVALUATE):
            told.add(messages.unpack_model_request(request.content).num_participants)
        return reply

    changing(listen)
    folder = prepare("told", "federation.fraction=0.5", "training.rounds=3")
    run(folder)
    drawn = {
        sum(site.reason != "evaluation only" for site in record.sites.values())
        for record in federated(folder).read_rounds()
    }
    assert len(drawn) > 1
    assert told == {5}


def test_baselines_train_without_what_needs_other_sites_and_say_so(
    prepare: Callable[..., Path],
) -> None:
    arms = 'simulation.arms=["federated","pooled","local"]'
    folder = prepare("arms", arms, "training.rounds=1")
    federation = json.loads((folder / "arms" / "federated" / "study.json").read_text())
    assert federation["privacy"]["unit"] == "site"
    assert federated(folder).read_plan().note == ""
    for name in ("pooled", "local-site-1"):
        arm = ArmFolder(folder / "arms" / name)
        study = json.loads((arm.folder / "study.json").read_text())
        assert study["privacy"]["unit"] == "none"
        assert not study["secure_aggregation"]["enabled"]
        assert "Without differential privacy" in arm.read_plan().note
    run(folder)
    [record] = ArmFolder(folder / "arms" / "pooled").read_rounds()
    assert record.site_epsilon is None
    assert record.metrics is not None
    assert not (folder / "arms" / "pooled" / "server_state" / "ledger.jsonl").exists()


def test_ledger_heads_are_countersigned_each_round_and_kept_by_the_sites(
    prepare: Callable[..., Path],
) -> None:
    folder = prepare("heads", "privacy.unit=patient", "privacy.sample_rate=0.2",
                     "privacy.expected_batch_size=2", "simulation.max_epsilon=100",
                     "training.rounds=3")  # fmt: skip
    run(folder)
    arm = federated(folder)
    signed = read_countersignatures(arm.folder / "heads.jsonl")
    for site in ("site-1", "site-5"):
        state = arm.folder / "sites" / site / "state"
        heads = [entry.hash for entry in Ledger(state).entries()]
        assert len(heads) == 3
        assert [s.head for s in signed if s.site == site] == heads
        assert [s.round_number for s in signed if s.site == site] == [1, 2, 3]
        # Evaluation after round 3 brought the last one back.
        kept = read_countersignatures(state / "countersignatures.jsonl")
        assert [s.head for s in kept] == heads[1:] or [s.head for s in kept] == heads
