"""`medfed site log`: what was asked of this site, what it did, what left, in plain words."""

import json
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from medfed.client.agent.story import Chapter
    from medfed.client.audit_log import AuditEntry
    from medfed.client.site import SiteConfig

T = TypeVar("T")
SiteFile = Annotated[Path, typer.Argument(metavar="SITE.toml", help="The site's own file.")]

_SITE = Path("site.toml")
_POLL_S = 0.5
_AGO = re.compile(r"(\d{1,6})\s*(m|h|d|w)")
_AGO_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def log(
    site_file: SiteFile = _SITE,
    last: Annotated[int, typer.Option(min=0, help="Tell so much of the latest; 0 for all.")] = 20,
    since: Annotated[
        str, typer.Option(metavar="TIME", help="Tell from then on: 2026-11-25, 14:00, 2h, 3d.")
    ] = "",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on telling until Ctrl-C.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the audit log's entries for programs.")
    ] = False,
) -> None:
    """Tell what was asked of this site, what it answered, and what left."""
    from medfed.client.site import load_site

    config = load_site(site_file)
    start = _start(since)
    show = _print_json if as_json else _print_story
    with suppress(KeyboardInterrupt):
        show(config, last, start, follow=follow)


def _print_story(config: "SiteConfig", last: int, start: datetime, *, follow: bool) -> None:
    from medfed.client.audit_log import AuditLog

    follower = AuditLog(config.state_folder).follow()
    chapters = _chapters(config, follower.news())
    shown = _latest([one for one in chapters if _moment(one.time) >= start], last)
    if not chapters:
        typer.echo(f"Nothing has happened at {config.name} yet.")
    elif not shown:
        typer.echo("Nothing since then.")
    elif len(shown) < len(chapters):
        typer.echo(f"({len(chapters) - len(shown)} earlier: --last 0)")
    for chapter in shown:
        _say(chapter.time, chapter.text, chapter.tone)
    _warn_if_untrusted(config)
    if not follow:
        return
    waiting = [one for one in chapters if one.request and not one.outcome]
    held = list(waiting[-1].entries) if waiting else []
    while True:
        time.sleep(_POLL_S)
        held = _say_news(config, held, follower.news())


def _say_news(
    config: "SiteConfig", held: "list[AuditEntry]", news: "list[AuditEntry]"
) -> "list[AuditEntry]":
    """Tell what is new; return the request that still has no outcome."""
    if not news:
        return held
    told = {entry.index for entry in held}
    chapters = _chapters(config, [*held, *news])
    held = []
    for chapter in chapters:
        if not chapter.entries:
            continue
        if chapter.request and chapter.entries[0].index not in told:
            _say(chapter.time, chapter.request, "plain")
        if chapter.outcome:
            margin = "  " if chapter.request else ""
            _say(chapter.entries[-1].time, margin + chapter.outcome, chapter.tone)
        else:
            held = list(chapter.entries)
    return held


def _print_json(config: "SiteConfig", last: int, start: datetime, *, follow: bool) -> None:
    from medfed.client.audit_log import AuditLog, AuditLogError

    audit = AuditLog(config.state_folder)
    follower = audit.follow()
    entries = [one for one in follower.news() if _moment(one.time) >= start]
    if follow:
        new = _latest(entries, last)
        while True:
            for entry in new:
                typer.echo(json.dumps(asdict(entry)))
            time.sleep(_POLL_S)
            new = follower.news()
    problem = ""
    try:
        audit.verify()
    except AuditLogError as error:
        problem = str(error)
    table = {
        "site": config.name,
        "trusted": not problem,
        "problem": problem,
        "entries": [asdict(entry) for entry in _latest(entries, last)],
    }
    typer.echo(json.dumps(table, indent=1))


def _chapters(config: "SiteConfig", entries: "Sequence[AuditEntry]") -> "list[Chapter]":
    from medfed.client.agent.story import tell
    from medfed.client.releases import read_releases
    from medfed.common.errors import LedgerError
    from medfed.common.ledger import read_ledger

    try:
        ledger = read_ledger(config.state_folder).entries
    except LedgerError:  # none yet; or damaged, which `site ledger verify` and `status` say
        ledger = ()
    releases, _ = read_releases(config.state_folder)
    return tell(entries, releases, ledger, config.policy)


def _warn_if_untrusted(config: "SiteConfig") -> None:
    from medfed.client.audit_log import AuditLog, AuditLogError

    try:
        AuditLog(config.state_folder).verify()
    except AuditLogError as error:
        typer.secho(f"Warning: {error}", err=True, fg="yellow")


def _say(moment: str, text: str, tone: str) -> None:
    color = {"bad": "red", "good": "green"}.get(tone)
    when = typer.style(_local(moment), dim=True)
    typer.echo(f"{when}  {typer.style(text, fg=color)}")


def _local(moment: str) -> str:
    local = _moment(moment).astimezone()
    year = "" if local.year == datetime.now().astimezone().year else " %Y"
    return local.strftime(f"%d %b{year} %H:%M:%S %Z")


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _latest(items: Sequence[T], last: int) -> Sequence[T]:
    return items[max(0, len(items) - last) :] if last else items


def _start(since: str) -> datetime:
    """Read --since: a local date or time, a time of today, or how long ago."""
    now = datetime.now().astimezone()
    if not since:
        return datetime.min.replace(tzinfo=UTC)
    ago = _AGO.fullmatch(since.strip())
    if ago:
        return now - timedelta(**{_AGO_UNITS[ago[2]]: int(ago[1])})
    try:
        clock = datetime.strptime(since.strip(), "%H:%M").time()
        return datetime.combine(now.date(), clock).astimezone()
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(since.strip()).astimezone()
    except ValueError:
        raise typer.BadParameter(
            f"Expected a date (2026-11-25), a time (14:00), both (2026-11-25T14:00) or how long "
            f"ago (30m, 2h, 3d, 1w), got {since!r}.",
            param_hint="--since",
        ) from None


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(log)
