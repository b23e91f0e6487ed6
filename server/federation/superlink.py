"""Flower's SuperLink behind the gate: `python -m medfed.server.federation.superlink HOME`.

One process, one application, two sockets: the public one with TLS, and one on loopback for this
machine's own programs. Kill it as you like: all it knows is in `superlink/state.db`.
"""

import asyncio
import contextlib
import logging
import os
import signal
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from medfed.common.errors import FederationError, MedfedError
from medfed.common.processes import quiet_flower
from medfed.server.federation.admission import Admission, settle
from medfed.server.federation.control import read_token
from medfed.server.federation.database import hold_little
from medfed.server.federation.enrolment import EnrolmentDesk
from medfed.server.federation.fleet_requests import Uploads
from medfed.server.federation.gate import LoopbackGate, PublicGate
from medfed.server.federation.home import FederationHome, load_home
from medfed.server.federation.processes import LOOPBACK, flower_home
from medfed.server.federation.registry import Registry
from medfed.server.federation.rejections import Rejections
from medfed.server.federation.sockets import bind
from medfed.server.federation.superlink_log import log_to_stderr

_log = logging.getLogger(__name__)

_MAX_CONNECTIONS = 512
_MAX_HEADER_BYTES = 32 * 1024
_KEEP_ALIVE_S = 15
_HEADER_PATIENCE_S = 20.0
_SHUTDOWN_PATIENCE_S = 5


class ImpatientProtocol(H11Protocol):
    """HTTP/1.1 that closes a connection on which no whole request has come for a while.

    uvicorn waits for ever for the rest of a request's headers.
    """

    _watch: asyncio.TimerHandle | None = None
    _served: object = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to watch."""
        super().connection_made(transport)
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the watch."""
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def _look_later(self) -> None:
        self._watch = self.loop.call_later(_HEADER_PATIENCE_S, self._look)

    def _look(self) -> None:
        """Close if nothing is being answered, and nothing was since the last look either."""
        is_busy = self.cycle is not None and not self.cycle.response_complete
        if not is_busy and self.scope is self._served:
            self.transport.close()
            return
        self._served = self.scope
        self._look_later()


def build_app(home: FederationHome) -> ASGIApp:
    """Return Flower's own application over the state in `home`; see `flower-superlink`."""
    from flwr.common.constant import ISOLATION_MODE_PROCESS, TRANSPORT_TYPE_GRPC_RERE
    from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig
    from flwr.superlink.main import create_app

    hold_little()
    config = SuperLinkLifespanConfig(
        control_address=f"{LOOPBACK}:{home.config.control_port}",
        health_server_address=None,
        host=LOOPBACK,
        port=home.config.control_port,
        insecure=True,  # what is served on loopback; the public socket has TLS of its own
        certificates=None,
        superexec_auth_secret=read_token(home.superexec_secret).encode(),
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=str(home.database),
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )
    return create_app(config, SuperLinkLifespan)


def public_gate(home: FederationHome, admission: Admission) -> PublicGate:
    """Return the face for the internet."""
    return PublicGate(
        admission,
        Registry(home.sites_folder),
        EnrolmentDesk(home),
        Rejections(home.rejections_file),
        Uploads(home.config.max_upload_mb * 1e6),
    )


async def serve(home: FederationHome) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        RunError: A port is taken, or a file of the federation cannot be read.
    """
    with (
        bind(home.config.host, home.config.port) as outside,
        bind(LOOPBACK, home.config.control_port) as inside,
    ):
        app = build_app(home)
        admission = Admission(app, home.superlink_folder)
        loopback = LoopbackGate(app, admission, read_token(home.control_token))
        public = public_gate(home, admission)
        servers = [_public_server(home, public), _loopback_server(loopback)]
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _end, servers)
        async with app.router.lifespan_context(app):  # type: ignore[attr-defined]
            settle()
            _log.info("Serving sites on %s:%d", home.config.host, home.config.port)
            tasks = [servers[0].serve([outside]), servers[1].serve([inside])]
            await asyncio.gather(*tasks)


class _Server(uvicorn.Server):
    """A server that leaves signals to us: there are two of them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def _end(servers: list[_Server]) -> None:
    for server in servers:
        server.should_exit = True


def _public_server(home: FederationHome, gate: PublicGate) -> _Server:
    config = uvicorn.Config(
        gate,
        http=ImpatientProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_SHUTDOWN_PATIENCE_S,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        ssl_certfile=home.certificate,
        ssl_keyfile=home.key,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise FederationError(
            f"The certificate {home.certificate} or its key {home.key} cannot be used ({error}). "
            "Mend certificate and key in federation.toml."
        ) from None
    assert config.ssl is not None
    config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    return _Server(config)


def _loopback_server(gate: LoopbackGate) -> _Server:
    config = uvicorn.Config(
        gate,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=_SHUTDOWN_PATIENCE_S,
    )
    return _Server(config)


def main(arguments: list[str]) -> int:
    """Serve the federation in the folder named; return the exit code."""
    [folder] = arguments
    log_to_stderr()
    try:
        home = load_home(Path(folder))
        os.environ.update(quiet_flower(flower_home(home)))
        asyncio.run(serve(home))
    except MedfedError as error:
        _log.error("%s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
