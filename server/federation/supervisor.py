"""`medfed federation start`: keeps the coordinator's processes alive and its runs going.

    supervisor ── superlink    Flower's SuperLink behind the gate
               └─ superexec    starts a ServerApp for each of Flower's runs

Kill any of them: it comes back, and what it did goes on. The children end with the supervisor,
whatever ends that, and the next one takes up the runs where they stand.
"""

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from medfed.common.errors import MedfedError, RunError
from medfed.common.files import write_json
from medfed.common.locking import held_alone
from medfed.common.metrics_server import serve_metrics
from medfed.server.federation.control import ControlClient
from medfed.server.federation.dispatcher import Dispatcher
from medfed.server.federation.home import FederationHome
from medfed.server.federation.members import Members, describe_nodes
from medfed.server.federation.metrics import metrics_text
from medfed.server.federation.processes import (
    LOOPBACK,
    child,
    end_all,
    leftovers,
    server_apps,
    superexec_command,
    superlink_command,
)
from medfed.server.federation.queue import RunQueue, now
from medfed.server.federation.registry import Registry
from medfed.server.federation.sockets import bind
from medfed.server.federation.status import StatusReader

_log = logging.getLogger(__name__)

_LOOK_S = 0.5
_LOOKS_A_TICK = 4
# How long a SuperLink may be silent while it starts, or in trouble, before it is started anew.
_SILENCE_PATIENCE_S = 120.0


def lock_file(home: FederationHome) -> Path:
    """Return the file that a running supervisor holds; `common.locking.holder` tells who."""
    return home.folder / ".supervisor.lock"


def check_owner(home: FederationHome) -> None:
    """Check that the federation is this user's.

    Raises:
        RunError: It is not.
    """
    owner = home.folder.stat().st_uid
    if owner != os.getuid():
        raise RunError(
            f"{home.folder} belongs to user {owner}, this is user {os.getuid()}. Run the command "
            "as the user who made the federation."
        )


def supervise(home: FederationHome) -> None:
    """Run the federation until SIGTERM or SIGINT. Call in the main thread.

    Raises:
        RunError: Another supervisor is running, the folder is another user's, or a port is taken.
    """
    check_owner(home)
    with (
        held_alone(lock_file(home), f"A supervisor of {home.folder} is running"),
        _signals() as end,
    ):
        remains = leftovers(home)
        if remains:
            _log.warning("Ending %d processes that an earlier supervisor left", len(remains))
            end_all(list(remains))
        for host, port in (
            (home.config.host, home.config.port),
            (LOOPBACK, home.config.control_port),
        ):
            bind(host, port).close()
        Supervisor(home).run(end)


@dataclass
class End:
    """Whether the supervisor was asked to end."""

    asked: bool = False


class Supervisor:
    """Looks after children every half second, after nodes and runs every two."""

    def __init__(self, home: FederationHome) -> None:
        self._home = home
        self._started = now()
        self._children = [
            child("superlink", superlink_command(home), home),
            child("superexec", superexec_command(home), home),
        ]
        control = ControlClient(home)
        self._control = control
        self._members = Members(Registry(home.sites_folder), control)
        self._dispatcher = Dispatcher(RunQueue(home), control, lambda: server_apps(home))
        self._problem = ""
        self._heard = time.monotonic()

    def run(self, end: End) -> None:
        """Look until `end`, then end everything in order."""
        looks = 0
        self._serve_metrics()
        try:
            while not end.asked:
                for one in self._children:
                    one.keep_alive()
                if looks % _LOOKS_A_TICK == 0:
                    self._tick()
                looks += 1
                time.sleep(_LOOK_S)
        finally:
            self._end()

    def _serve_metrics(self) -> None:
        port = self._home.config.metrics_port
        if port is not None:
            reader = StatusReader(self._home.folder)
            serve_metrics(port, lambda: metrics_text(reader.read()))

    def _tick(self) -> None:
        problem = ""
        if self._is_superlink_healthy():
            try:
                nodes = self._members.sync()
                problem = self._members.problem
                table = {"time": now(), "nodes": describe_nodes(nodes)}
                write_json(self._home.nodes_file, table)
                self._dispatcher.tick()
            except (MedfedError, OSError) as error:
                problem = str(error)
            except Exception as error:
                # Whatever it is, sites and the run in progress are better off with a supervisor.
                _log.exception("A look at nodes and runs failed")
                problem = f"{type(error).__name__}, see logs/supervisor.log"
        ended = [one.problem for one in self._children if one.problem]
        self._report("; ".join([*ended, problem] if problem else ended))

    def _is_superlink_healthy(self) -> bool:
        """Ask it; end it if it has been silent for long."""
        if self._control.is_healthy():
            self._heard = time.monotonic()
            return True
        superlink = self._children[0]
        if superlink.age_s > _SILENCE_PATIENCE_S < time.monotonic() - self._heard:
            _log.error("The SuperLink is silent: it is started anew")
            superlink.stop()
        return False

    def _report(self, problem: str) -> None:
        if problem and problem != self._problem:
            _log.error("%s", problem)
        self._problem = problem
        table = {
            "pid": os.getpid(),
            "started": self._started,
            "heartbeat": now(),
            "processes": {
                one.name: {"pid": one.pid, "restarts": one.restarts, "state": one.state}
                for one in self._children
            },
            "problem": problem,
        }
        try:
            write_json(self._home.supervisor_file, table)
        except OSError as error:
            _log.error("%s cannot be written: %s", self._home.supervisor_file, error)

    def _end(self) -> None:
        """End the ServerApp first: it still has something to say to the SuperLink."""
        superlink, superexec = self._children
        superexec.stop()
        end_all(server_apps(self._home))
        superlink.stop()
        end_all(list(leftovers(self._home)))
        self._control.close()
        self._dispatcher.release("the supervisor was stopped; goes on when it is started again")
        self._report("")


@contextmanager
def _signals() -> Iterator[End]:
    """Note SIGTERM and SIGINT for the time of the block."""
    end = End()

    def note(_number: int, _frame: FrameType | None) -> None:
        end.asked = True

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
