"""A round in which one site of three sends what it likes: the others' updates count."""

import io
import pickle
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from medfed.common import messages
from medfed.common.messages import EvaluateReply, TrainReply
from medfed.common.study_file import parse_study
from medfed.server.exchange import Exchange
from medfed.server.participants import Participant
from medfed.server.strategy import FedAvgStrategy

WEIGHTS = {"w": np.zeros((2, 3), np.float32), "n": np.array(0, np.int64)}
ONES = np.ones((2, 3), np.float32)


def update(**changes: np.ndarray) -> dict[str, np.ndarray]:
    return {"w": ONES, "n": np.array(1, np.int64), **changes}


def stated(**values: Any) -> RecordDict:
    """What site-3 answers, but for the values that are given."""
    plain: dict[str, Any] = {
        "site": "site-3",
        "update": update(),
        "num_examples": 10,
        "loss": 0.5,
        "epsilon": None,
        "noise": "none",
        "ledger_head": "ab" * 32,
    }
    return messages.pack_train_reply(TrainReply(**{**plain, **values}))


@pytest.fixture(autouse=True)
def _server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def ask(num_sites: int, **sections: dict[str, Any]) -> tuple[FedAvgStrategy, list[Message]]:
    """A strategy in its first round, and what it asked of site-2, site-3, ..."""
    table = {
        "study": {"name": "s"},
        "task": {"classes": ["a", "b"]},
        "training": {"local_steps": 5},
        "privacy": {"unit": "none"},
    }
    study = parse_study({**table, **sections}, "study")
    sites = [Participant(f"site-{node}", node, None) for node in range(2, 2 + num_sites)]
    strategy = FedAvgStrategy(study, "run", sites, sites, frozen_sha256="f")
    requests = strategy.configure_train(1, messages.pack_arrays(WEIGHTS), ConfigRecord(), _Silent())
    for number, request in enumerate(requests):
        request.metadata.__dict__["_message_id"] = f"message-{number}"
    return strategy, requests


@pytest.fixture
def asked() -> tuple[FedAvgStrategy, list[Message]]:
    """Three sites were asked."""
    return ask(3)


class _Silent(Grid):
    """A grid on which answers are put by hand."""

    def __init__(self, answers: Iterable[Message] = ()) -> None:
        self.answers = list(answers)

    def set_run(self, run: object) -> None:
        raise NotImplementedError

    @property
    def run(self) -> object:  # type: ignore[override]
        raise NotImplementedError

    def create_message(self, *arguments: object, **named: object) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return [2, 3, 4]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        answers, self.answers = self.answers, []
        return answers

    def send_and_receive(self, *arguments: object, **named: object) -> Iterable[Message]:
        raise NotImplementedError


def honest(request: Message) -> Message:
    site = f"site-{request.metadata.dst_node_id}"
    return Message(stated(site=site), reply_to=request)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


class _Bomb:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return open, (str(self.marker), "w")


def packed(data: bytes, *, stype: str = "safetensors") -> RecordDict:
    content = stated()
    content["arrays"] = ArrayRecord({"safetensors": Array("uint8", (len(data),), stype, data)})
    return content


def cut_short() -> RecordDict:
    return packed(stated()["arrays"]["safetensors"].data[:-4])  # type: ignore[index]


