"""Replies as a SuperLink hands them over, piece by piece, from sites that send what they like."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest
from flwr.proto.message_pb2 import PullObjectResponse as Piece
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
)
from flwr.supercore.task_identity import TaskIdentity

from medfed.server.exchange import UNREADABLE
from medfed.server.reading import Reader

SITE, OTHER = 7, 8
MB = 10**6


@dataclass
class SuperLink:
    """What Flower's client of the SuperLink answers: replies, each once, and their pieces.

    Attributes:
        sent: The pieces that are there, by hash.
        given_up: Whether the upload has ended.
    """

    replies: list[Message]
    sent: dict[str, bytes]
    given_up: bool = False
    asked: list[str] = field(default_factory=list)
    confirmed: list[str] = field(default_factory=list)

    @property
    def _runtime_client(self) -> "SuperLink":
        return self

    node = Node(node_id=1)

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:
        found = [r for r in self.replies if r.metadata.reply_to_message_id in request.message_ids]
        self.replies = [reply for reply in self.replies if reply not in found]
        return PullAppMessagesResponse(
            messages_list=[message_to_proto(remove_content_from_message(r)) for r in found],
            message_object_trees=[get_object_tree(reply) for reply in found],
        )

    def PullObject(self, request: PullObjectRequest) -> Piece:
        self.asked.append(request.object_id)
        content = self.sent.get(request.object_id)
        if self.given_up:
            return Piece(object_found=False)
        if content is None:
            return Piece(object_found=True, object_available=False)
        return Piece(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request: ConfirmMessageReceivedRequest) -> None:
        self.confirmed.append(request.message_object_id)


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def question(node: int) -> Message:
    message = Message(RecordDict(), node, "train", group_id="3", ttl=60)
    message.metadata.__dict__.update(_run_id=1, _src_node_id=1)
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


def reply_to(asked: Message, num_bytes: int = 1000) -> Message:
    noise = np.random.default_rng(asked.metadata.dst_node_id).integers(0, 256, num_bytes, np.uint8)
    arrays = ArrayRecord({"w": Array(noise)})
    content = RecordDict({"arrays": arrays, "medfed": ConfigRecord({"kind": "update"})})
    return numbered(Message(content, reply_to=asked))


def numbered(message: Message) -> Message:
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


def pieces_of(message: Message) -> dict[str, bytes]:
    return {name: part.deflate() for name, part in get_all_nested_objects(message).items()}


def reading(*replies: Message, **more: Any) -> tuple[SuperLink, Reader]:
    sent = {name: body for reply in replies for name, body in pieces_of(reply).items()}
    link = SuperLink(list(replies), sent, **more)
    return link, Reader(link, MB)  # type: ignore[arg-type]


def test_replies_are_read_and_confirmed_once() -> None:
    asked = [question(SITE), question(OTHER)]
    replies = [reply_to(message) for message in asked]
    link, reader = reading(*replies)
    identifiers = [message.metadata.message_id for message in asked]
    found = list(reader.pull(identifiers))
    assert [reply.metadata.src_node_id for reply in found] == [SITE, OTHER]
    for reply, sent in zip(found, replies, strict=True):
        assert reply.metadata.__dict__ == sent.metadata.__dict__
        assert (reply.content["arrays"]["w"].numpy() == sent.content["arrays"]["w"].numpy()).all()
    assert link.confirmed == [reply.metadata.message_id for reply in replies]
    assert list(reader.pull(identifiers)) == []


def test_a_reply_that_is_still_being_sent_holds_nobody_up_and_is_read_later() -> None:
    asked = [question(SITE), question(OTHER)]
    slow, quick = (reply_to(message, 12 * MB) for message in asked)
    link, _ = reading(slow, quick)
    reader = Reader(link, 100 * MB)  # type: ignore[arg-type]
    # One that is the same in both is there.
    kept = {name: link.sent.pop(name) for name in pieces_of(slow).keys() - pieces_of(quick)}
    identifiers = [message.metadata.message_id for message in asked]
    assert [r.metadata.src_node_id for r in reader.pull(identifiers)] == [OTHER]
    assert list(reader.pull(identifiers)) == []
    assert slow.metadata.message_id not in link.confirmed
    link.sent |= kept
    assert [r.metadata.src_node_id for r in reader.pull(identifiers)] == [SITE]
    # Pieces that were there are asked for twice at most: to see that, and to have them.
    assert max(map(link.asked.count, kept)) <= 4


def test_an_upload_that_was_given_up_is_lost_on_the_way() -> None:
    asked = question(SITE)
    _, reader = reading(reply_to(asked), given_up=True)
    [found] = reader.pull([asked.metadata.message_id])
    assert found.error.code == ErrorCode.REPLY_MESSAGE_UNAVAILABLE
    assert found.metadata.reply_to_message_id == asked.metadata.message_id


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("src_node_id", OTHER),
        ("run_id", 2),
        ("reply_to_message_id", "f" * 64),
        ("dst_node_id", 5),
        ("group_id", "4"),
        ("message_type", "evaluate"),
    ],
)
def test_a_reply_that_is_another_than_was_announced_is_unreadable(name: str, value: object) -> None:
    asked = question(SITE)
    announced = reply_to(asked)
    link, reader = reading(announced)
    inner = reply_to(asked)
    inner.metadata.__dict__[f"_{name}"] = value
    link.sent[announced.metadata.message_id] = inner.deflate()
    [found] = reader.pull([asked.metadata.message_id])
    assert found.error.code == UNREADABLE
    # Held against who the SuperLink knows it is from.
    assert found.metadata.src_node_id == SITE
    assert found.metadata.reply_to_message_id == asked.metadata.message_id


@pytest.mark.parametrize("body", [b"", b"\xff" * 50, b"Message 0\0garbage", b"RecordDict 0\0"])
def test_bytes_that_are_no_message_are_unreadable(body: bytes) -> None:
    asked = question(SITE)
    announced = reply_to(asked)
    link, reader = reading(announced)
    link.sent[announced.metadata.message_id] = body
    [found] = reader.pull([asked.metadata.message_id])
    assert found.error.code == UNREADABLE


def test_a_reply_that_takes_too_much_is_not_unfolded() -> None:
    asked = question(SITE)
    _, reader = reading(reply_to(asked, 2 * MB))
    [found] = reader.pull([asked.metadata.message_id])
    assert found.error.code == UNREADABLE
