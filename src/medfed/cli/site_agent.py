"""`medfed site start|stop|pause|resume|leave`: a hospital decides when it takes part."""

import os
import signal
import time
from pathlib import Path
from typing import Annotated

import typer

from medfed.common.errors import RunError

SiteFile = Annotated[Path, typer.Argument(metavar="SITE.toml", help="The site's own file.")]
_SITE = Path("site.toml")
_STOP_S = 30.0


def start(
    site_file: SiteFile = _SITE,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False,
) -> None:
    """Connect to the coordinator and answer its messages, until stopped."""
    import logging

    from medfed.client.agent.supervisor import run_agent
    from medfed.client.site import load_site

    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    site = load_site(site_file)
    typer.echo(
        f"Site {site.name}: connecting to {site.connection.address or '?'}. "
        f"See how it is: medfed site status {site_file}. Stop: Ctrl-C."
    )
    run_agent(site, site_file)
    typer.echo("Stopped. Ledger, logs and keys are where they were.")


def stop(site_file: SiteFile = _SITE) -> None:
    """End the running agent. What it was training is given up; nothing more leaves."""
    from medfed.client.agent.folder import AgentFolder
    from medfed.client.site import load_site
    from medfed.common.processes import is_alive

    folder = AgentFolder(load_site(site_file))
    pid = _running(folder.lock_file)
    if pid is None:
        typer.echo("It does not run.")
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_S
    while is_alive(pid) and _running(folder.lock_file) is not None:
        if time.monotonic() > deadline:
            raise RunError(f"Process {pid} has not ended in {_STOP_S:.0f} s. End it: kill -9 {pid}")
        time.sleep(0.1)
    typer.echo("Stopped.")


def pause(
    site_file: SiteFile = _SITE,
    reason: Annotated[str, typer.Option(help="For your own log; it never leaves.")] = "",
    now: Annotated[
        bool, typer.Option("--now", help="Also give up the message in hand, if there is one.")
    ] = False,
) -> None:
    """Take part in nothing until resumed. The message in hand is finished first."""
    from medfed.client.agent.folder import AgentFolder
    from medfed.client.audit_log import AuditLog
    from medfed.client.site import load_site

    site = load_site(site_file)
    folder = AgentFolder(site)
    folder.pause(reason)
    AuditLog(site.state_folder).write("paused")
    if now:
        worker = folder.read_worker()
        if worker is not None and worker.working and _running(folder.lock_file) is not None:
            os.kill(worker.pid, signal.SIGKILL)
    typer.echo(f"Paused. Every message is answered with: paused. medfed site resume {site_file}")


def resume(site_file: SiteFile = _SITE) -> None:
    """Take part again."""
    from medfed.client.agent.folder import AgentFolder
    from medfed.client.audit_log import AuditLog
    from medfed.client.site import load_site

    site = load_site(site_file)
    if not AgentFolder(site).resume():
        typer.echo("It was not paused.")
        return
    AuditLog(site.state_folder).write("resumed")
    typer.echo("Resumed.")


def leave(
    site_file: SiteFile = _SITE,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Leave the federation: stop, tell the coordinator, and remove the key to it.

    Ledger, audit log and release list stay: what was spent stays spent.
    """
    from medfed.client.agent.enrol import tell_leaving
    from medfed.client.audit_log import AuditLog
    from medfed.client.site import load_site
    from medfed.common.errors import MedfedError

    site = load_site(site_file)
    if not yes:
        typer.confirm(f"Leave the federation at {site.connection.address}?", abort=True)
    stop(site_file)
    try:
        tell_leaving(site)
        typer.echo("The coordinator was told.")
    except MedfedError as error:
        typer.echo(f"The coordinator could not be told: {error}", err=True)
    site.path(site.connection.key).unlink(missing_ok=True)
    AuditLog(site.state_folder).write("left")
    typer.echo(
        "Left. The key to the federation is removed; ledger and logs stay. To come back you need "
        "a new invite."
    )


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (start, stop, pause, resume, leave):
        app.command()(command)


def _running(lock_file: Path) -> int | None:
    """Return the process that holds the lock; None if nobody does."""
    from medfed.common.locking import holder

    return holder(lock_file)
