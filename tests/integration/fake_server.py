"""A coordinator of our own making, on Flower's Runtime API: it asks sites for what it likes.

The SuperLink and the sites are the real ones. The supervisor and its SuperExec stand still
meanwhile: the one would stop a run that it has not queued, the other would start the run's program.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from os import kill
from typing import Any, Self

import httpx
from deployment import Deployment
from flwr.app import Message, RecordDict
from flwr.common.constant import SubStatus
from flwr.common.serde import fab_to_proto, message_to_proto, run_from_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import (
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.interceptors.http.utils import add_headers
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from wicked import Crafted

from medfed.common.bundle import bundle_bytes

_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
_POLL_S = 0.3


class FakeServer:
    """One run, whose ServerApp is the test.

    Args:
        deployed: The federation.
        bundle: What is handed out with the run; the installed release's if none is given.
        declared: The hash that is stated for it; its own if none is given.
    """

    def __init__(
        self, deployed: Deployment, bundle: bytes | None = None, declared: str = ""
    ) -> None:
        self._deployed = deployed
        self._bundle = bundle_bytes() if bundle is None else bundle
        self._declared = declared
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            self._stack.enter_context(standing_still(self._deployed))
            self.run_id = self._start_run()
            self.grid = self._take()
            self._stack.callback(self._end)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def ask(
        self, site: str, kind: str, content: RecordDict, *, group: str = "1", timeout_s: float = 120
    ) -> Message:
        """Send one message to a site and return its answer."""
        message = Message(content, self.node_of(site), kind, group_id=group, ttl=timeout_s)
        [identifier] = self.grid.push_messages([message])
        assert identifier, "Flower did not take the message"
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for reply in self.grid.pull_messages([identifier]):
                return reply
            time.sleep(_POLL_S)
        raise AssertionError(f"No answer in {timeout_s:.0f} s.\n{self._deployed.logs()}")

    def push_crafted(self, site: str, kind: str, craft: Callable[[Message], Crafted]) -> None:
        """Send something that is announced as a message; no answer is waited for."""
        announced = Message(RecordDict(), self.node_of(site), kind, group_id="1", ttl=60)
        root = craft(announced).parts()
        announced.metadata.__dict__["_message_id"] = root.object_id
        runtime = self.grid._runtime_client
        request = PushAppMessagesRequest(
            messages_list=[message_to_proto(announced)], message_object_trees=[root.tree()]
        )
        pushed = runtime.PushMessages(request)
        for name, content in root.all().items():
            part = PushObjectRequest(
                node=self.grid.node,
                run_id=self.run_id,
                session_id=pushed.session_id,
                object_id=name,
                object_content=content,
            )
            assert runtime.PushObject(part).stored

    def node_of(self, site: str) -> int:
        """Return a site's node, once it is connected."""
        found: dict[str, int] = {}

        def is_there() -> bool:
            found.update({node.name: node.node_id for node in self.grid.get_nodes()})
            return site in found

        self._deployed.wait_for(site, is_there)
        return found[site]

    def _start_run(self) -> int:
        token = (self._deployed.home / "control.token").read_text().strip()
        client = ControlHttpClient(
            f"http://127.0.0.1:{self._deployed.control_port}", interceptors=[_Token(token)]
        )
        self._stack.callback(client.close)
        fab = Fab(self._declared, self._bundle, {})
        return int(client.StartRun(StartRunRequest(fab=fab_to_proto(fab))).run_id)

    def _take(self) -> HttpGrid:
        """Claim the run's task, as the machine's own SuperExec would."""
        address = f"127.0.0.1:{self._deployed.control_port}"
        secret = (self._deployed.home / "superexec.secret").read_bytes().strip()
        taking = runtime_client(
            address,
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={_ACQUIRE}),
        )
        self._stack.callback(taking.close)
        task = taking.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
        grid = HttpGrid(address, True, token=task.token)
        beating = HeartbeatSender(make_task_heartbeat_fn_http(grid._runtime_client))
        beating.start()
        self._stack.callback(beating.stop)
        given = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        assert given.run.run_id == self.run_id
        TaskIdentity.task_id = given.task_id
        TaskIdentity.run_id = given.run.run_id
        TaskIdentity.node_id = given.context.node_id
        grid.set_run(run_from_proto(given.run))
        return grid

    def _end(self) -> None:
        request = PushTaskOutputRequest(sub_status=SubStatus.COMPLETED, details="")
        with suppress(httpx.HTTPError):
            self.grid._runtime_client.PushTaskOutput(request)
        self.grid.close()


class _Token:
    def __init__(self, token: str) -> None:
        self._header = {"authorization": f"Bearer {token}"}

    def intercept(self, context: Any, call_next: Any) -> httpx.Response:
        add_headers(context.request, self._header)
        return call_next(context)


def runtime_client(address: str, *interceptors: Any) -> RuntimeHttpClient:
    """Return a client of a Runtime API on this machine."""
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=list(interceptors),
    )


@contextmanager
def standing_still(deployed: Deployment) -> Iterator[None]:
    """Stop the supervisor and its SuperExec for the time of the block; the SuperLink goes on."""
    pids = [deployed.processes["coordinator"].pid, *deployed.pids("flower-superexec")]
    for pid in pids:
        kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            kill(pid, signal.SIGCONT)
