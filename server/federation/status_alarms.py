"""What a person on call must know first, and what to do about it.

Each rule looks at one thing. Errors: something does not work. Warnings: it soon will not, or works
less well than it should. Notes: somebody waits for a decision.
"""

from collections.abc import Iterator

from medfed.common.errors import RefusalReason
from medfed.server.federation.status_types import (
    Alarm,
    FederationStatus,
    MemberStatus,
    RunStatus,
)

_ORDER = ("error", "warning", "note")
_WARN_DAYS = 30.0
# A round that takes so many times what rounds take is worth a look, after a minute.
_SLOW = 3.0
_SLOW_S = 60.0
_START = "Start it: `medfed federation start`. Runs go on after their last complete round."
# What a coordinator can do about each reason for which a site says no.
_REFUSED: dict[str, str] = {
    RefusalReason.BUDGET: "Its privacy budget does not cover the round. Only the site can raise "
    "it; the run goes on without it.",
    RefusalReason.POLICY: "Its policy does not allow the study. Ask the site to look at "
    "`medfed site log`, and change the study or the policy.",
    RefusalReason.DATA: "Its data does not fit the study. Ask the site to run "
    "`medfed site preflight`.",
    RefusalReason.LEDGER: "Its ledger cannot be trusted, so it does not train. Ask the site to run "
    "`medfed site ledger verify`.",
    RefusalReason.STUDY: "It cannot run the study: compare versions of medfed on both sides.",
    RefusalReason.INTERNAL: "Something failed there. Ask the site to look at `medfed site log`.",
    RefusalReason.PAUSED: "Its staff paused it; it is asked again in each round.",
}


def find_alarms(status: FederationStatus) -> tuple[Alarm, ...]:
    """Return what is wrong with `status`, the worst in front."""
    rules = (_processes, _certificate, _runs, _sites, _gate, _files)
    found = [alarm for rule in rules for alarm in rule(status)]
    return tuple(sorted(found, key=lambda alarm: _ORDER.index(alarm.level)))


def _processes(status: FederationStatus) -> Iterator[Alarm]:
    supervisor = status.supervisor
    if supervisor.state == "silent":
        yield Alarm(
            level="error",
            what=f"The supervisor has not been heard of since {_clock(supervisor.heartbeat)}.",
            way_out=f"{_START} What happened is in logs/supervisor.log.",
        )
    elif not supervisor.up:
        has_work = any(run.state in ("waiting", "running") for run in status.runs)
        yield Alarm(
            level="error" if has_work else "warning",
            what="Nothing runs: the federation was "
            + ("stopped." if supervisor.state == "stopped" else "never started."),
            way_out=_START,
        )
    for process in supervisor.processes if supervisor.up else ():
        if process.state != "running":
            yield Alarm(
                level="error",
                what=f"{process.name} is down ({process.state}, {process.restarts} restarts).",
                way_out=f"It is started again by itself; see logs/{process.name}.log.",
            )
    if supervisor.problem and supervisor.state != "stopped":
        yield Alarm(level="error", what=f"The supervisor says: {supervisor.problem}")


def _certificate(status: FederationStatus) -> Iterator[Alarm]:
    days = status.certificate.days_left
    if days is None:
        return  # among the files that cannot be read
    way_out = "medfed federation renew, then start the federation anew. Sites need nothing new."
    when = _clock(status.certificate.expires)
    if days <= 0:
        what = f"The server's certificate expired on {when}: no site can connect."
        yield Alarm(level="error", what=what, way_out=way_out)
    elif days < _WARN_DAYS:
        what = f"The server's certificate expires in {int(days)} days, on {when}."
        yield Alarm(level="warning", what=what, way_out=way_out)


def _runs(status: FederationStatus) -> Iterator[Alarm]:
    for run in status.runs:
        if run.state == "unreadable":
            what = f"Run {run.name} cannot be read."
            yield Alarm(level="error", what=what, way_out="Restore its queue.json from a backup.")
        elif run.state == "running":
            yield from _going(run, status)
        elif run.state == "waiting" and run.attempts:
            what = f"Run {run.name} is tried again, {run.attempts} times so far: {run.reason}"
            yield Alarm(level="warning", what=what, way_out="See logs/superexec.log.")
    ended = [run for run in status.runs if run.state in ("finished", "failed", "stopped")]
    latest = max(ended, key=lambda run: run.changed, default=None)
    # Older failures have been seen: something ended since.
    if latest is not None and latest.state == "failed":
        yield Alarm(
            level="error",
            what=f"Run {latest.name} failed after {latest.completed} of {latest.rounds} rounds: "
            f"{latest.reason}",
            way_out=f"Mend that, then: medfed federation run --resume {latest.name}",
        )


