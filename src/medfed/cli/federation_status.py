"""`medfed federation status`: what is wrong, what to do about it, and then everything else.

`--json` prints one table: `healthy` (no alarm of level error), `time`, `folder`, `name`, `address`,
`alarms` (level, what, way_out), `supervisor`, `certificate`, `sites`, `runs`, `gate`, `unreadable`.
Each key below these is a field of a class in server/federation/status_types.py (`SiteInRun` within
a run, `MemberStatus` for a site over all runs), where its meaning and unit stand. Keys stay; new
ones may come.
"""

import io
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from medfed.server.federation.status import StatusReader

_EVERY_S = 1.0


def status(
    home: Annotated[
        Path,
        typer.Option(envvar="MEDFED_FEDERATION", help="The federation's folder."),
    ] = Path("federation"),
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it anew each second.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Show what is wrong, what each site does, and how far each run is."""
    from rich.console import Console

    from medfed.cli.federation_status_page import status_page
    from medfed.common.errors import RunError
    from medfed.server.federation.status import StatusReader

    if watch and as_json:
        raise RunError("Expected one of --watch and --json, got both. Call --json again and again.")
    reader = StatusReader(home)
    if as_json:
        typer.echo(json.dumps(reader.read().as_json(), indent=1))
        return
    console = Console(highlight=False)
    if watch:
        _watch(console, reader)
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal or a pipe that cannot show a letter of a reason still shows the rest.
        sys.stdout.reconfigure(errors="replace")
    height = console.height if console.is_terminal else None
    console.print(status_page(reader.read(), console, height=height))


def _watch(console: "Console", reader: "StatusReader") -> None:
    from rich.live import Live

    from medfed.cli.federation_status_page import status_page
    from medfed.common.errors import RunError

    if not console.is_terminal:
        raise RunError("--watch needs a terminal. Call it without, or with --json.")
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                page = status_page(reader.read(), console, height=console.height)
                live.update(page, refresh=True)
                time.sleep(_EVERY_S)
    except KeyboardInterrupt:
        return


def add_to(app: typer.Typer) -> None:
    """Add the command to `medfed federation`."""
    app.command()(status)
