"""How a site is doing: what its processes say, its ledger and its audit log, brought together.

Reads files alone; no process is asked, and nothing is changed.
"""

import math
import threading
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Literal

from cryptography import x509

from medfed.client.agent.folder import AgentFolder, Status
from medfed.client.audit_log import AuditEntry, AuditLog, AuditLogError
from medfed.client.site import SiteConfig
from medfed.common.accounting import epsilon
from medfed.common.errors import LedgerError
from medfed.common.ledger import Summary, read_ledger
from medfed.common.processes import is_alive

Life = Literal["running", "silent", "ended", "stopped", "never"]
"""running: gives signs of life. silent: there is a process, but no sign of life. ended: it ended
without saying so. stopped: in order. never: it was not started yet."""

_SILENT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the data set has spent.

    Attributes:
        spent: Epsilon at `delta`; infinite if some releases had no privacy, or if their units do
            not compose.
        limit: The policy's max_epsilon.
        delta: The policy's target_delta.
        units: Units of privacy of what was spent; the policy's if nothing was.
        problem: Why the ledger cannot be trusted; empty if it can.
    """

    spent: float
    limit: float
    delta: float
    units: tuple[str, ...]
    problem: str = ""

    @property
    def left(self) -> float:
        """Epsilon left; 0 if the ledger cannot be trusted."""
        return 0.0 if self.problem else max(0.0, self.limit - self.spent)


@dataclass(frozen=True, kw_only=True)
class Glance:
    """A site at one moment.

    Attributes:
        site: Its name.
        life: Whether its agent runs.
        status: What the agent said last; None if it never ran.
        paused: Why the site is paused; None if it is not.
        budget: Of its data set.
        answered: Messages answered, by kind, as long as the audit log remembers.
        refused: Messages refused, by reason.
        bytes_today: Sent since midnight, local time.
        bytes_total: Sent in all.
        last_answer: The latest answer; None if there is none.
        last_refusal: The latest refusal.
        authority_expires: When the pinned certificate authority does; None if there is none.
        audit_problem: Why the audit log cannot be read; empty if it can.
    """

    site: str
    life: Life
    status: Status | None
    paused: str | None
    budget: Budget
    answered: dict[str, int]
    refused: dict[str, int]
    bytes_today: int
    bytes_total: int
    last_answer: AuditEntry | None
    last_refusal: AuditEntry | None
    authority_expires: datetime | None
    audit_problem: str = ""


class GlanceReader:
    """Reads a site again and again; what did not change on the disk is not read twice."""

    def __init__(self, site: SiteConfig) -> None:
        self._site = site
        self._folder = AgentFolder(site)
        self._log = AuditLog(site.state_folder).follow()
        self._lock = threading.Lock()
        self._ledger: tuple[object, Budget] | None = None
        self._answered: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._bytes_by_day: Counter[str] = Counter()
        self._last: dict[str, AuditEntry] = {}

    def read(self) -> Glance:
        """Return the site as it is now."""
        with self._lock:
            return self._read()

    def _read(self) -> Glance:
        problem = ""
        try:
            for entry in self._log.news():
                self._count(entry)
        except (AuditLogError, OSError) as error:
            problem = str(error)
        status = self._folder.read_status()
        return Glance(
            site=self._site.name,
            life=_life(status),
            status=status,
            paused=_paused(self._folder),
            budget=self._budget(),
            answered=dict(self._answered),
            refused=dict(self._refused),
            bytes_today=self._bytes_by_day[_local_day(datetime.now(UTC))],
            bytes_total=self._bytes_by_day.total(),
            last_answer=self._last.get("answered"),
            last_refusal=self._last.get("refused"),
            authority_expires=authority_expires(self._site),
            audit_problem=problem,
        )

    def _count(self, entry: AuditEntry) -> None:
        facts = entry.facts
        self._last[entry.event] = entry
        if entry.event == "answered":
            self._answered[str(facts.get("kind", "unknown"))] += 1
            day = _local_day(datetime.fromisoformat(entry.time))
            self._bytes_by_day[day] += int(facts.get("bytes", 0))
        elif entry.event == "refused":
            self._refused[str(facts.get("reason", "unknown"))] += 1

    def _budget(self) -> Budget:
        found = _stamp(self._site.state_folder)
        if self._ledger is None or self._ledger[0] != found:
            self._ledger = (found, read_budget(self._site))
        return self._ledger[1]


@lru_cache(maxsize=8)
def glance_reader(site: SiteConfig) -> GlanceReader:
    """Return the reader of `site` that this process shares."""
    return GlanceReader(site)


def read_budget(site: SiteConfig) -> Budget:
    """Return what the site's ledger says was spent, verified."""
    policy, problem, held = site.policy, "", Summary()
    try:
        # A seal without a ledger is damage, which reading it says.
        if _stamp(site.state_folder) is not None:
            held = Summary.of(entry.spend for entry in read_ledger(site.state_folder).entries)
    except LedgerError as error:
        problem = str(error)
    units = tuple(sorted(held.units - {"none"}))
    composes = not held.without_privacy and len(units) <= 1 and not problem
    return Budget(
        spent=epsilon(held.events, policy.target_delta) if composes else math.inf,
        limit=policy.max_epsilon,
        delta=policy.target_delta,
        units=units or (policy.unit,),
        problem=problem,
    )


def authority_expires(site: SiteConfig) -> datetime | None:
    """Return when the pinned certificate authority expires; None if there is none to read."""
    try:
        pem = site.path(site.connection.ca).read_bytes()
        return x509.load_pem_x509_certificate(pem).not_valid_after_utc
    except (OSError, ValueError):
        return None


def _life(status: Status | None) -> Life:
    if status is None:
        return "never"
    if status.state == "stopped":
        return "stopped"
    if not is_alive(status.pid):
        return "ended"
    return "running" if _age_s(status.heartbeat) < _SILENT_S else "silent"


def _age_s(time: str) -> float:
    try:
        return abs((datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds())
    except (ValueError, TypeError):
        return math.inf


def _paused(folder: AgentFolder) -> str | None:
    try:
        return folder.paused_file.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return None
    except OSError:
        return ""


def _stamp(folder: Path) -> object:
    """What changes when the ledger does; None if there is none."""
    stamps = []
    for name in ("ledger.jsonl", "ledger.seal"):
        try:
            status = (folder / name).stat()
        except OSError:
            continue
        stamps.append((name, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(stamps) or None


def _local_day(moment: datetime) -> str:
    return moment.astimezone().date().isoformat()
