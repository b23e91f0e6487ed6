"""Split learning in whole runs: FedAvg's bits on any grid and through kills; what leaves a site."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from medfed.client.app import app as client_app
from medfed.client.releases import read_releases
from medfed.client.site import load_site
from medfed.common import messages
from medfed.common.messages import ACTIVATIONS, FEATURES, GRADIENT, SplitReply, TrainReply
from medfed.common.state_dicts import StateDict
from medfed.server import loop
from medfed.server.records import ArmFolder, RoundRecord
from medfed.simulations.auditing.findings import Status
from medfed.simulations.auditing.ledger_part import audit_run_ledgers
from medfed.simulations.reporting.report import write_report
from medfed.simulations.study import Options, run_study

STUDY = """
[study]
name = "split"
seed = 3
[task]
classes = ["normal", "nodule", "effusion", "cardiomegaly"]
[data]
image_size = 16
[training]
rounds = 3
local_steps = 3
batch_size = 8
learning_rate = 0.05
[federation]
min_sites = 2
[evaluation]
every = 3
[privacy]
unit = "none"
[simulation]
dataset = "phantom"
arms = ["federated"]
max_epsilon = 50
resamples = 20
[simulation.phantom]
num_patients = 80
max_images_per_patient = 1
[simulation.partition]
num_sites = 3
"""
SPLIT = "federation.algorithm=split"
EPOCHS = STUDY.replace("local_steps = 3", "local_epochs = 2")
SITES = ("site-1", "site-2", "site-3")
FRONT = ("features.0.weight", "features.0.bias")
BACK = ("classifier.3.weight", "classifier.3.bias")
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def prepare(prepared_run: Run) -> Run:
    """Makes a prepared run of the study above."""

    def make(*overrides: str, text: str = STUDY) -> Path:
        return prepared_run(text, overrides)

    return make


def arm(folder: Path) -> ArmFolder:
    return ArmFolder(folder / "arms" / "federated")


def records(folder: Path) -> list[RoundRecord]:
    return arm(folder).read_rounds()


def facts(folder: Path) -> list[Any]:
    """All that split learning has in common with FedAvg."""
    return [
        (arm(folder).folder / "model.safetensors").read_bytes(),
        *(
            (r.weights_sha256, r.average_sha256, r.metrics,
             {n: (s.status, s.weight, s.loss, s.metrics) for n, s in r.sites.items()})
            for r in records(folder)
        ),
    ]  # fmt: skip


VIEWS = ("augmentation.flip=horizontal", "augmentation.multiplicity=2")
BOUNDS = ("federation.ema_decay=0.5", "aggregation.max_norm=0.1", "federation.fraction=0.7")
ADAM = ("training.optimizer=adam", "training.learning_rate=0.01")
# Two rounds of a pass each: a step of this network takes as long as a round of the other.
RESNET = ("model.name=resnet18", "training.rounds=2", "training.local_epochs=1")
BATCH_NORM = (*RESNET, "model.norm=batch", "data.image_size=34")
GROUP_NORM = (*RESNET, "training.weight_decay=0.01")
MEDIAN = ("aggregation.rule=median", "aggregation.num_byzantine=1", "federation.min_sites=3")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ((*ADAM, *VIEWS, "training.rounds=2"), EPOCHS),
        *(
            pytest.param(changes, text, marks=pytest.mark.slow)
            for changes, text in (
                ((), STUDY),
                (VIEWS, STUDY),
                (BOUNDS, STUDY),
                (BATCH_NORM, EPOCHS),
                (GROUP_NORM, EPOCHS),
                (MEDIAN, EPOCHS),
            )
        ),
    ],
    ids=["adam", "sgd", "views", "bounds", "batch norm", "group norm", "median"],
)
def test_split_ends_in_the_bits_of_fedavg(serial: Run, changes: tuple[str, ...], text: str) -> None:
    whole, split = serial(*changes, text=text), serial(SPLIT, *changes, text=text)
    assert facts(split) == facts(whole)
    found = records(split)
    assert len({record.weights_sha256 for record in found}) == len(found) > 1


@pytest.mark.slow
def test_deeper_front_ends_in_the_same_bits(serial: Run) -> None:
    assert facts(serial(SPLIT, "federation.front_stages=2")) == facts(serial())


@pytest.mark.parametrize(
    "moment", ["first update", pytest.param("checkpoint", marks=pytest.mark.slow)]
)
def test_threads_killed_and_resumed_end_in_the_bits_of_fedavg(
    prepare: Run, serial: Run, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    folder = prepare(SPLIT)
    with monkeypatch.context() as patch:
        if moment == "checkpoint":
            die_at_checkpoint(patch, 2)
        else:
            die_after_an_update(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            run_study(folder, Options(workers=2))
    assert len(records(folder)) == 1
    run_study(folder, Options(workers=2))
    assert facts(folder) == facts(serial())


def die_at_checkpoint(patch: pytest.MonkeyPatch, number: int) -> None:
    save = loop.save_checkpoint

    def dying(*arguments: Any) -> None:
        if arguments[1].record.round_number == number:
            raise KeyboardInterrupt
        save(*arguments)

    patch.setattr(loop, "save_checkpoint", dying)


def die_after_an_update(patch: pytest.MonkeyPatch, number: int) -> None:
    emit = ArmFolder.emit

    def dying(self: ArmFolder, event: str, **values: Any) -> None:
        emit(self, event, **values)
        if event == "trained" and values["round"] == number:
            raise KeyboardInterrupt

    patch.setattr(ArmFolder, "emit", dying)


class Sites(ClientApp):
    """The sites, with `change` between them and the server."""

    def __init__(self, change: Callable[[str, Message, Context, Message], Message]) -> None:
        super().__init__()
        self._change = change

    def __call__(self, message: Message, context: Context) -> Message:
        site = Path(str(context.node_config["site"])).parent.name
        return self._change(site, message, context, client_app(message, context))


Change = Callable[[str, Message, Context, Message], Message]


@pytest.fixture
def run_with(prepare: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Runs a study in which `change` sees and may replace every answer."""

    def run(change: Change, *overrides: str) -> Path:
        folder = prepare(*overrides)
        monkeypatch.setattr("medfed.simulations.study.client_app", Sites(change))
        run_study(folder, Options(workers=1))
        return folder

    return run


