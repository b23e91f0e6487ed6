"""Forged, repeated and unfinished replies of a member, hostile ways of joining, false figures.

As in test_wicked_site: two honest sites, one wicked, and a real coordinator.
"""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacks import Signed, holding, memory_mb, write_study
from deployment import Deployment
from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from wicked import (
    SITES,
    Crafted,
    Member,
    Part,
    Replies,
    honest_digests,
    honest_reply,
    light_federation,
    members,
    packed,
)
from wicked_replies import HONEST, NAN, WICKED, stated

from medfed.common import messages
from medfed.common.messages import EvaluateReply, JoinReply
from medfed.common.study_file import load_study
from medfed.common.tasks import make_task

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

LIMIT_MB = 40


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("forged")
    with light_federation(folder, *SITES, max_upload_mb=LIMIT_MB) as deployed:
        yield deployed


@dataclass
class Forger:
    """Answers training with one forgery a round.

    Attributes:
        asked: What the first honest site was asked last.
        go: Set when that site may answer.
        kept: The wicked site's reply of the round before.
    """

    federation: Deployment
    asked: Message | None = None
    heard: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)
    kept: list[Message] = field(default_factory=list)

    def honest(self, asked: Message) -> Replies:
        """The first honest site: its messages are known to the wicked one, which waits for them."""
        if asked.metadata.message_type == messages.TRAIN:
            self.asked = asked
            self.heard.set()
            assert self.go.wait(120)
            self.go.clear()
        return [packed(honest_reply(HONEST[0], asked), asked)]

    def wicked(self, asked: Message) -> Replies:
        if asked.metadata.message_type != messages.TRAIN:
            return [packed(honest_reply(WICKED, asked), asked)]
        assert self.heard.wait(120)
        self.heard.clear()
        assert self.asked is not None
        forge = list(FORGERIES.values())[int(asked.metadata.group_id) - 1][0]
        try:
            return forge(self, asked, self.asked)
        finally:
            # Sending takes a moment longer; a poll of the other site takes longer than that.
            threading.Timer(3.0, self.go.set).start()


def plausible(asked: Message) -> Message:
    """What would pass for an update, and change the model."""
    return Message(stated(asked, num_examples=10**6), reply_to=asked)


def altered(message: Message, **metadata: Any) -> Message:
    for name, value in metadata.items():
        message.metadata.__dict__[f"_{name}"] = value
    return message


def repeat(forger: Forger, asked: Message, other: Message) -> Replies:
    replies = [*NAN(asked), plausible(asked), plausible(asked)]
    forger.kept = [reply for reply in replies if isinstance(reply, Message)]
    return replies


def as_answer_to_another(forger: Forger, asked: Message, other: Message) -> Replies:
    return [
        altered(plausible(asked), reply_to_message_id=other.metadata.message_id),
        *NAN(asked),
    ]


def as_another(forger: Forger, asked: Message, other: Message) -> Replies:
    node = other.metadata.dst_node_id
    return [
        altered(plausible(asked), src_node_id=node),
        altered(plausible(other), src_node_id=node),
        *NAN(asked),
    ]


def another_inside(forger: Forger, asked: Message, other: Message) -> Replies:
    """Announced as one's own; what is sent says that it is another site's."""
    content = stated(asked, site=HONEST[0], num_examples=10**6)
    parts = parts_of(content)
    return [Crafted(plausible(asked), parts, inner=Message(content, reply_to=other))]


def parts_of(record: Any) -> Part:
    """Return a record as it travels."""
    children = record.children or {}
    kind, _, body = record.deflate().partition(b"\0")
    return Part(kind.split(b" ")[0].decode(), body, tuple(map(parts_of, children.values())))


def a_million_records(forger: Forger, asked: Message, other: Message) -> Replies:
    reply = plausible(asked)
    tree = ObjectTree(object_id="ab" * 32)
    for number in range(10**6):
        tree.children.add(object_id=f"{number:064x}")
    request = PushMessagesRequest(
        node=Node(node_id=asked.metadata.dst_node_id),
        messages_list=[message_to_proto(altered(reply, message_id="ab" * 32))],
        message_object_trees=[tree],
    )
    key = forger.federation.sites[WICKED] / "keys" / "node.key"
    with Signed(forger.federation, key) as wicked:
        answer = wicked.post("/v1/fleet/push-messages", request.SerializeToString())
    assert answer.status_code == 413
    return NAN(asked)


# By name: what is sent, and what the record must say.
FORGERIES: dict[str, tuple[Callable[[Forger, Message, Message], Replies], str]] = {
    "a second and a third reply": (repeat, "NaN"),
    "the replies of the round before": (lambda f, m, _: [*f.kept, *NAN(m)], "NaN"),
    "a reply to another site's message": (as_answer_to_another, "NaN"),
    "a reply as another site": (as_another, "NaN"),
    "a million records": (a_million_records, "NaN"),
    "another site inside": (another_inside, "read"),
}


@pytest.fixture(scope="module")
def forged(federation: Deployment) -> list[dict[str, Any]]:
    study = write_study(
        federation.folder, "forged", rounds=len(FORGERIES), every=1000, round_timeout_s=40
    )
    forger = Forger(federation)
    with members(
        Member(federation, HONEST[0], forger.honest),
        Member(federation, HONEST[1]),
        Member(federation, WICKED, forger.wicked),
    ):
        return rounds_of(federation.run(study, "forged"))


