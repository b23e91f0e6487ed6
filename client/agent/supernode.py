"""Flower's own SuperNode, less patient while a run is under way.

Its loop asks for messages every 3 s and looks for a reply every 0.5 s, both written into the code.
A round has at least two messages a site, so these waits are most of what a small round costs
(docs/benchmarks.md). Here the same program runs with a fifth of each wait, until no message has
come for a while: a coordinator with many idle sites should not be kept busy by them.

A run that ends while a message of it is on its way would block the site; here it does not.

A SuperLink lets a node in once at a time, and counts one that was killed as connected for up to a
minute, in which the site would be missing. Here a SuperNode first signs off the one before it, if
that could not do so itself.
"""

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.run import RunNotRunningException
from flwr.supernode import start_client_internal
from flwr.supernode.cli.flower_supernode import flower_supernode
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.fleet_http_connection import http_request_response
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from medfed.common.files import write_atomically

log = logging.getLogger(__name__)

Keys = tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey]

_SHARE = 0.2
_LONG_S = 1.0
_IDLE_WAITS = 200  # two minutes of short ones


class _Impatient:
    """The `time` module as Flower's loop sees it."""

    idle = 0

    @classmethod
    def sleep(cls, seconds: float) -> None:
        # The long wait is that for a message, the short one that for the reply to one.
        cls.idle = cls.idle + 1 if seconds > _LONG_S else 0
        time.sleep(seconds * (_SHARE if cls.idle <= _IDLE_WAITS else 1.0))


@contextlib.contextmanager
def _connection(
    address: str,
    insecure: bool,
    root_certificates: bytes | str | None,
    keys: Keys | None,
    max_retries: int | None,
    max_wait_time: float | None,
) -> Iterator[tuple[Any, ...]]:
    """Connect as Flower does, once whoever was connected with this key before is signed off."""
    assert keys is not None  # `client.agent.supervisor` names them
    # A site that left and joined again has another key, and is another node.
    name = hashlib.sha256(public_key_to_bytes(keys[1])).hexdigest()[:16]
    file = Path(os.environ["FLWR_HOME"]) / f"node-{name}"
    if file.exists():
        _sign_off(file, address, root_certificates, keys)
    with http_request_response(
        address, insecure, root_certificates, keys, max_retries, max_wait_time
    ) as connected:
        write_atomically(file, str(connected[0]).encode())
        *others, pull_object, push_object, confirm = connected
        yield (*others, _while_running(pull_object), push_object, _while_running(confirm))


def _while_running(call: Callable[..., Any]) -> Callable[..., Any]:
    """Have the end of a run stop the download of a message like any other failure.

    Flower's own exception for it passes by the code that gives the message up. The worker, which
    may have claimed it by then, would wait for the rest of it, and no other message be answered.
    """

    def called(*arguments: Any) -> Any:
        try:
            return call(*arguments)
        except RunNotRunningException:
            raise RuntimeError("the run has ended") from None

    return called


def _sign_off(file: Path, address: str, certificates: bytes | str | None, keys: Keys) -> None:
    interceptors: list[ProtobufClientInterceptor] = [
        RuntimeVersionHttpInterceptor(component_name="SuperNode"),
        NodeAuthHttpInterceptor(*keys),
    ]
    try:
        node_id = int(file.read_text(encoding="ascii"))
        with FleetHttpClient.from_server_address(
            address, False, certificates, interceptors
        ) as client:
            client.DeactivateNode(DeactivateNodeRequest(node_id=node_id))
    except (httpx.HTTPError, OSError, RuntimeError, ValueError) as error:
        # It is counted as gone already, or the coordinator cannot be reached: so much for that.
        log.info("The connection before this one was not signed off: %s", type(error).__name__)


def main() -> None:
    """Run `flower-supernode` with this process' arguments."""
    # The loop uses nothing else of the module; a test would notice.
    setattr(start_client_internal, "time", _Impatient)  # noqa: B010 - not exported
    setattr(start_client_internal, "http_request_response", _connection)  # noqa: B010
    try:
        flower_supernode()
    except Exception:
        log.exception("The SuperNode ends")
    # The loop ends only by an error, which Flower logs. Its server of the Runtime API would keep
    # the process alive, and the site would look connected for ever.
    os._exit(1)


if __name__ == "__main__":
    main()
