"""A round of compressed updates in which one site sends what it likes: the others' count."""

from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from medfed.common import messages
from medfed.common.compression import INDICES, SCALES, VALUES, decode, encode
from medfed.common.messages import TrainReply
from medfed.common.state_dicts import StateDict
from medfed.common.study_file import parse_study
from medfed.server.participants import Participant
from medfed.server.strategy import FedAvgStrategy

WEIGHTS = {"w": np.zeros((40, 30), np.float32), "n": np.array(0, np.int64)}


@pytest.fixture(autouse=True)
def _server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def update(site: int) -> StateDict:
    drawn = np.random.default_rng(site).normal(size=(40, 30)).astype(np.float32)
    return {"w": drawn, "n": np.array(1, np.int64)}


def begun(how: str) -> tuple[FedAvgStrategy, list[Message]]:
    study = parse_study(
        {
            "study": {"name": "s"},
            "task": {"classes": ["a", "b"]},
            "training": {"local_steps": 5},
            "federation": {"weighting": "uniform"},
            "privacy": {"unit": "none"},
            "compression": {"update": how},
        },
        "study",
    )
    sites = [Participant(f"site-{node}", node, None) for node in (2, 3, 4)]
    strategy = FedAvgStrategy(study, "run", sites, [], frozen_sha256="f", parameters=["w"])
    requests = strategy.configure_train(1, messages.pack_arrays(WEIGHTS), ConfigRecord(), None)  # type: ignore[arg-type]
    for number, request in enumerate(requests):
        request.metadata.__dict__["_message_id"] = f"message-{number}"
    return strategy, requests


def packed(strategy: FedAvgStrategy, site: int, **changes: Any) -> RecordDict:
    sent = encode(update(site), ["w"], strategy._study.compression)
    reply = TrainReply(
        site=f"site-{site}", update={**sent, **changes}, num_examples=10, loss=0.5, epsilon=None,
        noise="none", ledger_head="ab" * 32,
    )  # fmt: skip
    return messages.pack_train_reply(reply)


def aggregated(strategy: FedAvgStrategy, replies: list[Message]) -> StateDict:
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    return messages.unpack_arrays(arrays)


@pytest.mark.parametrize("how", ["fp16", "int8", "top_k"])
def test_decoded_updates_are_added_exactly_in_any_order(how: str) -> None:
    found = []
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        strategy, requests = begun(how)
        replies = [Message(packed(strategy, 2 + i), reply_to=requests[i]) for i in order]
        found.append(aggregated(strategy, replies))
        section = strategy._study.compression
    assert {new["w"].tobytes() for new in found} == {found[0]["w"].tobytes()}
    decoded = [
        decode(encode(update(site), ["w"], section), WEIGHTS, ["w"], section)["w"]
        for site in (2, 3, 4)
    ]
    mean = np.mean([one.astype(np.float64) for one in decoded], axis=0).astype(np.float32)
    np.testing.assert_allclose(found[0]["w"], mean, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("how", "changes", "reason"),
    [
        ("fp16", {"w": update(3)["w"]}, "at most"),
        ("int8", {SCALES: np.array([np.inf], np.float32)}, "NaN or infinite"),
        ("int8", {SCALES: np.array([1e30], np.float32)}, "scales from 0"),
        ("int8", {"w": np.full((40, 30), -128, np.int8)}, "-128"),
        ("top_k", {INDICES: np.full(12, 7, np.uint32)}, "each once"),
        ("top_k", {INDICES: np.arange(1189, 1201, dtype=np.uint32)}, "below 1200"),
        ("top_k", {VALUES: np.full(12, np.nan, np.float32)}, "NaN or infinite"),
        ("top_k", {VALUES: np.zeros(40_000, np.float32)}, "at most"),
        ("top_k", {"bomb": np.zeros(3, np.int8)}, "unknown"),
    ],
    ids=["whole", "scale", "huge scale", "level", "twice", "beyond", "nan", "bomb", "name"],
)
def test_one_wrong_update_is_rejected_and_the_others_count(
    how: str, changes: dict[str, Any], reason: str
) -> None:
    strategy, requests = begun(how)
    if "w" in changes and how == "fp16":
        # A message of the uncompressed size: nothing of it is unpacked.
        changes = {"w": np.zeros((40, 30, 30), np.float16)}
    contents = [packed(strategy, 2), packed(strategy, 3, **changes), packed(strategy, 4)]
    pairs = zip(contents, requests, strict=True)
    new = aggregated(strategy, [Message(content, reply_to=asked) for content, asked in pairs])
    site = strategy.conversation.sites["site-3"]
    assert site.status == "rejected"
    assert reason in site.reason
    assert site.update_bytes == 0
    assert strategy.num_updates == 2

    again, requests = begun(how)
    replies = [Message(packed(again, 2), reply_to=requests[0])]
    replies.append(Message(packed(again, 4), reply_to=requests[2]))
    assert aggregated(again, replies)["w"].tobytes() == new["w"].tobytes()


def test_only_updates_of_rounds_that_count_are_told_to_their_sites() -> None:
    strategy, requests = begun("top_k")
    conversation = strategy.conversation
    aggregated(strategy, [Message(packed(strategy, 2), reply_to=requests[0])])
    assert conversation.counted == {}  # the round lacked its quorum, say
    conversation.note_counted(1, conversation.sites)
    assert conversation.counted == {"site-2": 1}
    [two, three, _] = strategy.configure_train(
        2,
        messages.pack_arrays(WEIGHTS),
        ConfigRecord(),
        None,  # type: ignore[arg-type]
    )
    told = [messages.unpack_model_request(m.content).counted_round for m in (two, three)]
    assert told == [1, 0]