HOSTILE: dict[str, tuple[Callable[[], RecordDict], str]] = {
    "NaN": (lambda: stated(update=update(w=ONES * np.float32(np.nan))), "NaN"),
    "infinity": (lambda: stated(update=update(w=ONES * np.float32(np.inf))), "infinite"),
    "too large for the mean": (
        lambda: stated(update=update(w=ONES * np.float32(1e30))),
        "exceeds",
    ),
    "a name too few": (lambda: stated(update={"w": ONES}), "missing"),
    "a name too many": (lambda: stated(update=update(code=np.zeros(1))), "unknown ['code']"),
    "wrong shape": (lambda: stated(update=update(w=np.ones((3, 2), np.float32))), "shape [3, 2]"),
    "no values": (lambda: stated(update=update(w=np.ones((0, 3), np.float32))), "shape [0, 3]"),
    "wrong type": (lambda: stated(update=update(w=np.ones((2, 3)))), "got float64"),
    "gigabyte": (lambda: packed(bytes(2**30)), "got 10737"),
    "not safetensors": (lambda: packed(b"", stype="pickle"), "Expected arrays as one of"),
    "NumPy's": (lambda: packed(npy(ONES), stype="numpy.ndarray"), "Expected arrays as one of"),
    "objects": (lambda: packed(npy(np.full((2, 3), None))), "damaged"),
    "cut short": (cut_short, "damaged"),
    "no arrays": (
        lambda: RecordDict({"medfed": stated()["medfed"]}),
        "Expected arrays",
    ),
    "arrays of another kind": (
        lambda: RecordDict({"medfed": stated()["medfed"], "arrays": ConfigRecord({"w": 1})}),
        "Expected arrays",
    ),
    "no record": (lambda: RecordDict(), "Expected a medfed record"),
    "no examples": (lambda: stated(num_examples=0), "examples, got 0"),
    "examples below zero": (lambda: stated(num_examples=-3), "examples, got -3"),
    "impossible examples": (lambda: stated(num_examples=2**40), "examples, got 1099511627776"),
    "examples not stated": (lambda: stated(num_examples=None), "examples, got None"),
    "epsilon below zero": (lambda: stated(epsilon=-1.0), "epsilon >= 0"),
    "epsilon of nothing": (lambda: stated(epsilon=float("nan")), "epsilon >= 0"),
    "infinite loss": (lambda: stated(loss=float("inf")), "finite training loss"),
    "unknown noise": (lambda: stated(noise="<b>loud</b>"), "another word"),
    "no ledger head": (lambda: stated(ledger_head="not a head"), "hexadecimal"),
    "another's name": (lambda: stated(site="site-2"), "another name"),
    "another answer": (
        lambda: messages.pack_evaluate_reply(EvaluateReply(site="site-3", sums=None)),
        "answered training with EvaluateReply",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_round_goes_on_without_a_bad_reply_and_its_record_says_why(
    kind: str, asked: tuple[FedAvgStrategy, list[Message]]
) -> None:
    strategy, requests = asked
    content, fragment = HOSTILE[kind]
    bad = Message(content(), reply_to=requests[1])
    arrays, _ = strategy.aggregate_train(1, [honest(requests[0]), bad, honest(requests[2])])
    assert arrays is not None
    np.testing.assert_array_equal(messages.unpack_arrays(arrays)["w"], ONES)
    record = strategy.conversation.sites["site-3"]
    assert (record.status, fragment in record.reason) == ("rejected", True), record.reason
    assert [strategy.conversation.sites[name].status for name in ("site-2", "site-4")] == ["ok"] * 2
    assert strategy.num_updates == 2


@pytest.mark.parametrize("algorithm", ["fedavg", "ditto"])
def test_sums_of_a_second_model_count_only_where_there_is_one(algorithm: str) -> None:
    strategy, requests = ask(2, federation={"algorithm": algorithm})
    sums = {"count": np.array(3, dtype=np.int64), "loss": np.array(9, dtype=np.int64)}
    bad = {**sums, "loss": np.array(9.0)} if algorithm == "ditto" else sums
    replies = [
        EvaluateReply(site="site-2", sums=sums, global_sums=bad),
        EvaluateReply(site="site-3", sums=sums, global_sums=sums if bad is not sums else None),
    ]
    strategy.aggregate_evaluate(
        1,
        [
            Message(messages.pack_evaluate_reply(reply), reply_to=asked)
            for reply, asked in zip(replies, requests, strict=True)
        ],
    )
    assert [group["sites"] for group in strategy.sums.table()] == [["site-3"]]
    assert strategy.conversation.sites["site-2"].status == "rejected"
    kept = [group["sites"] for group in strategy.global_sums.table()]
    assert kept == ([["site-3"]] if algorithm == "ditto" else [])
    figures = strategy.global_metrics
    assert figures == (strategy.conversation.sites["site-3"].global_metrics if figures else None)


def test_pickled_objects_are_not_executed(
    asked: tuple[FedAvgStrategy, list[Message]], tmp_path: Path
) -> None:
    strategy, requests = asked
    marker = tmp_path / "executed"
    bomb = _Bomb(marker)
    pickle.loads(pickle.dumps(bomb)).close()
    assert marker.exists()  # the bomb works
    marker.unlink()
    objects = npy(np.array([[bomb] * 3] * 2, dtype=object))
    contents = [packed(objects), packed(pickle.dumps(bomb)), packed(objects, stype="pickle")]
    for request, content in zip(requests, contents, strict=True):
        content["medfed"]["site"] = f"site-{request.metadata.dst_node_id}"  # type: ignore[index]
    replies = [Message(c, reply_to=r) for r, c in zip(requests, contents, strict=True)]
    assert strategy.aggregate_train(1, replies) == (None, None)
    assert {site.status for site in strategy.conversation.sites.values()} == {"rejected"}
    assert not marker.exists()


def test_oversized_update_is_rejected_without_a_copy(
    asked: tuple[FedAvgStrategy, list[Message]],
) -> None:
    strategy, requests = asked
    content = packed(bytes(2**30))
    bad = Message(content, reply_to=requests[1])
    tracemalloc.start()
    try:
        strategy.aggregate_train(1, [bad])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "Expected at most" in strategy.conversation.sites["site-3"].reason
    assert peak < 2**20


def test_update_in_another_memory_order_is_the_same_update(
    asked: tuple[FedAvgStrategy, list[Message]],
) -> None:
    strategy, requests = asked
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = stated(update=update(w=np.asfortranarray(values)))
    arrays, _ = strategy.aggregate_train(1, [Message(content, reply_to=requests[1])])
    assert arrays is not None
    np.testing.assert_array_equal(messages.unpack_arrays(arrays)["w"], values)


def test_second_reply_of_a_site_in_a_round_is_ignored(
    asked: tuple[FedAvgStrategy, list[Message]],
) -> None:
    strategy, requests = asked
    again = Message(stated(update=update(w=ONES * 100)), reply_to=requests[1])
    arrays, summary = strategy.aggregate_train(1, [honest(requests[1]), again, again])
    assert arrays is not None
    assert summary is not None
    np.testing.assert_array_equal(messages.unpack_arrays(arrays)["w"], ONES)
    assert summary["num_updates"] == 1
    assert strategy.conversation.sites["site-3"].status == "ok"


def test_update_of_a_site_that_was_not_asked_is_ignored(
    asked: tuple[FedAvgStrategy, list[Message]],
) -> None:
    strategy, requests = asked
    strategy.conversation.start_round([Participant("site-2", 2, None)])
    _, summary = strategy.aggregate_train(1, [honest(requests[0]), honest(requests[1])])
    assert summary is not None
    assert summary["num_updates"] == 1
    assert strategy.conversation.sites["site-3"].reason == "evaluation only"


def test_exchange_hands_over_one_reply_a_message_and_no_replay(
    asked: tuple[FedAvgStrategy, list[Message]],
) -> None:
    _, requests = asked
    old = Message(stated(), reply_to=requests[0])
    old.metadata.__dict__["_reply_to_message_id"] = "of the round before"
    first, second = honest(requests[0]), honest(requests[0])
    exchange = Exchange(_Silent([old, first, second, honest(requests[1])]))
    got = list(exchange.replies(requests, timeout_s=0.2))
    assert [message.metadata.reply_to_message_id for message in got] == ["message-0", "message-1"]
    assert got[0] is first
    assert exchange.failures == {4: "late"}


def answers(requests: list[Message], values: list[float]) -> list[Message]:
    return [
        Message(
            stated(
                site=f"site-{request.metadata.dst_node_id}",
                update=update(w=ONES * np.float32(value)),
                num_examples=1000 if value > 10 else 1,
            ),
            reply_to=request,
        )
        for request, value in zip(requests, values, strict=False)
    ]


ROBUST = {"federation": {"min_sites": 5}, "aggregation": {"rule": "multi_krum", "num_byzantine": 1}}


def test_robust_rule_of_the_study_is_used_and_says_whom_it_left_out() -> None:
    robust = {**ROBUST, "aggregation": {**ROBUST["aggregation"], "max_norm": 100.0}}
    strategy, requests = ask(5, **robust)
    arrays, _ = strategy.aggregate_train(1, answers(requests, [1, 2, 1, 1e6, 2]))
    assert arrays is not None
    np.testing.assert_array_equal(messages.unpack_arrays(arrays)["w"], ONES * np.float32(1.5))
    records = strategy.conversation.sites
    assert {record.status for record in records.values()} == {"ok"}
    # As many examples as a site likes to state: each counts once.
    assert {record.weight for record in records.values()} == {1}
    assert {name: record.reason for name, record in records.items() if record.reason} == {
        "site-5": "scaled from norm 2.449e+06 to 100; not selected by multi_krum"
    }


def test_round_with_too_few_updates_for_the_rule_is_not_aggregated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    strategy, requests = ask(5, **ROBUST)
    assert strategy.aggregate_train(1, answers(requests, [1, 1, 1, 1])) == (None, None)
    assert "4 usable updates; multi_krum needs 5" in caplog.text
    # A fifth that cannot be used is none.
    strategy, requests = ask(5, **ROBUST)
    replies = answers(requests, [1, 1, 1, 1, float("nan")])
    assert strategy.aggregate_train(1, replies) == (None, None)
    assert strategy.conversation.sites["site-6"].status == "rejected"
