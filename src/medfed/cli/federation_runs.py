"""`medfed federation start|run|stop`: the coordinator's processes and the studies they run."""

import json
import logging
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfed.common.errors import RunError, StudyError

if TYPE_CHECKING:
    from rich.console import Console

    from medfed.server.federation.home import FederationHome
    from medfed.server.federation.queue import QueuedRun, RunQueue

_HOME = Path("federation")
_POLL_S = 0.5
_STOP_PATIENCE_S = 60.0
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

Home = Annotated[
    Path, typer.Option("--home", envvar="MEDFED_FEDERATION", help="The federation's folder.")
]


def start(home: Home = _HOME) -> None:
    """Serve sites and run what is queued, until stopped. Runs in the foreground, for systemd."""
    from medfed.server.federation.home import load_home
    from medfed.server.federation.supervisor import check_owner, supervise

    this = load_home(home)
    check_owner(this)
    _log_to(this.logs_folder / "supervisor.log")
    typer.echo(
        f"Federation {this.config.name}: sites reach it at {this.config.address}. "
        f"Logs: {this.logs_folder}. Stop: Ctrl-C."
    )
    supervise(this)
    typer.echo("Stopped. Runs go on after their last whole round when it is started again.")


def run(
    study: Annotated[
        Path | None, typer.Argument(help="Study file; a simulation section in it plays no part.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one value of the study."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the run's folder (default: the study's name and time).")
    ] = None,
    home: Home = _HOME,
    resume: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Go on with this run, which failed or was stopped."),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Queue it and do not watch.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Run a study at the approved sites, and watch it. Ctrl-C ends the watching, not the run."""
    from medfed.server.federation.home import load_home
    from medfed.server.federation.queue import RunQueue

    this = load_home(home)
    _check_running(this)
    queue = RunQueue(this)
    if resume is not None:
        if study or overrides or name:
            raise StudyError("--resume goes on with a run's own study: give its name alone.")
        queued = queue.resume(resume)
    else:
        queued = _submit(queue, study, tuple(overrides or ()), name)
    if not detach:
        queued = _watch(this, queue, queued.name, quiet=as_json)
    _print_run(queue, queued, as_json=as_json)
    if queued.state in ("failed", "stopped"):
        if as_json:
            raise typer.Exit(RunError.exit_code)
        raise RunError(
            f"Run {queued.name} {queued.state}: {queued.reason or 'no reason was given'} "
            f"Go on with it: medfed federation run --resume {queued.name} --home {home}"
        )


def stop(
    name: Annotated[
        str | None, typer.Argument(help="Run to stop (default: the federation's processes).")
    ] = None,
    home: Home = _HOME,
) -> None:
    """Stop one run, or all processes. Either goes on later from its last whole round."""
    from medfed.server.federation.home import load_home
    from medfed.server.federation.queue import RunQueue
    from medfed.server.federation.supervisor import check_owner

    this = load_home(home)
    check_owner(this)
    if name is not None:
        RunQueue(this).stop(name)
        typer.echo(
            f"Run {name} is stopped. Go on: medfed federation run --resume {name} --home {home}"
        )
        return
    _stop_supervisor(this)


def _submit(
    queue: "RunQueue", study: Path | None, overrides: tuple[str, ...], name: str | None
) -> "QueuedRun":
    from medfed.common.models import check_model
    from medfed.common.study_file import load_study, with_files
    from medfed.simulations.environment import describe_environment
    from medfed.simulations.plugins import complete

    if study is None:
        raise StudyError(
            "Expected a study file or --resume NAME. Try: medfed federation run --help"
        )
    config = complete(with_files(load_study(study, overrides), study.parent))
    check_model(config)
    if config.sweep is not None:
        raise StudyError(
            f"{study} has a [sweep]: those are for `medfed simulate`. Real patients' budgets are "
            "spent by one study at a time: remove [sweep], and set the values that it settled on."
        )
    if config.simulation is not None:
        typer.echo("[simulation] plays no part here: each site trains on its own data.", err=True)
        config = config.model_copy(update={"simulation": None})
    chosen = name or f"{config.study.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return queue.submit(config, chosen, describe_environment(grid="superlink", workers=1))


def _check_running(home: "FederationHome") -> None:
    """Check that somebody will run what is queued.

    Raises:
        RunError: Nobody will, or the federation is another user's.
    """
    from medfed.common.locking import holder
    from medfed.server.federation.supervisor import check_owner, lock_file

    check_owner(home)
    if holder(lock_file(home)) is None:
        raise RunError(
            f"The federation in {home.folder} is not running: nothing was queued. Start it: "
            f"medfed federation start --home {home.folder}"
        )


def _watch(home: "FederationHome", queue: "RunQueue", name: str, *, quiet: bool) -> "QueuedRun":
    """Show a run until it ends; return it as it then stands."""
    from rich.console import Console

    from medfed.cli.progress import show_progress
    from medfed.common.study_file import load_study

    console = Console(stderr=True, quiet=quiet)
    folder = queue.folder(name)
    try:
        with show_progress(folder, load_study(folder / "study.toml"), console):
            return _follow(home, queue, name, console)
    except KeyboardInterrupt:
        typer.echo(
            f"Run {name} goes on. See it: medfed federation status; "
            f"stop it: medfed federation stop {name}",
            err=True,
        )
        raise typer.Exit(130) from None


def _follow(
    home: "FederationHome", queue: "RunQueue", name: str, console: "Console"
) -> "QueuedRun":
    from medfed.common.locking import holder
    from medfed.server.federation.queue import ENDED
    from medfed.server.federation.supervisor import lock_file

    told = ""
    while True:
        queued = queue.get(name)
        if queued.state in ENDED:
            return queued
        news = f"{name}: {queued.state} {queued.reason}".strip()
        if holder(lock_file(home)) is None:
            news = f"{name}: waits for `medfed federation start`"
        if news != told:
            console.print(news, highlight=False, markup=False)
            told = news
        time.sleep(_POLL_S)


def _print_run(queue: "RunQueue", queued: "QueuedRun", *, as_json: bool) -> None:
    folder = queue.folder(queued.name)
    if as_json:
        table = {
            "name": queued.name,
            "state": queued.state,
            "reason": queued.reason,
            "rounds": queue.num_rounds(queued.name),
            "run": queue.arm(queued.name).read_plan().run,
            "folder": str(folder),
        }
        typer.echo(json.dumps(table, indent=1))
        return
    reason = f" ({queued.reason})" if queued.reason and queued.state == "finished" else ""
    typer.echo(f"Run {queued.name} is {queued.state}{reason}. Folder: {folder}")


def _stop_supervisor(home: "FederationHome") -> None:
    from medfed.common.locking import holder
    from medfed.server.federation.supervisor import lock_file

    pid = holder(lock_file(home))
    if pid is None or not _has_open(pid, lock_file(home)):
        typer.echo("It does not run.")
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_PATIENCE_S
    while holder(lock_file(home)) == pid:
        if time.monotonic() > deadline:
            raise RunError(
                f"Process {pid} has not ended in {_STOP_PATIENCE_S:.0f} s. End it: kill -9 {pid}"
            )
        time.sleep(0.1)
    typer.echo("Stopped.")


def _has_open(pid: int, file: Path) -> bool:
    """Whether a process has a file open: numbers in files may be another process' by now."""
    handles = Path(f"/proc/{pid}/fd")
    try:
        return any(handle.readlink() == file for handle in handles.iterdir())
    except OSError:
        return not Path("/proc/self").exists()


def _log_to(path: Path) -> None:
    """Keep the supervisor's log in its file and on standard error."""
    path.parent.mkdir(exist_ok=True)
    handlers: list[logging.Handler] = [
        logging.StreamHandler(),
        logging.FileHandler(path, encoding="utf-8"),
    ]
    logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT, handlers=handlers, force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)


def add_to(app: typer.Typer) -> None:
    """Register the commands with `medfed federation`."""
    app.command()(start)
    app.command()(run)
    app.command()(stop)