def arrays_of(content: RecordDict) -> StateDict:
    return messages.unpack_arrays(content["arrays"]) if "arrays" in content else {}


def test_no_image_and_no_label_leaves_and_the_site_gets_no_middle(run_with: Any) -> None:
    sent: list[tuple[str, RecordDict, RecordDict]] = []

    def look(site: str, asked: Message, context: Context, reply: Message) -> Message:
        sent.append((asked.metadata.message_type, asked.content, reply.content))
        return reply

    run_with(look, SPLIT)
    steps = [entry for entry in sent if entry[0] in messages.TRAINING]
    kinds = {messages.SPLIT_FRONT: {ACTIVATIONS, "update"}, messages.SPLIT_BACK: {GRADIENT}}
    assert len(steps) == 3 * 3 * (2 * 3 + 1)  # sites, rounds, messages
    for asked, request, reply in steps:
        values, arrays = dict(reply["medfed"]), arrays_of(reply)
        kind = values.pop("kind")
        assert kind in kinds[asked]
        about = {"version", "site"}
        if kind == "update":
            assert set(values) == about | {"num_examples", "loss", "noise", "ledger_head"}
            assert set(arrays) == {*FRONT, *BACK}
        else:
            assert set(values) == about
            assert set(arrays) == {kind}
            # No image's shape, nor a number for each: 32 maps of an image, or 128 numbers.
            assert arrays[kind].shape[0] in range(1, 9)
            assert arrays[kind].shape[1:] == ((32, 7, 7) if kind == ACTIVATIONS else (128,))
        assert {array.dtype for array in arrays.values()} == {np.dtype("float32")}
        got = set(arrays_of(request))
        begins = request["medfed"]["step"] == 0 and asked == messages.SPLIT_FRONT
        assert got == (
            {*FRONT, *BACK} if begins else {FEATURES} if kind == GRADIENT else {GRADIENT}
        )


