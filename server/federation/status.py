"""`read_status`: where a federation stands, from the files in its folder and nothing else.

It works while nothing runs, and with files that are damaged or half written: those are named.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

from cryptography import x509

from medfed.common.enrolment import State
from medfed.common.errors import FederationError
from medfed.server.federation.home import FederationConfig, FederationHome, load_home
from medfed.server.federation.queue import QUEUE_FILE
from medfed.server.federation.status_alarms import find_alarms
from medfed.server.federation.status_files import Files, Table, number, table_of, words
from medfed.server.federation.status_runs import RunReader, moment
from medfed.server.federation.status_types import (
    CertificateStatus,
    FederationStatus,
    GateStatus,
    MemberStatus,
    ProcessStatus,
    RunStatus,
    SiteInRun,
    SupervisorStatus,
)

__all__ = ["FederationStatus", "StatusReader", "read_status"]

# The supervisor writes every two seconds; asking a SuperLink that does not answer takes longer.
SILENT_S = 45.0
_REJECTIONS_KEPT = timedelta(hours=1)
_STATES = get_args(State)


def read_status(folder: Path) -> FederationStatus:
    """Return the status of the federation in `folder`.

    Raises:
        FederationError: No federation.toml is there.
    """
    return StatusReader(folder).read()


class StatusReader:
    """Reads the status again and again; runs that have not changed are not read anew.

    Raises:
        FederationError: No federation.toml is in `folder`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs = RunReader()
        if not (folder / "federation.toml").exists():
            load_home(folder)  # raises, with the way out

    def read(self, now: datetime | None = None) -> FederationStatus:
        """Return the status at `now`, which is the present if it is not given."""
        now = now or datetime.now(UTC)
        files = Files()
        home = self._home(files)
        runs = self._read_runs(home, files, now)
        status = FederationStatus(
            time=now.isoformat(timespec="milliseconds"),
            folder=str(self._folder),
            name=home.config.name if home.config.address != _UNKNOWN.address else "",
            address=home.config.address if home.config.address != _UNKNOWN.address else "",
            supervisor=_supervisor(files.table(home.supervisor_file), now),
            certificate=_certificate(home.certificate, files, now),
            sites=_members(home, files, runs, now),
            runs=runs,
            gate=_gate(files, home.rejections_file, now),
            unreadable=tuple(files.unreadable),
        )
        return replace(status, alarms=find_alarms(status))

    def _home(self, files: Files) -> FederationHome:
        """Return where everything lies, where it usually does if federation.toml is damaged."""
        try:
            return load_home(self._folder)
        except FederationError as error:
            files.unreadable.append(str(error))
            return FederationHome(self._folder, _UNKNOWN)

    def _read_runs(
        self, home: FederationHome, files: Files, now: datetime
    ) -> tuple[RunStatus, ...]:
        folders = [path.parent for path in home.runs_folder.glob(f"*/{QUEUE_FILE}")]
        found = [
            self._runs.read(folder, files, now)
            for folder in sorted(folders)
            if not folder.name.startswith(".")
        ]
        return tuple(sorted(found, key=lambda run: (run.submitted, run.name)))


_UNKNOWN = FederationConfig(name="unknown", address="unknown.invalid:1")


def _supervisor(table: Table, now: datetime) -> SupervisorStatus:
    if not table:
        return SupervisorStatus()
    processes = tuple(
        ProcessStatus(
            name=name,
            state=words(facts.get("state")) or "unknown",
            pid=number(facts.get("pid")) or None,
            restarts=number(facts.get("restarts")),
        )
        for name, facts in sorted(table_of(table.get("processes")).items())
        if isinstance(facts, dict)
    )
    status = SupervisorStatus(
        state="up",
        pid=number(table.get("pid")) or None,
        started=words(table.get("started")),
        heartbeat=words(table.get("heartbeat")),
        processes=processes,
        problem=words(table.get("problem")),
    )
    # The last that it writes, when it is stopped: all children ended, and nothing wrong.
    if not status.problem and all(process.pid is None for process in processes):
        return replace(status, state="stopped")
    last = moment(status.heartbeat)
    if last is None or (now - last).total_seconds() > SILENT_S:
        return replace(status, state="silent")
    return status


