"""The warm worker: one process that answers a site's messages and keeps model, data and GPU warm.

`python -m medfed.client.agent.worker SITE.toml ADDRESS` takes messages from the SuperNode at
ADDRESS (loopback). A message whose bundle this site did not approve is refused, a paused site
answers that it is paused; everything else goes to `client.app`, the code that this site installed.
The supervisor ends a worker that hangs, and starts the next.
"""

import contextlib
import logging
import os
import re
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import httpx
from flwr.app import ConfigRecord, Context, Message, Metadata

from medfed.client.agent.folder import AgentFolder, WorkerState, clock, now
from medfed.client.agent.runtime import (
    Received,
    Task,
    TaskSource,
    UnreadableError,
    in_hand,
    leftover,
)
from medfed.client.app import app as client_app
from medfed.client.app import refuse
from medfed.client.audit_facts import UNFIT, Fact, check_facts
from medfed.client.audit_log import AuditLog
from medfed.client.site import PolicySection, SiteConfig, load_site
from medfed.common import messages
from medfed.common.bundle import bundle_digest
from medfed.common.errors import MedfedError, RefusalReason, SiteConfigError
from medfed.common.study_file import parse_study_json

log = logging.getLogger(__name__)

_PAUSE_S = 0.2
_PATIENCE_S = 5.0
_BEAT_S = 2.0
# A message may end a little after its deadline: its sender's clock is not ours.
_GRACE_S = 30.0
# Whatever a server says: a worker that hangs must end some day.
_LONGEST_S = 7 * 86400.0
_BYTES_PER_PARAMETER = 8
# Enough for a network that is larger than the policy allows: it is for the policy to say so.
_BYTES_BESIDES = 2**30
_ROUND = re.compile(r"[0-9]{1,9}", re.ASCII)


def main(site_file: Path, address: str) -> None:
    """Answer messages for ever."""
    site = load_site(site_file)
    folder = AgentFolder(site)
    worker = Worker(site_file, folder)
    abandoned = leftover(folder.task_file)
    if abandoned is not None:
        abandoned.give_up()
    source = TaskSource(address, folder.secret_file.read_bytes())
    while True:
        try:
            task = source.take()
        except httpx.HTTPError as error:
            # It is starting, or has ended; the supervisor knows which.
            log.info("The SuperNode gives no messages: %s", type(error).__name__)
            time.sleep(_PATIENCE_S)
            continue
        if task is None:
            time.sleep(_PAUSE_S)
            continue
        with task:
            worker.answer(task, address)


