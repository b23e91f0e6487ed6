"""The worker's side of the SuperNode's Runtime API: take a message, hand in the reply.

In Flower a `flower-superexec` takes each message and starts a `flwr-clientapp` for it, which
unpacks the bundle and loads what it names. Here a process that stays takes them, and nothing of a
bundle is ever unpacked: its bytes are hashed and dropped.
"""

import contextlib
import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
from flwr.app import Context, Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import context_from_proto, message_from_proto
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime.run_clientapp import push_message, push_task_output

from medfed.common.errors import MessageError
from medfed.common.files import read_json, write_secret
from medfed.common.messages.unfolding import check_unfolded

log = logging.getLogger(__name__)

_COMPONENT = "flwr-clientapp"
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
# A claim without a sign of life ends after a minute or so, and the message with it.
_HEARTBEAT_S = 10.0


@dataclass(frozen=True)
class Received:
    """A message as it came.

    Attributes:
        message: The message.
        context: Flower's context; what is kept in its state comes back with the next message.
        bundle_sha256: Of the bundle's bytes, worked out here.
    """

    message: Message
    context: Context
    bundle_sha256: str


class UnreadableError(Exception):
    """A message that cannot be read. It must be answered all the same: a SuperNode waits for that.

    Attributes:
        metadata: As announced.
        context: Flower's context.
    """

    def __init__(self, metadata: Metadata, context: Context) -> None:
        super().__init__("A message cannot be read.")
        self.metadata = metadata
        self.context = context


class TaskSource:
    """Where messages come from: the SuperNode at `address`, to whoever knows the secret."""

    def __init__(self, address: str, secret: bytes) -> None:
        self._address = address
        self._client = _client(
            address,
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={_ACQUIRE}),
        )

    def take(self) -> "Task | None":
        """Claim the next message; None if there is none now.

        Raises:
            httpx.HTTPError: The SuperNode is not there, or refuses.
        """
        # Only client apps: what Flower calls agents, models and connectors is never run here.
        request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        answer = self._client.AcquireTask(request)
        return Task(self._address, answer.token) if answer.token else None


class Task:
    """A claimed message. Signs of life are sent while the block lasts."""

    def __init__(self, address: str, token: str) -> None:
        self.token = token
        self._client = _client(
            address,
            RuntimeVersionHttpInterceptor(component_name=_COMPONENT),
            RuntimeTokenHttpInterceptor(token),
        )
        self._done = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="task heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._beating.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._beating.join()
        self._client.close()

    def receive(self, most_bytes: float) -> Received:
        """Return the message.

        Args:
            most_bytes: The largest that is taken.

        Raises:
            httpx.HTTPError: The SuperNode is not there, or the claim has ended.
            RuntimeError: There is no message.
            UnreadableError: It is none, or too large.
        """
        # As Flower's `pull_task_input` does it, which reads whatever bytes it is given.
        given = self._client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id = given.task_id
        TaskIdentity.run_id = given.run.run_id
        TaskIdentity.node_id = given.context.node_id
        context = context_from_proto(given.context)
        found = self._client.PullMessages(PullAppMessagesRequest())
        if not found.messages_list:
            raise RuntimeError("No message came with a claim.")
        [tree] = found.message_object_trees
        # What was announced, not what the message says of itself: the reply is judged by it.
        metadata = message_from_proto(found.messages_list[0]).metadata
        metadata.__dict__["_message_id"] = tree.object_id
        content = self._content(tree, context, metadata, most_bytes)
        return Received(
            make_message(metadata=metadata, content=content),
            context,
            hashlib.sha256(given.fab.content).hexdigest(),
        )

    def _content(
        self, tree: ObjectTree, context: Context, metadata: Metadata, most_bytes: float
    ) -> RecordDict:
        node = Node(node_id=context.node_id)
        pull = make_pull_object_fn_protobuf(self._client.PullObject, node, context.run_id)
        confirm = make_confirm_message_received_fn_protobuf(
            self._client.ConfirmMessageReceived, node, context.run_id
        )
        try:
            pieces = pull_objects([part.object_id for part in iterate_object_tree(tree)], pull)
            confirm(tree.object_id)
            check_unfolded(pieces, most_bytes)
            message = inflate_object_from_contents(tree.object_id, pieces)
            if not isinstance(message, Message):
                raise MessageError(f"Expected a message, got {type(message).__name__}.")
            return message.content
        except httpx.HTTPError:
            raise
        except Exception as error:  # a server may send anything
            raise UnreadableError(metadata, context) from error

    def reply(self, reply: Message, context: Context) -> None:
        """Hand in the reply, and what Flower is to keep in its context.

        Raises:
            httpx.HTTPError: The SuperNode is not there, or the claim has ended.
        """
        push_message(self._client, reply, context)
        push_task_output(self._client, context, SubStatus.COMPLETED, "")

    def fail(
        self,
        metadata: Metadata,
        context: Context,
        code: int = ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
    ) -> None:
        """Say that there will be no reply. Only a code leaves: an exception may quote anything."""
        error = Error(code, "see the site's own log")
        asked = make_message(metadata=metadata, content=RecordDict())
        push_message(self._client, Message(error, reply_to=asked), context)
        push_task_output(self._client, None, SubStatus.FAILED, "")

    def _beat(self) -> None:
        while not self._done.wait(_HEARTBEAT_S):
            # An ended claim is noticed when the reply is handed in. Until then the work goes on:
            # a finished reply is kept, and answers the same request when it comes again.
            with contextlib.suppress(httpx.HTTPError):
                self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest())


@dataclass(frozen=True)
class Leftover:
    """The message that a worker had in hand, for the case that it does not live to answer it."""

    address: str
    token: str
    metadata: dict[str, Any]

    def give_up(self) -> None:
        """Answer it with an error, so that nobody waits until the claim ends by itself.

        The error is that the reply was lost, as it was: the coordinator asks for it again.
        """
        metadata = Metadata(**self.metadata)
        context = Context(
            run_id=metadata.run_id,
            node_id=metadata.dst_node_id,
            node_config={},
            state=RecordDict(),
            run_config={},
        )
        task = Task(self.address, self.token)
        with contextlib.suppress(httpx.HTTPError, RuntimeError), task:
            task.fail(metadata, context, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)


@contextlib.contextmanager
def in_hand(file: Path, address: str, task: Task, metadata: Metadata) -> Iterator[None]:
    """Keep on disk, for the time of the block, which message is being answered."""
    names = ("run_id", "message_id", "src_node_id", "dst_node_id", "reply_to_message_id")
    more = ("group_id", "created_at", "ttl", "message_type")
    known = {name: getattr(metadata, name) for name in (*names, *more)}
    content = {"address": address, "token": task.token, "metadata": known}
    write_secret(file, json.dumps(content).encode())
    yield
    # Not after an exception: whoever comes next gives the message up.
    file.unlink(missing_ok=True)


def leftover(file: Path) -> Leftover | None:
    """Return the message that an earlier worker left unanswered, once."""
    if not file.exists():
        return None
    try:
        table = read_json(file)
        return Leftover(str(table["address"]), str(table["token"]), dict(table["metadata"]))
    except Exception as error:
        log.warning("What the last worker had in hand cannot be read: %s", error)
        return None
    finally:
        file.unlink(missing_ok=True)


def _client(address: str, *interceptors: Any) -> RuntimeHttpClient:
    # No retry invoker of Flower's: on a refusal it sends this process a SIGINT.
    client: RuntimeHttpClient = RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=list(interceptors),
    )
    return client
