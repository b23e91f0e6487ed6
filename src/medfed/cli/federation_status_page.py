"""The screen of `medfed federation status`: alarms first, then runs, then sites.

It fits a terminal of 80 columns, says everything in words (a pipe has no colours), and with a given
height leaves out what is well before what is not.
"""

from collections.abc import Sequence
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from medfed.server.federation.status_types import (
    Alarm,
    FederationStatus,
    MemberStatus,
    RunStatus,
    SupervisorStatus,
)

_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_TITLES = {
    "kappa": "kappa",
    "auroc": "AUROC",
    "dice": "Dice",
    "finding_f1": "F1",
    "bleu4": "BLEU-4",
}
_BARS = "▁▂▃▄▅▆▇█"
_TREND = 8
_REASON = 50
_WIDE = 100
_ENDED_SHOWN = 3
_NOT_WELL = ("refused", "failed", "away", "late", "lost", "rejected")
# Lines that are there whatever there is to show: headings, counts, blank lines.
_FIXED_LINES = 10


def status_page(status: FederationStatus, console: Console, *, height: int | None) -> Group:
    """Return the screen.

    Args:
        status: What to show.
        console: Where it will be shown: its encoding and width decide on bars.
        height: Lines that there are; None to show everything.
    """
    utf = (console.encoding or "").lower().startswith("utf")
    epsilon, bars = "ε" if utf else "epsilon", utf and console.width >= _WIDE
    runs = _shown_runs(status.runs)
    parts: list[RenderableType] = [_head(status), _alarms(status.alarms), Text()]
    parts += [
        _runs(runs, epsilon, bars=bars) if runs else Text("No run yet: medfed federation run STUDY")
    ]
    if more := len(status.runs) - len(runs):
        parts.append(Text(f"and {more} earlier runs; --json lists them all", style="dim"))
    parts.append(Text())
    room = None
    if height is not None:
        lines = sum(1 + bool(alarm.way_out) for alarm in status.alarms)
        room = max(3, height - _FIXED_LINES - lines - len(runs))
    sites = _shown_sites(status.sites, room)
    if not status.sites:
        parts.append(Text("No site yet: medfed federation invite SITE"))
        return Group(*parts)
    parts.append(_sites(sites, epsilon, status.time))
    if more := len(status.sites) - len(sites):
        parts.append(Text(f"and {more} more sites; --json lists them all", style="dim"))
    return Group(*parts)


def _head(status: FederationStatus) -> Text:
    days = status.certificate.days_left
    parts = [
        f"Federation {status.name or status.folder}",
        *([status.address] if status.address else []),
        _supervisor(status.supervisor, status.time),
        f"certificate {days:.0f} days" if days is not None else "certificate unknown",
        f"{status.time[:19].replace('T', ' ')} UTC",
    ]
    return Text(" | ".join(parts), style="bold")


def _supervisor(supervisor: SupervisorStatus, now: str) -> str:
    if not supervisor.up:
        return supervisor.state
    return f"up {_ago(supervisor.started, now)}"


def _alarms(alarms: Sequence[Alarm]) -> RenderableType:
    if not alarms:
        return Text("All is well.", style="green")
    table = _table(("", ""), ("", ""))
    table.show_header = False
    for alarm in alarms:
        style = _STYLES[alarm.level]
        table.add_row(Text(alarm.level.upper(), style=style), Text(alarm.what, style=style))
        if alarm.way_out:
            table.add_row("", Text(alarm.way_out))
    return table


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", collapse_padding=True)
    for title, justify in columns:
        table.add_column(title, justify="right" if justify == "right" else "left", overflow="fold")
    return table


def _shown_runs(runs: Sequence[RunStatus]) -> list[RunStatus]:
    """All that have not ended, and the last of those that have."""
    ended = [run for run in runs if run.state in ("finished", "failed", "stopped")]
    latest = sorted(ended, key=lambda run: run.changed)[-_ENDED_SHOWN:]
    return [run for run in runs if run not in ended or run in latest]


