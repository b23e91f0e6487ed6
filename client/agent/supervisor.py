"""`medfed site start`: keeps a SuperNode and a worker running, and says how they are.

    supervisor ── SuperNode          the connection outward: TLS, this site's key
               └─ worker             answers messages (`client.agent.worker`)

Whatever dies is started again. A worker whose message has run over its deadline, or that gives no
sign of life, is killed: the next one answers the next message. If the supervisor itself is killed,
its children die with it.
"""

import logging
import os
import signal
import socket
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import FrameType

from medfed.client.agent.folder import AgentFolder, State, Status, WorkerState, clock, now
from medfed.client.agent.metrics import metrics_text
from medfed.client.agent.reaching import Reach
from medfed.client.audit_facts import Event, Fact
from medfed.client.audit_log import AuditLog
from medfed.client.site import SiteConfig
from medfed.common.errors import MedfedError, SiteConfigError
from medfed.common.keeping import KeptChild
from medfed.common.locking import held_alone
from medfed.common.metrics_server import serve_metrics
from medfed.common.processes import quiet_flower

log = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_TICK_S = 0.5
_PATIENCE_S = 8.0
# Loading torch on a busy machine takes tens of seconds.
_START_S = 240.0
_SILENT_S = 60.0
# What Flower says, and how long it can stay so is a minute: the pauses must not grow beyond that.
_IN_USE = "failed to activate"
_IN_USE_PAUSE_S = 5.0


