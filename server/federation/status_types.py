"""What a coordinator sees of a federation at one moment. `status.read_status` fills it from files.

`as_json` of these is what `medfed federation status --json` prints: its keys are stable.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Doing = Literal[
    "",
    "asked",
    "answered",
    "ok",
    "refused",
    "failed",
    "away",
    "late",
    "lost",
    "rejected",
    "training",
]
"""What a site does in a run's latest round: asked and answered while it is on, then how it went;
"" for a site that has no part in it."""
Phase = Literal["", "joining", "waiting", "training", "evaluating", "between rounds"]
Level = Literal["error", "warning", "note"]


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """Something that a person should know first.

    Attributes:
        level: error: something does not work; warning: it will not, or not well; note: somebody
            waits for this person.
        what: What is wrong.
        way_out: What to do about it; may be empty.
    """

    level: Level
    what: str
    way_out: str = ""


@dataclass(frozen=True, kw_only=True)
class ProcessStatus:
    """One of the supervisor's processes, as it last wrote."""

    name: str
    state: str
    pid: int | None = None
    restarts: int = 0


@dataclass(frozen=True, kw_only=True)
class SupervisorStatus:
    """The program that keeps everything else alive.

    Attributes:
        state: up; stopped; silent: it should be up and has not written for long; never started.
        pid: Its number, as it last wrote.
        started: When it started; ISO 8601, UTC. "" if never.
        heartbeat: When it last wrote. "" if never.
        processes: Its children.
        problem: What it says is wrong.
    """

    state: Literal["up", "stopped", "silent", "never started"] = "never started"
    pid: int | None = None
    started: str = ""
    heartbeat: str = ""
    processes: tuple[ProcessStatus, ...] = ()
    problem: str = ""

    @property
    def up(self) -> bool:
        """Whether it runs."""
        return self.state == "up"


@dataclass(frozen=True, kw_only=True)
class CertificateStatus:
    """The server's certificate: `expires` (ISO 8601, UTC; "" if unknown) and days until then."""

    expires: str = ""
    days_left: float | None = None


@dataclass(frozen=True, kw_only=True)
class GateStatus:
    """What the gate turned down within the last hour: by reason, and by site ("" for strangers)."""

    num_turned_down: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    sites: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SiteInRun:
    """One site in one run.

    Attributes:
        doing: In the run's latest round.
        why: Reason for refused, failed, late or rejected.
        last_answered: The latest round that used its answer; 0 if none did.
        answered_at: When that round began; ISO 8601. "" if none did.
        bytes_down: Sent to it in all completed rounds.
        bytes_up: Sent by it.
        epsilon: What its data set has spent, as it last stated; None if it stated none.
        refusals: How often it refused, by reason.
        num_rejected: How often what it sent was rejected.
    """

    doing: Doing = ""
    why: str = ""
    last_answered: int = 0
    answered_at: str = ""
    bytes_down: int = 0
    bytes_up: int = 0
    epsilon: float | None = None
    refusals: Mapping[str, int] = field(default_factory=dict)
    num_rejected: int = 0


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """One run.

    Attributes:
        name: Its folder.
        state: waiting, running, finished, failed or stopped, by the queue; unreadable.
        reason: Why it is in this state.
        submitted: When it was queued; ISO 8601, UTC.
        changed: When anything last happened in it.
        attempts: Tries in a row that ended early without one more round.
        phase: What a running run does now.
        waits_for: While it waits for sites, in the server's words.
        round_number: The round in progress, or the last one; 0 before the first.
        completed: Rounds completed.
        rounds: Rounds that the study asks for; 0 if unknown.
        round_started: When the round in progress began; "" between rounds.
        in_round_s: Seconds since then.
        round_s: Seconds that a round takes, the median of the latest; None before the first.
        left_s: Seconds until the last round ends if all goes on so; None if unknown.
        asked: Sites asked in the latest round.
        answered: Sites that have answered in it.
        min_sites: Quorum.
        metric: Key of the leading figure; "" before the first evaluation.
        values: (round, its value) of each evaluated round.
        epsilon: The highest that a site has stated; under unit "site", the server's.
        unit: Unit of privacy.
        delta: Delta of epsilon; None without privacy.
        sites: By name.
    """

    name: str
    state: str
    reason: str = ""
    submitted: str = ""
    changed: str = ""
    attempts: int = 0
    phase: Phase = ""
    waits_for: str = ""
    round_number: int = 0
    completed: int = 0
    rounds: int = 0
    round_started: str = ""
    in_round_s: float | None = None
    round_s: float | None = None
    left_s: float | None = None
    asked: int = 0
    answered: int = 0
    min_sites: int = 0
    metric: str = ""
    values: tuple[tuple[int, float], ...] = ()
    epsilon: float | None = None
    unit: str = "none"
    delta: float | None = None
    sites: Mapping[str, SiteInRun] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MemberStatus:
    """One site, over all runs.

    Attributes:
        name: The site's.
        state: In the registry: invited, enrolled, approved, revoked or left; unreadable.
        note: What the registry has to say about it.
        invite_expires: Of an invited site; ISO 8601, UTC.
        online: Whether it is connected; None if that is not known now.
        last_seen: When it last was; "" if never.
        run: The run that `doing` is about: the one that goes on, or else the latest with it.
        doing: In that run's latest round; see `SiteInRun`.
        why: Reason for refused, failed, late or rejected.
        round_number: That round.
        answered_run: The run with the latest round that used its answer; "" if none did.
        last_answered: That round.
        bytes_down: Sent to it, all runs.
        bytes_up: Sent by it, all runs.
        epsilon: What its data set has spent, as it last stated; None if it stated none.
        epsilon_delta: The delta of that figure.
        refusals: How often it refused, by reason, all runs.
        num_rejected: How often what it sent was rejected, all runs.
    """

    name: str
    state: str
    note: str = ""
    invite_expires: str = ""
    online: bool | None = None
    last_seen: str = ""
    run: str = ""
    doing: Doing = ""
    why: str = ""
    round_number: int = 0
    answered_run: str = ""
    last_answered: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    epsilon: float | None = None
    epsilon_delta: float | None = None
    refusals: Mapping[str, int] = field(default_factory=dict)
    num_rejected: int = 0


@dataclass(frozen=True, kw_only=True)
class FederationStatus:
    """Everything at one moment.

    Attributes:
        time: When it was read; ISO 8601, UTC.
        folder: HOME.
        name: The federation's; "" if federation.toml cannot be read.
        address: That sites use.
        alarms: What a person should know first, the worst in front.
        supervisor: And its processes.
        certificate: The server's.
        sites: By name.
        runs: The one queued first in front.
        gate: What was turned down.
        unreadable: Files that cannot be read, with the reason.
    """

    time: str
    folder: str
    name: str
    address: str
    supervisor: SupervisorStatus
    certificate: CertificateStatus
    sites: tuple[MemberStatus, ...]
    runs: tuple[RunStatus, ...]
    gate: GateStatus
    unreadable: tuple[str, ...] = ()
    alarms: tuple[Alarm, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether nothing is broken: no alarm of level error."""
        return not any(alarm.level == "error" for alarm in self.alarms)

    def as_json(self) -> dict[str, Any]:
        """Return plain values: the fields by name, and healthy."""
        return {"healthy": self.healthy, **asdict(self)}