def _runs(runs: Sequence[RunStatus], epsilon: str, *, bars: bool) -> Table:
    table = _table(("Run", ""), ("State", ""), ("Round", "right"), ("Left", "right"),
                   ("Main figure", ""), (epsilon, "right"))  # fmt: skip
    for run in runs:
        bad = run.state in ("failed", "unreadable")
        table.add_row(
            run.name,
            Text(_state(run), style=_STYLES["error"] if bad else ""),
            f"{run.round_number}/{run.rounds or '?'}",
            _left(run),
            _figure(run, bars=bars),
            f"{run.epsilon:.2f}/{run.unit}" if run.epsilon is not None else "",
        )
    return table


def _state(run: RunStatus) -> str:
    if run.state != "running":
        return f"{run.state}: {_cut(run.reason)}" if run.reason else run.state
    if run.phase == "waiting":
        return f"waits for sites: {_cut(run.waits_for)}"
    if run.phase in ("training", "evaluating"):
        took = f", {_span(run.in_round_s)}" if run.in_round_s is not None else ""
        return f"{run.phase}, {run.answered} of {run.asked} answered{took}"
    return run.phase


def _cut(text: str) -> str:
    """All of a reason is in --json, and that of the latest failure among the alarms."""
    return text if len(text) <= _REASON else f"{text[: _REASON - 3]}..."


def _left(run: RunStatus) -> str:
    if run.left_s is None:
        return ""
    return _span(run.left_s) if run.left_s > 0 else "late"


def _figure(run: RunStatus, *, bars: bool) -> str:
    """The latest value, and how it went over the last evaluations."""
    if not run.values:
        return ""
    values = [value for _, value in run.values][-_TREND:]
    text = f"{_TITLES[run.metric]} {values[-1]:.3f}"
    if len(values) < 2:
        return text
    text = f"{text} {values[-1] - values[0]:+.3f}"
    return f"{text} {_bars(values)}" if bars else text


def _bars(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in values)


def _shown_sites(sites: Sequence[MemberStatus], room: int | None) -> list[MemberStatus]:
    """As many as there is room for, those that are not well in front."""
    if room is None or len(sites) <= room:
        return list(sites)
    return sorted(sites, key=lambda site: (_is_well(site), site.name))[:room]


def _is_well(site: MemberStatus) -> bool:
    if site.state in ("enrolled", "unreadable"):
        return False
    is_away = site.state == "approved" and site.online is not True
    return not is_away and site.doing not in _NOT_WELL


def _sites(sites: Sequence[MemberStatus], epsilon: str, now: str) -> Table:
    table = _table(("Site", ""), ("Connection", ""), ("This round", ""), ("Last used", ""),
                   ("Down", "right"), ("Up", "right"), (epsilon, "right"))  # fmt: skip
    for site in sites:
        table.add_row(
            site.name,
            Text(_connection(site, now), style="" if _is_well(site) else "yellow"),
            _doing(site),
            _last_used(site),
            _size(site.bytes_down),
            _size(site.bytes_up),
            f"{site.epsilon:.2f}" if site.epsilon is not None else "",
        )
    return table


def _connection(site: MemberStatus, now: str) -> str:
    if site.state != "approved":
        return "waits for approval" if site.state == "enrolled" else site.state
    if site.online is None:
        return "unknown"
    if site.online:
        return "online"
    return f"away {_ago(site.last_seen, now)}" if site.last_seen else "never connected"


def _doing(site: MemberStatus) -> str:
    if site.doing == "refused":
        return f"refused: {site.why}" if site.why else "refused"
    if site.doing == "asked" and site.online is False:
        return "no answer"
    return {"asked": "working", "ok": "answered"}.get(site.doing, site.doing)


def _last_used(site: MemberStatus) -> str:
    if not site.last_answered:
        return ""
    where = "" if site.answered_run == site.run else f" of {site.answered_run}"
    return f"round {site.last_answered}{where}"


def _size(number: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number} B" if number else ""


def _ago(time: str, now: str) -> str:
    try:
        seconds = datetime.fromisoformat(now) - datetime.fromisoformat(time)
        return _span(max(0.0, seconds.total_seconds()))
    except (ValueError, TypeError):
        return "?"


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86400:.0f} d"
