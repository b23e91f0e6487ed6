"""A SuperLink's own bookkeeping in this process, with sites that die and are cut off.

Flower's `InMemoryGrid` and `InMemoryLinkState` are what a SuperLink answers with: who is online by
heartbeats, messages that are dropped when their node is not, one reply a message. Only HTTP and the
processes around it are left out.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.server.superlink.linkstate import InMemoryLinkState, LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, TaskType
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid.inmemory_grid import InMemoryGrid

# Flower takes a node for offline after two intervals.
HEARTBEAT_S = 0.5
_POLL_S = 0.01
App = Callable[[Message, Context], Message | None]


class Killed(SystemExit):
    """What an app raises that its node's death interrupts."""


def received(message: Message) -> Message:
    """Return the message as its receiver gets it: through bytes, sharing nothing."""
    content = recorddict_to_proto(message.content).SerializeToString()
    return make_message(
        metadata=deepcopy(message.metadata),
        content=recorddict_from_proto(ProtoRecordDict.FromString(content)),
    )


@dataclass
class Node:
    """A site's SuperNode: pulls a message, has it answered, pushes the reply, and so on."""

    state: InMemoryLinkState
    node_id: int
    app: App
    config: dict[str, str]
    connected: bool = True
    handled: list[tuple[str, str]] = field(default_factory=list)
    _life: int = 0
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Start it, or start it again: it knows nothing of what it was asked before."""
        self._life += 1
        self.connected = True
        while not self.state.activate_node(self.node_id, HEARTBEAT_S):
            time.sleep(_POLL_S)  # as a SuperNode that is still taken for online
        context = Context(
            run_id=1, node_id=self.node_id, node_config=self.config, state=RecordDict(),
            run_config={},
        )  # fmt: skip
        for target, arguments in ((self._beat, ()), (self._work, (context,))):
            thread = threading.Thread(target=target, args=(self._life, *arguments), daemon=True)
            thread.start()
            self._threads.append(thread)

    def kill(self) -> None:
        """End it as kill -9 does: without a word, and with all that it was working on."""
        self._life += 1

    def wait(self) -> None:
        """Wait until its threads have ended."""
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()

    def _beat(self, life: int) -> None:
        while self._life == life:
            if self.connected:
                self.state.acknowledge_node_heartbeat(self.node_id, HEARTBEAT_S)
            time.sleep(HEARTBEAT_S / 2)

    def _work(self, life: int, context: Context) -> None:
        while self._life == life:
            found = self.state.get_message_ins(self.node_id, limit=1) if self.connected else []
            for message in found:
                self._answer(life, message, context)
            time.sleep(_POLL_S)

    def _answer(self, life: int, message: Message, context: Context) -> None:
        self.handled.append((message.metadata.message_type, message.metadata.group_id))
        message = received(message)
        try:
            answer = self.app(message, context)
        except Killed:
            return
        except Exception as error:
            answer = Message(Error(code=2, reason=str(error)), reply_to=message)
        if answer is None:  # its upload failed: a SuperNode forgets it
            return
        reply = received(answer) if answer.has_content() else answer
        while self._life == life and not self.connected:
            time.sleep(_POLL_S)
        if self._life == life:
            reply.metadata.__dict__["_message_id"] = str(uuid4())
            self.state.store_message_res(reply)


class Link:
    """The SuperLink, with one running run; `grid` is what its ServerApp gets."""

    def __init__(self) -> None:
        factory = LinkStateFactory(
            FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory()
        )
        state = factory.state()
        assert isinstance(state, InMemoryLinkState)
        self.state = state
        self.nodes: dict[str, Node] = {}
        run_id = self.state.create_run(
            None, None, None, {}, NOOP_FEDERATION_ID, None, None, TaskType.SERVER_APP
        )
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run_id, 0, 1
        self.grid = InMemoryGrid(factory)
        [run] = self.state.get_run_info(run_ids=[run_id])
        self.grid.set_run(run)

    def add(self, name: str, app: App, *, registered: str | None = None, site: str = "") -> Node:
        """Register a node and start it.

        Args:
            name: To find it in `nodes`.
            app: What answers.
            registered: The name that its key is registered under; None for none.
            site: Its site.toml.
        """
        node_id = self.state.create_node(
            "owner", "owner", name.encode(), HEARTBEAT_S, name=registered
        )
        self.nodes[name] = Node(self.state, node_id, app, {"site": site})
        self.nodes[name].start()
        return self.nodes[name]


@contextmanager
def superlink() -> Iterator[Link]:
    """A SuperLink for the time of the block."""
    link = Link()
    try:
        yield link
    finally:
        for node in link.nodes.values():
            node.kill()
        for node in link.nodes.values():
            node.wait()