class Worker:
    """Answers one message after the other."""

    def __init__(self, site_file: Path, folder: AgentFolder) -> None:
        self._site_file = site_file
        self._folder = folder
        self._state = WorkerState(pid=os.getpid(), beat=clock())
        self._lock = threading.Lock()
        threading.Thread(target=self._beat, name="worker heartbeat", daemon=True).start()

    def answer(self, task: Task, address: str) -> None:
        """Answer one message. Whatever goes wrong, the worker lives to answer the next."""
        try:
            received = task.receive(self._most_bytes())
        except UnreadableError as error:
            log.error("A message cannot be read: %r", error.__cause__)
            self._give_up(task, error.metadata, error.context)
            return
        except (httpx.HTTPError, RuntimeError) as error:
            log.error("A message did not arrive whole: %s", error)
            return
        metadata = received.message.metadata
        started = time.perf_counter()
        try:
            # Read anew: a policy that was changed counts from the next message on.
            site = load_site(self._site_file)
            with in_hand(self._folder.task_file, address, task, metadata):
                reply = self._judged(received, site)
                # Before it leaves: what cannot be written down does not leave.
                self._note_answer(reply, site, time.perf_counter() - started)
                task.reply(reply, received.context)
        except Exception as error:  # one bad message must not cost the site its worker
            # The traceback may hold paths or values of patients: it stays in this log.
            log.error("A message was not answered: %s", error, exc_info=error)
            self._give_up(task, metadata, received.context, kind=self._state.kind)
        finally:
            self._folder.task_file.unlink(missing_ok=True)
            self._change(working=False, deadline=0.0, messages=self._state.messages + 1)

    def _judged(self, received: Received, site: SiteConfig) -> Message:
        """Return the reply to a message, or the refusal."""
        message = received.message
        about = _about(message)
        limit_s = site.connection.message_timeout_s or _seconds_for(message)
        self._change(working=True, deadline=clock() + limit_s + _GRACE_S, since=now(), **about)
        audit = AuditLog(site.state_folder)
        size = messages.num_bytes(message.content) if message.has_content() else 0
        audit.write("asked", **about, bytes=size)
        run, study = str(about["run"]), str(about["study"])
        if received.bundle_sha256 not in (site.connection.bundles or (bundle_digest(),)):
            log.warning("Refused: the bundle %s is not approved.", received.bundle_sha256)
            audit.write("bundle_refused", sha256=received.bundle_sha256)
            return refuse(message, site, RefusalReason.POLICY, run=run, study=study)
        if run == UNFIT:
            # It would stand in the ledger and on screens. No run of a medfed is called so.
            log.warning("Refused: the run's name is none.")
            return refuse(message, site, RefusalReason.POLICY, run=run, study=study)
        if self._folder.paused:
            return refuse(message, site, RefusalReason.PAUSED, run=run, study=study)
        received.context.node_config = {"site": str(self._site_file)}
        return client_app(message, received.context)

    def _note_answer(self, reply: Message, site: SiteConfig, seconds: float) -> None:
        state, audit = self._state, AuditLog(site.state_folder)
        about: dict[str, Fact] = {
            "study": state.study,
            "run": state.run,
            "kind": state.kind,
            "round_number": state.round_number,
        }
        # Not unpacked: an update can be large.
        values = reply.content["medfed"]
        if values["kind"] == "refusal":
            audit.write("refused", **about, reason=str(values["reason"]))
            return
        facts: dict[str, Fact] = {
            "bytes": messages.num_bytes(reply.content),
            "seconds": round(seconds, 3),
        }
        epsilon = values.get("epsilon")
        if isinstance(epsilon, float):
            facts["epsilon"] = epsilon
        audit.write("answered", **about, **facts)

    def _most_bytes(self) -> float:
        """Return how large a message may be: the largest network, and much for the rest."""
        try:
            policy = load_site(self._site_file).policy
        except SiteConfigError:  # which is why the message will be refused
            policy = PolicySection()
        return _BYTES_PER_PARAMETER * policy.max_parameters + _BYTES_BESIDES

    def _give_up(self, task: Task, metadata: Metadata, context: Context, *, kind: str = "") -> None:
        try:
            task.fail(metadata, context)
        except (httpx.HTTPError, RuntimeError) as error:
            log.error("Nor could the coordinator be told: %s", type(error).__name__)
        try:
            AuditLog(load_site(self._site_file).state_folder).write("failed", kind=kind)
        except (MedfedError, OSError) as error:
            log.error("Nor could it be written down: %s", error)

    def _beat(self) -> None:
        while True:
            self._change(beat=clock())
            time.sleep(_BEAT_S)

    def _change(self, **changes: int | float | str | bool) -> None:
        with self._lock:
            self._state = replace(self._state, **changes)  # type: ignore[arg-type]
            try:
                self._folder.write_worker(self._state)
            except OSError as error:
                log.error("The worker's state cannot be written: %s", error)


def _about(message: Message) -> dict[str, Fact]:
    """Return study, run, kind and round as far as they can be read and shown."""
    kind = message.metadata.message_type.removeprefix("query.")
    group = message.metadata.group_id
    facts: dict[str, Fact] = {"study": "", "run": "", "kind": kind, "round_number": 0}
    if _ROUND.fullmatch(group):
        facts["round_number"] = int(group)
    record = message.content.get("medfed") if message.has_content() else None
    if isinstance(record, ConfigRecord):
        facts["run"] = str(record.get("run", ""))
        with contextlib.suppress(MedfedError):
            facts["study"] = parse_study_json(str(record.get("study", ""))).study.name
    # A person reads them on a screen: what has not the form of its fact is not shown.
    return {"study": "", "run": "", "kind": "", **check_facts("asked", facts)}


def _seconds_for(message: Message) -> float:
    ttl = message.metadata.ttl
    return ttl if 0 < ttl < _LONGEST_S else _LONGEST_S


if __name__ == "__main__":
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    main(Path(sys.argv[1]), sys.argv[2])