def _going(run: RunStatus, status: FederationStatus) -> Iterator[Alarm]:
    approved = [site for site in status.sites if site.state == "approved"]
    online = sum(site.online is True for site in approved)
    if status.supervisor.up and online < run.min_sites:
        away = ", ".join(site.name for site in approved if site.online is False)
        yield Alarm(
            level="error",
            what=f"Run {run.name} needs {run.min_sites} sites, {online} are connected.",
            way_out=f"Ask for `medfed site status` at: {away}." if away else "Approve more sites.",
        )
    elif run.phase == "waiting":
        yield Alarm(level="warning", what=f"Run {run.name} waits: {run.waits_for}")
    if run.in_round_s is None or run.round_s is None:
        return
    if run.in_round_s > max(_SLOW * run.round_s, _SLOW_S):
        silent = [name for name, site in run.sites.items() if site.doing == "asked"]
        yield Alarm(
            level="warning",
            what=f"Run {run.name}: round {run.round_number} takes {_span(run.in_round_s)}, the "
            f"last ones took {_span(run.round_s)}.",
            way_out=f"No answer yet from {', '.join(silent)}." if silent else "",
        )


def _sites(status: FederationStatus) -> Iterator[Alarm]:
    is_running = any(run.state == "running" for run in status.runs)
    for site in status.sites:
        if site.state == "unreadable":
            yield Alarm(
                level="error",
                what=f"The record of {site.name} cannot be read: the site cannot connect.",
                way_out=f"Restore sites/{site.name}.json from a backup.",
            )
        elif site.state == "enrolled":
            yield Alarm(
                level="note",
                what=f"{site.name} has enrolled and waits for your approval.",
                way_out=f"medfed federation approve {site.name}",
            )
        elif site.state == "approved":
            if site.online is False and is_running:
                seen = _clock(site.last_seen) if site.last_seen else "never"
                yield Alarm(
                    level="warning",
                    what=f"{site.name} is not connected (last seen: {seen}).",
                    way_out="Ask its IT for `medfed site status`.",
                )
            yield from _answers(site)
        if site.note:
            yield Alarm(level="warning", what=f"{site.name}: {site.note}")


def _answers(site: MemberStatus) -> Iterator[Alarm]:
    where = f"in round {site.round_number} of {site.run}" if site.round_number else site.run
    if site.doing == "refused":
        what = f"{site.name} refused {where}: {site.why or 'no reason'}."
        yield Alarm(level="warning", what=what, way_out=_REFUSED.get(site.why, ""))
    elif site.doing == "rejected":
        what = f"What {site.name} sent {where} was rejected: {site.why}"
        yield Alarm(level="warning", what=what, way_out="It was left out; tell the site.")
    elif site.doing in ("late", "lost", "failed"):
        why = f" ({site.why})" if site.why and site.why != site.doing else ""
        what = f"{site.name} {_WENT[site.doing]} {where}{why}."
        yield Alarm(level="warning", what=what, way_out="The round went on without it.")


_WENT = {"late": "was too late", "lost": "was lost", "failed": "failed"}


def _gate(status: FederationStatus) -> Iterator[Alarm]:
    gate = status.gate
    if not gate.num_turned_down:
        return
    most = max(gate.reasons, key=lambda reason: gate.reasons[reason])
    names = sorted(name or "unknown senders" for name in gate.sites)
    yield Alarm(
        # Whoever finds an open port knocks at it; a site's requests should be good.
        level="warning" if any(gate.sites) else "note",
        what=f"The gate turned down {gate.num_turned_down} requests in the last hour, of "
        f"{', '.join(names)}; most often: {most}.",
        way_out="They did no harm. superlink/rejections.jsonl lists them.",
    )


def _files(status: FederationStatus) -> Iterator[Alarm]:
    for line in status.unreadable:
        yield Alarm(level="error", what=f"Cannot be read: {line}")


def _clock(time: str) -> str:
    return f"{time[:16].replace('T', ' ')} UTC" if time else "never"


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