def test_everything_that_leaves_is_listed_and_counted(serial: Run) -> None:
    folder = serial(SPLIT)
    for name in SITES:
        site = load_site(arm(folder).folder / "sites" / name / "site.toml")
        releases, torn = read_releases(site.state_folder)
        assert torn == 0
        for record in records(folder):
            own = [one for one in releases if one.round_number == record.round_number]
            kinds = [one.kind for one in own if one.kind != "sums"]
            assert kinds == [ACTIVATIONS, GRADIENT] * 3 + ["update"]
            sent = sum(one.num_bytes for one in own if one.kind != "sums")
            assert record.sites[name].update_bytes == sent
        [activations] = [q for q in releases[1].quantities if q.name == ACTIVATIONS]
        assert activations.cost == "activations of 8 training images, no DP"
        assert activations.protection == "none"
        assert activations.num_bytes > 8 * 32 * 7 * 7 * 4


def without(site: str, number: int, step: int) -> Change:
    """A site whose answer to half a step (or whole training) of a round is lost for good."""

    def change(name: str, asked: Message, context: Context, reply: Message) -> Message:
        kind, group = asked.metadata.message_type, asked.metadata.group_id
        if (name, group) != (site, str(number)) or kind not in messages.TRAINING:
            return reply
        if kind == messages.TRAIN or asked.content["medfed"]["step"] == step:
            return Message(Error(2, "dead"), reply_to=asked)
        return reply

    return change


@pytest.mark.slow
def test_site_that_dies_in_a_step_is_missing_as_with_fedavg(run_with: Any) -> None:
    split = run_with(without("site-2", 2, 1), SPLIT)
    assert [record.sites["site-2"].status for record in records(split)] == ["ok", "failed", "ok"]
    whole = run_with(without("site-2", 2, 1))
    assert facts(split) == facts(whole)


def test_site_that_forgets_a_round_refuses_and_begins_afresh(run_with: Any) -> None:
    def restarted(name: str, asked: Message, context: Context, reply: Message) -> Message:
        if (name, asked.metadata.group_id) == ("site-1", "2"):
            context.state.clear()
        return reply

    folder = run_with(restarted, SPLIT)
    found = [records(folder)[number].sites["site-1"] for number in range(3)]
    assert [site.status for site in found] == ["ok", "refused", "ok"]
    assert found[1].reason == "internal"


def spoiled(reply: SplitReply, how: str) -> RecordDict:
    """Return what a hostile site makes of its answer to step 1."""
    array = reply.array.copy()
    if how == "nan":
        array.flat[3] = np.nan
    elif how == "shape":
        array = array[..., :-1]
    elif how == "type":
        array = array.astype(np.float64)
    elif how == "fewer images":
        array = array[:-1]
    elif how == "no images":
        array = array[:0]
    elif how == "too large":
        array = np.zeros((9000, *array.shape[1:]), np.float32)
    elif how == "other kind":
        other = GRADIENT if reply.name == ACTIVATIONS else ACTIVATIONS
        return messages.pack_split_reply(replace(reply, name=other))
    elif how == "early update":
        update = TrainReply(
            site=reply.site, update={"w": array}, num_examples=9, loss=0.1, epsilon=None,
            noise="none",
        )  # fmt: skip
        return messages.pack_train_reply(update)
    elif how == "another name":
        return messages.pack_split_reply(replace(reply, site="site-2"))
    return messages.pack_split_reply(replace(reply, array=array))