def run_agent(site: SiteConfig, site_file: Path) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        SiteConfigError: The site is not enrolled, or has left.
        RunError: Another supervisor serves this site.
    """
    check_connection(site)
    folder = AgentFolder(site)
    folder.make()
    with held_alone(folder.lock_file, f"Site {site.name} is running already"):
        _Agent(site, site_file.resolve(), folder).run()


def check_connection(site: SiteConfig) -> None:
    """Raise SiteConfigError unless the site knows its coordinator."""
    connection = site.connection
    if not connection.address:
        raise SiteConfigError(
            "Expected [connection] address in site.toml, found none. Enrol first: "
            "medfed site enroll INVITE"
        )
    for what, file in (("CA certificate", connection.ca), ("key", connection.key)):
        if not site.path(file).is_file():
            raise SiteConfigError(
                f"Expected the {what} at {site.path(file)}, found none. Enrol first: "
                "medfed site enroll INVITE"
            )


class _Agent:
    def __init__(self, site: SiteConfig, site_file: Path, folder: AgentFolder) -> None:
        self._site, self._site_file, self._folder = site, site_file, folder
        self._audit = AuditLog(site.state_folder)
        environment = quiet_flower(folder.flower_home)
        self._supernode = KeptChild("supernode", folder.logs, (), environment)
        self._worker = KeptChild("worker", folder.logs, (), environment)
        self._choose_port()
        self._reach = Reach(site)
        self._stop = threading.Event()
        self._status = Status(pid=os.getpid(), state="starting", since=now())
        self._answered = 0
        self._last_count = 0
        self._connected: bool | None = None

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._asked_to_stop)
        self._note("started", pid=self._status.pid, address=self._site.connection.address)
        self._folder.new_secret()
        # Of another boot: numbers of processes come again.
        self._folder.worker_file.unlink(missing_ok=True)
        self._reach.start()
        if self._site.connection.metrics_port is not None:
            serve_metrics(self._site.connection.metrics_port, lambda: metrics_text(self._site))
        try:
            while not self._stop.is_set():
                self._tick()
                self._stop.wait(_TICK_S)
        finally:
            self._say("stopped", "")
            # What the worker has in hand is given up: the SuperNode tells that this site is gone.
            self._worker.stop(_PATIENCE_S)
            self._supernode.stop(_PATIENCE_S)
            self._reach.stop()
            self._note("stopped")
            self._say("stopped", "")

    def _note(self, event: Event, **facts: Fact) -> None:
        """Write into the audit log. A full disk must not end the agent: no message is answered
        meanwhile, since the worker writes before it answers."""
        try:
            self._audit.write(event, **facts)
        except (MedfedError, OSError) as error:
            log.error("The audit log cannot be written: %s", error)

    def _asked_to_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop.set()

    def _tick(self) -> None:
        self._keep_supernode()
        self._keep_worker()
        self._note_connection()
        worker = self._folder.read_worker()
        self._watch(worker)
        self._say(*self._state(worker), worker)

    def _keep_supernode(self) -> None:
        if self._supernode.keep_alive():
            log.warning("The SuperNode ended: %s.", _reason_of(self._supernode.last_words()))
            if "address already in use" in self._supernode.last_words():
                self._choose_port()
                self._worker.kill()
            # Else the worker stays, warm: what it has in hand it finishes and keeps, for the
            # coordinator will ask for it again.
            if _IN_USE in self._supernode.last_words().lower():
                self._supernode.start_within(_IN_USE_PAUSE_S)

    @property
    def _is_active(self) -> bool:
        """Whether the SuperNode was let in; Flower says so in its log alone."""
        is_known = "SuperNode ID:" in self._supernode.last_words()
        return self._supernode.pid is not None and (is_known or self._supernode.age_s > 30)

    def _choose_port(self) -> None:
        """Choose where SuperNode and worker meet."""
        connection, site, port = self._site.connection, self._site, _free_port()
        self._supernode.command = [
            *(sys.executable, "-m", "medfed.client.agent.supernode"),
            *("--superlink", connection.address),
            *("--root-certificates", site.path(connection.ca)),
            *("--auth-supernode-private-key", site.path(connection.key)),
            *("--isolation", "process"),
            *("--superexec-auth-secret-file", self._folder.secret_file),
            *("--host", _LOOPBACK, "--port", str(port)),
        ]
        self._worker.command = [
            *(sys.executable, "-m", "medfed.client.agent.worker"),
            *(self._site_file, f"{_LOOPBACK}:{port}"),
        ]

    def _keep_worker(self) -> None:
        if self._worker.keep_alive():
            log.warning("The worker ended with %s.", self._worker.exit_code)
            self._folder.worker_file.unlink(missing_ok=True)
            self._note("worker_died", code=self._worker.exit_code)

    def _watch(self, worker: WorkerState | None) -> None:
        """Kill a worker that hangs."""
        if self._worker.pid is None:
            return
        if worker is None or worker.pid != self._worker.pid:
            if self._worker.age_s > _START_S:
                self._end_worker("did not start")
        elif worker.deadline and clock() > worker.deadline:
            self._end_worker("over its deadline")
        elif clock() - worker.beat > _SILENT_S:
            self._end_worker("no sign of life")

    def _end_worker(self, reason: str) -> None:
        log.error("The worker is killed: %s.", reason)
        self._worker.kill()
        self._folder.worker_file.unlink(missing_ok=True)
        self._note("worker_killed", reason=reason)

    def _note_connection(self) -> None:
        connected = self._reach.connected and self._is_active
        if connected != self._connected:
            self._note("connected" if connected else "disconnected")
            self._connected = connected

    def _state(self, worker: WorkerState | None) -> tuple[State, str]:
        if self._folder.paused:
            return "paused", "every message is answered with: paused"
        if not self._reach.connected:
            return "connecting", self._reach.problem
        if not self._is_active:
            why = _reason_of(self._supernode.last_words())
            return "connecting", self._reach.clock_problem or why
        if worker is None or worker.pid != self._worker.pid:
            return "starting", "the worker is loading"
        return ("working", "") if worker.working else ("waiting", "")

    def _say(self, state: State, reason: str, worker: WorkerState | None = None) -> None:
        """Write the status; a full disk must not end the agent."""
        status = self._status
        since = status.since if state == status.state else now()
        if worker is not None:
            # A new worker counts from zero.
            self._answered += max(0, worker.messages - self._last_count)
            self._last_count = worker.messages
            status = replace(
                status,
                study=worker.study,
                run=worker.run,
                kind=worker.kind,
                round_number=worker.round_number,
            )
        self._status = replace(
            status,
            state=state,
            reason=reason,
            since=since,
            heartbeat=now(),
            supernode_pid=self._supernode.pid or 0,
            worker_pid=self._worker.pid or 0,
            worker_restarts=self._worker.restarts,
            messages=self._answered,
        )
        try:
            self._folder.write_status(self._status)
        except OSError as error:
            log.error("The status cannot be written: %s", error)


def _reason_of(words: str) -> str:
    """Say in words why a SuperNode ended, from what it said."""
    words = words.lower()
    if _IN_USE in words:
        return (
            "the coordinator does not know this site's key, or still counts an earlier connection "
            "as alive, for up to a minute"
        )
    if "certificate" in words:
        return "the coordinator's certificate does not verify against keys/ca.pem"
    # On a 401 Flower interrupts itself, and says no more than this.
    if "terminated gracefully" in words or "401 unauthorized" in words:
        return "the coordinator does not accept this site's key: not yet approved, or revoked"
    return "the connection is being made"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((_LOOPBACK, 0))
        return int(listener.getsockname()[1])
