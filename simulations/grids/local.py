"""`LocalGrid`: Flower's Grid in one process. The default for one machine.

Every message goes through Flower's own protobuf, so that neither side can share with the other, by
accident, what might change. Sites run one after the other, or in threads:
PyTorch releases the interpreter lock while it computes, a thread shares the process' memory and
imports, and each keeps its own network. Results do not depend on the number of workers.
"""

import logging
import queue
import threading
import traceback
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self, cast
from uuid import uuid4

from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from medfed.client.workspace import keep_freed_memory

log = logging.getLogger(__name__)

_SERVER_NODE = 1
_PULL_WAIT_S = 0.5
_CLIENT_APP_RAISED = 2  # Flower's ErrorCode for an exception in a ClientApp


class LocalGrid(Grid):
    """Runs `client_app` for each message, at `workers` sites at a time.

    Args:
        client_app: The app that sites run.
        sites: Node identifier to that site's `site.toml`.
        workers: Sites at a time.
        run_id: Flower's number for the run.
    """

    pull_waits = True

    def __init__(
        self, client_app: ClientApp, sites: Mapping[int, Path], *, workers: int = 1, run_id: int = 1
    ) -> None:
        self._client_app = client_app
        self._run_id = run_id
        self._contexts = {
            node_id: Context(
                run_id=run_id,
                node_id=node_id,
                node_config={"site": str(path)},
                state=RecordDict(),
                run_config={},
            )
            for node_id, path in sites.items()
        }
        keep_freed_memory()
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="site")
        # Bounded: sites that are faster than the server wait, so that replies do not pile up.
        self._done: queue.Queue[Message] = queue.Queue(maxsize=workers)
        self._closed = threading.Event()
        self._parked: dict[str, Message] = {}
        # Flower's Message asks the process who it is; there is no public way to say so.
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run_id, 0, _SERVER_NODE

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def set_run(self, run: Run) -> None:
        """Flower's runtime calls this; here the run is given at the start."""

    @property
    def run(self) -> Run:
        """What Flower knows of the run."""
        return Run.create_empty(run_id=self._run_id)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message (Flower's older way of making one)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the sites' node identifiers."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages for their sites and return their identifiers."""
        identifiers = []
        for message in messages:
            identifier = str(uuid4())
            message.metadata.__dict__["_message_id"] = identifier
            identifiers.append(identifier)
            self._pool.submit(self._deliver, message)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return replies that have come, waiting up to half a second for the first.

        At most one for each worker at a time: sites may answer faster than the server folds in.
        """
        wanted = set(message_ids)
        found = [self._parked.pop(i) for i in list(self._parked) if i in wanted]
        wait_s = 0.0 if found else _PULL_WAIT_S
        while len(found) < self._done.maxsize:
            try:
                reply = self._done.get(timeout=wait_s) if wait_s else self._done.get_nowait()
            except queue.Empty:
                break
            wait_s = 0.0
            identifier = reply.metadata.reply_to_message_id
            if identifier in wanted:
                found.append(reply)
            else:
                self._parked[identifier] = reply
        return found

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and collect their replies (Flower's own strategies use this)."""
        from medfed.server.exchange import Exchange

        limit_s = 1e9 if timeout is None else timeout
        return list(Exchange(self).replies(messages, limit_s))

    def _deliver(self, message: Message) -> None:
        """Run one message at its site, in a worker's thread."""
        try:
            received = _through_the_wire(message)
            reply = self._client_app(received, self._contexts[message.metadata.dst_node_id])
            reply = _through_the_wire(reply)
        # A site's failure is an answer, as on a real grid; so is a library there that exits.
        except (Exception, SystemExit):
            log.exception("A site's app failed.")
            reply = Message(
                Error(code=_CLIENT_APP_RAISED, reason=traceback.format_exc()), reply_to=message
            )
        while not self._closed.is_set():
            try:
                self._done.put(reply, timeout=_PULL_WAIT_S)
            except queue.Full:
                continue
            return


def _through_the_wire(message: Message) -> Message:
    """Return the message as its receiver would get it, sharing nothing that can change.

    All of it goes through Flower's protobuf but the bytes of arrays, which cannot change: the wire
    would carry the same, and copying a model four times a message takes longer than a small step.
    """
    if not message.has_content():
        return message
    # Not array_records: a view of a record makes a cycle, and models wait for its collection.
    records = dict(message.content.items())
    arrays = {name: r for name, r in records.items() if isinstance(r, ArrayRecord)}
    bare = RecordDict({**records, **{name: _bare(record) for name, record in arrays.items()}})
    wired = ProtoRecordDict.FromString(recorddict_to_proto(bare).SerializeToString())
    content = recorddict_from_proto(wired)
    for name, record in arrays.items():
        received = cast(ArrayRecord, content[name])
        for key, array in record.items():
            received[key].data = bytes(array.data)
    return make_message(metadata=message.metadata, content=content)


def _bare(record: ArrayRecord) -> ArrayRecord:
    """Return the record with arrays that have no bytes."""
    return ArrayRecord(
        {key: Array(array.dtype, array.shape, array.stype, b"") for key, array in record.items()}
    )