_REJECTED = [
    ("nan", messages.SPLIT_FRONT, "NaN"),
    ("nan", messages.SPLIT_BACK, "NaN"),
    ("shape", messages.SPLIT_FRONT, "32, 7, 7]"),
    ("type", messages.SPLIT_BACK, "got float64"),
    ("fewer images", messages.SPLIT_BACK, "batch of 8 to 8 images, got 7"),
    ("no images", messages.SPLIT_FRONT, "batch of 1 to 8 images, got 0"),
    ("too large", messages.SPLIT_FRONT, "Expected at most"),
    ("other kind", messages.SPLIT_FRONT, "Expected activations in step 1, got gradient"),
    ("early update", messages.SPLIT_FRONT, "Expected activations in step 1, got an update"),
    ("early update", messages.SPLIT_BACK, "Expected gradient in step 1, got an update"),
    ("another name", messages.SPLIT_BACK, "calls itself another name"),
]


@pytest.mark.parametrize(
    ("how", "half", "reason"),
    [
        *_REJECTED[:2],
        *(pytest.param(*case, marks=pytest.mark.slow) for case in _REJECTED[2:]),
    ],
)
def test_server_rejects_what_no_batch_can_give(
    run_with: Any, how: str, half: str, reason: str
) -> None:
    def hostile(name: str, asked: Message, context: Context, reply: Message) -> Message:
        about = (name, asked.metadata.group_id, asked.metadata.message_type)
        if about != ("site-3", "1", half) or asked.content["medfed"]["step"] != 1:
            return reply
        answer = messages.unpack_reply(reply.content)
        assert isinstance(answer, SplitReply)
        return Message(spoiled(answer, how), reply_to=asked)

    folder = run_with(hostile, SPLIT, "training.rounds=1", "training.local_steps=2")
    [record] = records(folder)
    site = record.sites["site-3"]
    assert (site.status, reason in site.reason) == ("rejected", True), site.reason
    assert record.sites["site-1"].status == record.sites["site-2"].status == "ok"
    assert site.bytes_up > 0


@pytest.mark.slow
def test_site_sends_no_more_batches_than_the_study_has(run_with: Any) -> None:
    def endless(name: str, asked: Message, context: Context, reply: Message) -> Message:
        if name != "site-3" or messages.kind_of(reply.content) != "update":
            return reply
        more = np.zeros((8, 32, 7, 7), np.float32)
        content = messages.pack_split_reply(SplitReply(site=name, name=ACTIVATIONS, array=more))
        return Message(content, reply_to=asked)

    folder = run_with(endless, SPLIT, "training.rounds=1")
    site = records(folder)[0].sites["site-3"]
    assert (site.status, site.reason) == (
        "rejected", "Expected an update after 3 steps, got activations.",
    )  # fmt: skip


def test_site_whose_policy_does_not_allow_it_sends_nothing(prepare: Run) -> None:
    folder = prepare(SPLIT, "training.rounds=1")
    path = arm(folder).folder / "sites" / "site-1" / "site.toml"
    assert "allow_activations = true\n" in path.read_text()
    path.write_text(path.read_text().replace("allow_activations = true\n", ""))
    run_study(folder, Options(workers=1))
    assert set(records(folder)[0].sites) == {"site-2", "site-3"}
    releases, _ = read_releases(load_site(path).state_folder)
    assert {release.kind for release in releases} == {"refusal"}
    other = prepare("training.rounds=1")
    for path in arm(other).folder.glob("sites/*/site.toml"):
        assert "allow_activations" not in path.read_text()


def test_report_and_audit_take_a_split_run(serial: Run) -> None:
    folder = serial(SPLIT)
    write_report(folder)
    assert "front_stages" in (folder / "report.html").read_text()

    def failed() -> list[str]:
        findings = audit_run_ledgers(folder, delta=1e-3).findings
        return [finding.detail for finding in findings if finding.status is Status.FAIL]

    assert failed() == []
    found = records(folder)
    starts = {record.sites["site-1"].start_sha256 for record in found}
    assert len(starts) == 3
    found[1].sites["site-1"].start_sha256 = "0" * 64
    arm(folder).rewrite_rounds(found)
    assert any("not sent in this round" in detail for detail in failed())