def rounds_of(arm: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (arm / "rounds.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("number", range(1, len(FORGERIES) + 1), ids=list(FORGERIES))
def test_forged_reply_counts_for_nobody(
    number: int, federation: Deployment, forged: list[dict[str, Any]]
) -> None:
    expected = list(FORGERIES.values())[number - 1][1]
    record = forged[number - 1]
    undisturbed = honest_digests(federation.folder / "forged.toml", number, HONEST)
    assert record["weights_sha256"] == undisturbed[-1]
    assert [record["sites"][name]["status"] for name in HONEST] == ["ok", "ok"]
    wicked = record["sites"][WICKED]
    assert wicked["status"] == "rejected"
    assert expected in wicked["reason"]
    assert wicked["weight"] == 0


# Too much


def test_more_than_the_gate_lets_through_is_on_record(federation: Deployment) -> None:
    study = write_study(federation.folder, "large", rounds=2, every=1000, round_timeout_s=60)

    def wicked(asked: Message) -> Replies:
        if asked.metadata.message_type != messages.TRAIN:
            return [packed(honest_reply(WICKED, asked), asked)]
        if asked.metadata.group_id == "2":
            return NAN(asked)
        content = stated(asked)
        noise = np.random.default_rng(1).integers(0, 256, 60_000_000, np.uint8)
        content["arrays"] = ArrayRecord({"w": Array(noise)})
        # Announcing it again is no way to send more.
        return [Message(content, reply_to=asked)] * 2

    table = json.loads((federation.home / "supervisor.json").read_text())
    superlink = table["processes"]["superlink"]["pid"]
    before = memory_mb(superlink)
    with members(
        *(Member(federation, name) for name in HONEST), Member(federation, WICKED, wicked)
    ):
        first, second = rounds_of(federation.run(study, "large"))
    assert memory_mb(superlink) < before + 6 * LIMIT_MB
    site = first["sites"][WICKED]
    assert site["status"] == "rejected", site
    assert site["reason"] == f"turned away by the gate: a message of more than {LIMIT_MB} MB"
    # In the next round it is a member like any other.
    assert "NaN" in second["sites"][WICKED]["reason"]
    digests = [record["weights_sha256"] for record in (first, second)]
    assert digests == honest_digests(study, 2, HONEST)
    # The deadline was met, whatever was announced and never came.
    assert first["seconds"] < 90


# Joining


@pytest.mark.parametrize(
    "name",
    [f"../../../../tmp/\x1b]0;evilmark\x07{'x' * 100_000}", HONEST[0], ""],
    ids=["a path with escapes", "another's", "none"],
)
def test_site_that_joins_under_another_name_is_left_out(name: str, federation: Deployment) -> None:
    run = f"join-{len(name)}"
    study = write_study(federation.folder, "short", every=1000)

    def wicked(asked: Message) -> Replies:
        reply = packed(JoinReply(site="x", public_num_patients=None), asked)
        reply.content["medfed"] = ConfigRecord({**reply.content["medfed"], "site": name})  # type: ignore[dict-item]
        return [reply]

    with members(
        *(Member(federation, site) for site in HONEST), Member(federation, WICKED, wicked)
    ):
        arm = federation.run(study, run)
    [record] = rounds_of(arm)
    assert sorted(record["sites"]) == sorted(HONEST)
    assert record["weights_sha256"] == honest_digests(study, 1, HONEST)[0]
    for folder in (federation.home / "runs", federation.home / "logs"):
        assert holding(folder, [b"\x1b]0;evilmark"]) == []
    assert not [path for path in federation.folder.rglob("*evilmark*")]
    assert not list(Path("/tmp").glob("*evilmark*"))
    assert max(map(len, (arm / "events.jsonl").read_bytes().splitlines())) < 2000


# Figures

SUMS: dict[str, Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]] = {
    "wrong shape": lambda s: {**s, "matrix": np.zeros((5, 5), np.int64)},
    "negative": lambda s: {**s, "correct": np.array(-1)},
    "absurd": lambda s: {**s, "count": np.array(2**40)},
    "unknown": lambda s: {**s, "\x1b[2J": np.array(1)},
    "thirty megabytes": lambda s: {**s, "scores": np.zeros(30_000_000, np.uint8)},
}


def test_false_figures_are_left_out_and_on_record(federation: Deployment) -> None:
    study = write_study(federation.folder, "figures", rounds=len(SUMS))
    shapes = make_task(load_study(study), ()).sum_shapes()

    def wicked(asked: Message) -> Replies:
        if asked.metadata.message_type != messages.EVALUATE:
            return [packed(honest_reply(WICKED, asked), asked)]
        plain = {name: np.ones(shape, np.int64) for name, shape in shapes.items()}
        falsify = list(SUMS.values())[int(asked.metadata.group_id) - 1]
        return [packed(EvaluateReply(site=WICKED, sums=falsify(plain)), asked)]

    with members(
        *(Member(federation, name) for name in HONEST), Member(federation, WICKED, wicked)
    ):
        rounds = rounds_of(federation.run(study, "figures"))
    for kind, record in zip(SUMS, rounds, strict=True):
        # Of the honest sites alone: seven images each.
        assert record["metrics"]["num_images"] == 14, kind
        site = record["sites"][WICKED]
        assert site["metrics"] is None, kind
        # Its update was good, and is said to be; its figures were not.
        assert (site["status"], site["weight"]) == ("ok", 10), kind
        assert any("sum" in said for said in [*site["ignored"], site["reason"]]), (kind, site)