def _certificate(path: Path, files: Files, now: datetime) -> CertificateStatus:
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        expires = certificate.not_valid_after_utc
    except (OSError, ValueError) as error:
        files.note(path, error)
        return CertificateStatus()
    days = (expires - now) / timedelta(days=1)
    return CertificateStatus(expires=expires.isoformat(timespec="seconds"), days_left=days)


def _gate(files: Files, path: Path, now: datetime) -> GateStatus:
    """Count what was turned down; lines that stand for many count as many."""
    since = now - _REJECTIONS_KEPT
    reasons: Counter[str] = Counter()
    sites: Counter[str] = Counter()
    # When the file is full, it becomes the other.
    for line in files.lines(path.with_name(f"{path.name}.1")) + files.lines(path):
        at = moment(words(line.get("time")))
        if at is None or at < since:
            continue
        reason = words(line.get("reason"))
        count, _, rest = reason.partition(" ")
        many = int(count) if rest == "more in the minute before" and count.isdecimal() else 1
        reasons[rest if many > 1 else reason] += many
        sites[words(line.get("site"))] += many
    return GateStatus(num_turned_down=reasons.total(), reasons=dict(reasons), sites=dict(sites))


def _members(
    home: FederationHome, files: Files, runs: Sequence[RunStatus], now: datetime
) -> tuple[MemberStatus, ...]:
    online = files.table(home.nodes_file)
    written = moment(words(online.get("time")))
    is_fresh = written is not None and (now - written).total_seconds() <= SILENT_S
    nodes = table_of(online.get("nodes"))
    found = []
    for path in sorted(home.sites_folder.glob("*.json")):
        if path.name.startswith("."):
            continue
        record, node = files.table(path), table_of(nodes.get(path.stem))
        member = MemberStatus(
            name=path.stem,
            state=state if (state := words(record.get("state"))) in _STATES else "unreadable",
            note=words(record.get("note")),
            invite_expires=words(record.get("expires")),
            online=bool(node.get("online")) if is_fresh else None,
            last_seen=words(node.get("last_seen")),
        )
        found.append(_with_runs(member, runs))
    return tuple(found)


def _with_runs(member: MemberStatus, runs: Sequence[RunStatus]) -> MemberStatus:
    """Add up what a site did in all runs."""
    parts = [(run, run.sites[member.name]) for run in runs if member.name in run.sites]
    if not parts:
        return member
    # The run that goes on tells what the site does now, else the one in which something last was.
    run, part = max(parts, key=lambda p: (p[0].state == "running", p[0].changed))
    spent = [p for p in parts if p[1].epsilon is not None]
    stated = max(spent, key=lambda p: p[1].answered_at, default=None)
    answered = max(parts, key=lambda p: p[1].answered_at)
    has_answered = bool(answered[1].last_answered)
    return replace(
        member,
        run=run.name,
        doing=part.doing,
        why=part.why,
        round_number=run.round_number if part.doing else 0,
        answered_run=answered[0].name if has_answered else "",
        last_answered=answered[1].last_answered,
        bytes_down=sum(p.bytes_down for _, p in parts),
        bytes_up=sum(p.bytes_up for _, p in parts),
        epsilon=stated[1].epsilon if stated else None,
        epsilon_delta=stated[0].delta if stated else None,
        refusals=_added(parts),
        num_rejected=sum(p.num_rejected for _, p in parts),
    )


def _added(parts: Sequence[tuple[RunStatus, SiteInRun]]) -> Mapping[str, int]:
    total: Counter[str] = Counter()
    for _, part in parts:
        total.update(part.refusals)
    return dict(sorted(total.items()))
