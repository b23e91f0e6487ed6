"""`medfed site status`: how the site is doing, at a glance."""

import json
import math
import shutil
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from medfed.client.agent.folder import Status
    from medfed.client.agent.glance import Budget, Glance
    from medfed.client.audit_facts import Fact
    from medfed.client.audit_log import AuditEntry

SiteFile = Annotated[Path, typer.Argument(metavar="SITE.toml", help="The site's own file.")]
_SITE = Path("site.toml")
_REFRESH_S = 1.0
_SOON_DAYS = 30
_INDENT = 14


def status(
    site_file: SiteFile = _SITE,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Stay on the screen until Ctrl-C.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Show what this site is doing, what it has spent and what it sent."""
    from medfed.client.agent.glance import GlanceReader
    from medfed.client.site import load_site

    reader = GlanceReader(load_site(site_file))
    if watch and not as_json:
        with suppress(KeyboardInterrupt):
            _watch(reader.read, site_file)
        return
    glance = reader.read()
    if as_json:
        typer.echo(json.dumps(to_json(glance), indent=1))
    else:
        _print(glance, site_file)


def _print(glance: "Glance", site_file: Path) -> None:
    for name, text, tone in rows(glance, site_file):
        body = typer.style(_hanging(text), fg=_COLORS.get(tone))
        typer.echo(f"{name:<{_INDENT}}{body}")


def _hanging(text: str) -> str:
    width = max(60, shutil.get_terminal_size().columns)
    margin = " " * _INDENT
    filled = textwrap.fill(
        text,
        width,
        initial_indent=margin,
        subsequent_indent=margin,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return filled[_INDENT:]


def _watch(read: "Callable[[], Glance]", site_file: Path) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    while not console.is_terminal:  # a log file, say
        _print(read(), site_file)
        typer.echo()
        time.sleep(_REFRESH_S)
    with Live(console=console, auto_refresh=False, screen=True) as live:
        while True:
            live.update(_panel(read(), site_file), refresh=True)
            time.sleep(_REFRESH_S)


def _panel(glance: "Glance", site_file: Path) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    now = datetime.now().astimezone().strftime("%H:%M:%S %Z")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), caption=f"{now}, Ctrl-C ends")
    table.caption_justify = "left"
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text, tone in rows(glance, site_file):
        table.add_row(name, Text(text, style=_COLORS.get(tone, "")))
    return table


_COLORS = {"good": "green", "bad": "red", "warning": "yellow"}


def rows(glance: "Glance", site_file: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (name, text, tone) of each line of the screen."""
    yield "Site", glance.site, ""
    yield _state_row(glance, site_file)
    if glance.paused is not None:
        why = f": {glance.paused}" if glance.paused else ""
        yield "Paused", f"yes{why}. Take part again: medfed site resume {site_file}", "warning"
    if glance.last_answer is not None:
        yield "Last answer", _last_answer(glance.last_answer), ""
    if glance.last_refusal is not None:
        yield "Last refusal", _last_refusal(glance.last_refusal), "warning"
    yield _budget_row(glance.budget, site_file)
    yield "Messages", _messages(glance), ""
    yield "Sent", _sent(glance), ""
    if glance.status is not None and glance.status.worker_restarts:
        count = glance.status.worker_restarts
        yield "Worker", f"started again {count} time(s); `medfed site log` says when", "warning"
    if glance.authority_expires is not None:
        yield _authority_row(glance.authority_expires)
    if glance.audit_problem:
        yield "Audit log", glance.audit_problem, "bad"


def _state_row(glance: "Glance", site_file: Path) -> tuple[str, str, str]:
    status = glance.status
    start = f"Start it: medfed site start {site_file}"
    if status is None:
        return "State", f"not started yet. {start}", "warning"
    if glance.life == "stopped":
        return "State", f"stopped at {_local(status.since)}. {start}", "warning"
    if glance.life == "ended":
        return (
            "State",
            f"not running: it ended without a word (killed, or the machine went down), last seen "
            f"{_local(status.heartbeat)}. {start}",
            "bad",
        )
    if glance.life == "silent":
        return (
            "State",
            f"no sign of life since {_local(status.heartbeat)}, though process {status.pid} is "
            f"there. Stop it and start it again.",
            "bad",
        )
    return "State", *_doing(status)


def _doing(status: "Status") -> tuple[str, str]:
    from medfed.client.agent.wording import doing_text

    since = f"since {_local(status.since)}"
    why = f": {status.reason}" if status.reason else ""
    if status.state == "working":
        about: dict[str, Fact] = {
            "study": status.study,
            "kind": status.kind,
            "round_number": status.round_number,
        }
        return f"{doing_text(about)} (run {status.run}) {since}", "good"
    words = {
        "starting": (f"starting {since}{why}", ""),
        "connecting": (f"not connected {since}{why}. It keeps trying.", "warning"),
        "waiting": (f"connected, and waiting to be asked {since}", "good"),
        "paused": (f"running, and paused {since}", "warning"),
        "failed": (f"failed {since}{why}", "bad"),
    }
    return words.get(status.state, (f"{status.state} {since}{why}", ""))


def _last_answer(entry: "AuditEntry") -> str:
    from medfed.client.agent.wording import size_text, what_text

    facts = entry.facts
    size = size_text(int(facts.get("bytes", 0)))
    return f"{_local(entry.time)}: {facts.get('kind', '')}, {what_text(facts)}, {size}"


def _last_refusal(entry: "AuditEntry") -> str:
    from medfed.client.agent.wording import what_text
    from medfed.client.audit_facts import REASONS

    facts = entry.facts
    reason = str(facts.get("reason", ""))
    what = f"{facts.get('kind', '')}, {what_text(facts)}"
    return f"{_local(entry.time)}: {what}: {REASONS.get(reason, reason)}"


def _budget_row(budget: "Budget", site_file: Path) -> tuple[str, str, str]:
    if budget.problem:
        return "Privacy", f"the ledger cannot be trusted: {budget.problem}", "bad"
    units = " and ".join(budget.units)
    if math.isinf(budget.spent):
        return (
            "Privacy",
            f"no epsilon bounds what was released; medfed site ledger show {site_file}",
            "warning",
        )
    text = (
        f"epsilon {budget.spent:.2f} of {budget.limit:g} per {units} spent "
        f"(delta {budget.delta:g}), {budget.left:.2f} left"
    )
    return "Privacy", text, "bad" if budget.left == 0 else ""


def _messages(glance: "Glance") -> str:
    def counts(table: dict[str, int]) -> str:
        return ", ".join(f"{count} {name}" for name, count in sorted(table.items()))

    answered = sum(glance.answered.values())
    refused = sum(glance.refused.values())
    text = f"{answered} answered" + (f" ({counts(glance.answered)})" if answered else "")
    return text + f", {refused} refused" + (f" ({counts(glance.refused)})" if refused else "")


def _sent(glance: "Glance") -> str:
    from medfed.client.agent.wording import size_text

    return f"{size_text(glance.bytes_today)} today, {size_text(glance.bytes_total)} in all"


def _authority_row(expires: datetime) -> tuple[str, str, str]:
    left = expires - datetime.now(UTC)
    if left.total_seconds() < 0:
        return "Certificate", f"the coordinator's authority expired on {expires:%d %b %Y}", "bad"
    days = left.days
    tone = "warning" if days < _SOON_DAYS else ""
    return "Certificate", f"the coordinator's authority is valid for {days} more days", tone


def to_json(glance: "Glance") -> dict[str, Any]:
    """Return what the screen shows as JSON can state it."""
    table = asdict(glance)
    budget = glance.budget
    table["budget"] = {
        **asdict(budget),
        "spent": budget.spent if math.isfinite(budget.spent) else "infinite",
        "left": budget.left,
    }
    expires = glance.authority_expires
    table["authority_expires"] = expires.isoformat() if expires else None
    return table


def _local(time: str) -> str:
    try:
        moment = datetime.fromisoformat(time).astimezone()
    except ValueError:
        return "an unknown time"
    form = "%H:%M:%S %Z"
    if moment.date() != datetime.now().astimezone().date():
        form = "%d %b %Y %H:%M:%S %Z"
    return moment.strftime(form)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(status)
