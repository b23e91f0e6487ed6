"""Asks the SuperLink on this machine: its Control API, with this federation's token."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, cast

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.run_pb2 import Run
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors.http.utils import add_headers
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

from medfed.common.bundle import bundle_bytes, bundle_digest
from medfed.common.errors import RunError
from medfed.server.federation.home import FederationHome
from medfed.server.federation.processes import LOOPBACK

NodeStatus = Literal["registered", "online", "offline", "unregistered"]
FlowerStatus = Literal["pending", "starting", "running", "finished"]
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, kw_only=True)
class FlowerNode:
    """A node as the SuperLink knows it.

    Attributes:
        node_id: Flower's number for it.
        name: The site's.
        public_key: PEM.
        status: registered: has never been seen.
        last_seen: ISO 8601; "" if never.
    """

    node_id: int
    name: str
    public_key: bytes
    status: NodeStatus
    last_seen: str


@dataclass(frozen=True, kw_only=True)
class FlowerRun:
    """A run as the SuperLink knows it. `outcome` is completed, failed or stopped, once finished."""

    run_id: int
    status: FlowerStatus
    outcome: str
    details: str

    @property
    def is_over(self) -> bool:
        """Whether the SuperLink has ended it."""
        return self.status == "finished"


class ControlError(RunError):
    """The SuperLink turned a request down."""


class KeyInUseError(ControlError):
    """A node's key was registered before; Flower takes each once and for ever."""


class _NotFoundError(ControlError):
    pass


class _Token:
    """Adds this federation's token to each request."""

    def __init__(self, token: str) -> None:
        self._header = {"authorization": f"Bearer {token}"}

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Add the header and go on."""
        add_headers(context.request, self._header)
        return call_next(context)


class ControlClient:
    """Registers nodes, starts and stops runs. Every method raises RunError if it cannot."""

    def __init__(self, home: FederationHome) -> None:
        _never_proxy_loopback()
        self._port = home.config.control_port
        self._runs_folder = home.runs_folder
        self._client = ControlHttpClient(
            f"http://{LOOPBACK}:{self._port}",
            interceptors=[_Token(read_token(home.control_token))],
            timeout=10.0,
        )

    def register_node(self, key: str, name: str) -> int:
        """Let the node with `key` (an OpenSSH public line) connect under the site's name.

        Raises:
            KeyInUseError: The key was registered before.
        """
        request = RegisterNodeRequest(public_key=node_pem(key), name=name)
        return int(self._ask(lambda: self._client.RegisterNode(request)).node_id)

    def unregister_node(self, node_id: int) -> None:
        """Never let this node connect again."""
        request = UnregisterNodeRequest(node_id=node_id)
        self._ask(lambda: self._client.UnregisterNode(request))

    def nodes(self) -> list[FlowerNode]:
        """Return all nodes that may connect or ever might."""
        answer = self._ask(lambda: self._client.ListNodes(ListNodesRequest()))
        return [_node(info, answer.now) for info in answer.nodes_info]

    def start_run(self, arm: Path) -> int:
        """Submit the installed release's bundle for the arm in folder `arm`; return the run.

        Sites get to see the arm's name below the folder of runs, and no path of this machine.
        """
        fab = Fab(bundle_digest(), bundle_bytes(), {})
        request = StartRunRequest(
            fab=fab_to_proto(fab),
            override_config=user_config_to_proto({"arm": self._name_of(arm)}),
        )
        run_id = int(self._ask(lambda: self._client.StartRun(request)).run_id)
        if not run_id:
            raise ControlError("The SuperLink did not start the run. Its log says why.")
        return run_id

    def _name_of(self, arm: Path) -> str:
        arm, runs = arm.resolve(), self._runs_folder.resolve()
        return str(arm.relative_to(runs) if arm.is_relative_to(runs) else arm)

    def runs(self) -> list[FlowerRun]:
        """Return the latest runs, newest first."""
        answer = self._ask(lambda: self._client.ListRuns(ListRunsRequest()))
        found = sorted(answer.run_dict.values(), key=lambda run: run.pending_at, reverse=True)
        return [_run(run) for run in found]

    def run(self, run_id: int) -> FlowerRun | None:
        """Return one run; None if the SuperLink does not know it."""
        request = ListRunsRequest(run_id=run_id)
        try:
            answer = self._ask(lambda: self._client.ListRuns(request))
        except _NotFoundError:
            return None
        return next((_run(run) for run in answer.run_dict.values()), None)

    def stop_run(self, run_id: int) -> None:
        """Stop a run; one that is over or unknown is left as it is."""
        run = self.run(run_id)
        if run is not None and not run.is_over:
            self._ask(lambda: self._client.StopRun(StopRunRequest(run_id=run_id)))

    def is_healthy(self) -> bool:
        """Return whether the SuperLink answers."""
        try:
            address = f"http://{LOOPBACK}:{self._port}/health"
            return httpx.get(address, timeout=2.0).is_success
        except httpx.HTTPError:
            return False

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _ask(self, call: Callable[[], _Answer]) -> _Answer:
        try:
            return call()
        except httpx.HTTPStatusError as error:
            raise _refusal(error.response) from None
        except (httpx.HTTPError, ValueError) as error:
            raise RunError(
                f"The SuperLink does not answer on {LOOPBACK}:{self._port} ({error}). "
                "Start it with `medfed federation start`, or see logs/superlink.log."
            ) from None


def node_pem(key: str) -> bytes:
    """Return an OpenSSH public line as Flower spells the key.

    Raises:
        RunError: It is none.
    """
    try:
        public_key = load_ssh_public_key(key.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RunError(f"A site's node key cannot be read ({error}). Invite it again.") from None
    return public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def read_token(path: Path) -> str:
    """Return the secret in `path`.

    Raises:
        RunError: It cannot be read, or is empty.
    """
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(
            f"{path} cannot be read ({error}). Run this as the user who made the federation."
        ) from None
    if not token:
        raise RunError(f"{path} is empty. Restore it, or make the federation anew.")
    return token


def _refusal(response: httpx.Response) -> ControlError:
    error = FlowerError.from_json(response.text)
    if response.status_code == httpx.codes.UNAUTHORIZED:
        return ControlError(
            "The SuperLink did not accept control.token: it is another federation's, or was "
            "changed. Restart `medfed federation start`."
        )
    if error is not None and error.code == ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE:
        return KeyInUseError("This node key was registered before.")
    if error is not None and error.code == ApiErrorCode.RUN_ID_NOT_FOUND:
        return _NotFoundError("The SuperLink does not know this run.")
    said = error.message if error is not None else f"HTTP {response.status_code}"
    return ControlError(f"The SuperLink turned the request down: {said}")


def _node(info: NodeInfo, now: str) -> FlowerNode:
    status = cast(NodeStatus, info.status)
    return FlowerNode(
        node_id=info.node_id,
        name=info.name,
        public_key=info.public_key,
        status=status,
        last_seen=now if status == "online" else info.last_deactivated_at,
    )


def _run(run: Run) -> FlowerRun:
    return FlowerRun(
        run_id=run.run_id,
        status=cast(FlowerStatus, run.status.status),
        outcome=run.status.sub_status,
        details=run.status.details,
    )


def _never_proxy_loopback() -> None:
    """Keep a proxy that the environment names out of talk within this machine."""
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host]
        if LOOPBACK not in hosts:
            os.environ[name] = ",".join([*hosts, LOOPBACK])
