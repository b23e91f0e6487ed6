"""The `medfed` command. Heavy imports are inside the commands, so that --help answers at once."""

import atexit
import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from medfed.cli import (
    data_check,
    data_deidentify,
    data_label,
    data_pacs,
    data_partition,
    data_prepare,
    data_result,
    data_scan,
    data_trial,
    data_view,
    federation_runs,
    federation_sites,
    federation_status,
    site_agent,
    site_card,
    site_enroll,
    site_init,
    site_log,
    site_preflight,
    site_status,
)
from medfed.cli.privacy import privacy_app
from medfed.cli.site_ledger import ledger_app
from medfed.common.errors import DataError, MedfedError, way_out

app = typer.Typer(
    name="medfed",
    help="Federated learning for medical imaging. No image leaves a hospital.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
study_app = typer.Typer(help="Look at study files.", no_args_is_help=True)
app.add_typer(study_app, name="study")
site_app = typer.Typer(help="A hospital's side of a federation.", no_args_is_help=True)
app.add_typer(site_app, name="site")
site_app.add_typer(ledger_app, name="ledger")
app.add_typer(privacy_app, name="privacy")
data_app = typer.Typer(help="Prepare and look at data.", no_args_is_help=True)
app.add_typer(data_app, name="data")
data_scan.add_to(data_app)
data_deidentify.add_to(data_app)
data_label.add_to(data_app)
data_prepare.add_to(data_app)
data_check.add_to(data_app)
data_view.add_to(data_app)
data_partition.add_to(data_app)
data_trial.add_to(data_app)
data_pacs.add_to(data_app)
data_result.add_to(data_app)
federation_app = typer.Typer(
    help="Coordinate a federation: sites, runs and how they are.", no_args_is_help=True
)
app.add_typer(federation_app, name="federation")
for commands in (federation_sites, federation_runs, federation_status):
    commands.add_to(federation_app)
for commands in (
    site_init, site_enroll, site_preflight, site_agent, site_card, site_status, site_log,
):  # fmt: skip
    commands.add_to(site_app)

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one value of the study."),
]
Track = Annotated[
    str | None,
    typer.Option(metavar="TOOL", help="Also write settings and figures to mlflow or tensorboard."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")]


def main() -> None:
    """Run the command; an error that medfed raises on purpose is one message and an exit code."""
    # Flower would otherwise call home, and ask for updates, when a grid starts.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    # Python ends with a search of all objects for cycles: half a second of torch's modules.
    atexit.register(gc.freeze)
    try:
        app()
    except MedfedError as error:
        typer.secho(f"Error: {error}", err=True, fg="red")
        sys.exit(error.exit_code)
    except OSError as error:
        # What commands expect of files they say themselves: this is a disk that is full, a folder
        # that is not there, or one in which this account may not write.
        name = f"{error.filename}: " if error.filename else ""
        why = error.strerror or type(error).__name__
        typer.secho(f"Error: {name}{why}. {way_out(error)}", err=True, fg="red")
        logging.getLogger(__name__).debug("the whole of it", exc_info=True)
        sys.exit(DataError.exit_code)
    except SystemExit as end:
        # Typer turns a Ctrl-C that no command answers into this exit, and says nothing.
        if end.__context__ and isinstance(end.__context__.__cause__, KeyboardInterrupt):
            typer.secho("Stopped. Nothing is lost: run it again, or with --resume.", err=True)
        raise


@contextmanager
def _much_imported() -> Iterator[None]:
    """Import without searching what is there for cycles, then or later: it stays to the end."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        import medfed

        typer.echo(medfed.__version__)
        raise typer.Exit


@app.command()
def simulate(
    study: Annotated[
        Path | None, typer.Argument(help="Study file; ready-made ones are in studies/.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder or file of the data set, in its official layout.")
    ] = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder to make; unless set, runs/NAME-TIME.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with this run folder instead.")
    ] = None,
    grid: Annotated[str, typer.Option(help="Where sites run: local or ray.")] = "local",
    workers: Annotated[
        int, typer.Option(min=0, help="Sites at a time; 0 for as many as the cores allow.")
    ] = 0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a data set with unreadable images.")
    ] = False,
    track: Track = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a study on fake hospitals made from one data set, and report on it."""
    with _much_imported():
        from medfed.cli.simulate import SimulateRequest, run_simulation

    _log_to_stderr(verbose)
    run_simulation(
        SimulateRequest(
            study, data, tuple(overrides or ()), out, resume, grid, workers, strict, track
        ),
        quiet=quiet,
    )


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    track: Track = None,
    predictions: Annotated[
        bool,
        typer.Option(
            "--predictions",
            help="Also write predictions.csv into each simulated run: what every model says of "
            "every held-out image.",
        ),
    ] = False,
) -> None:
    """Rebuild a run's report from its folder alone."""
    from medfed.simulations.reporting.report import write_report
    from medfed.simulations.reporting.run_data import SWEEP_FILE
    from medfed.simulations.reporting.sweep import write_sweep_report

    write = write_sweep_report if (run / SWEEP_FILE).exists() else write_report
    typer.echo(write(run))
    if predictions:
        from medfed.cli.predictions import print_predictions

        print_predictions(run)
    if track is not None:
        from medfed.simulations.tracking import track as write_to

        typer.echo(write_to(run, track))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two or more run folders.")],
    out: Annotated[Path, typer.Option(help="Folder for compare.html and compare.csv.")] = Path(
        "comparison"
    ),
    paired: Annotated[
        bool,
        typer.Option(
            "--paired",
            help="Also evaluate simulated runs again and compare each with the first, patient by "
            "patient: intervals and p. Needs the same held-out patients.",
        ),
    ] = False,
) -> None:
    """Put runs side by side."""
    from medfed.cli.compare import print_comparison

    print_comparison(runs, out, paired=paired)


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    image: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[VIEW=]FILE",
            help="PNG, JPEG, TIFF or NIfTI; once for each view that there is.",
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Age, sex, ... where the model uses them."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for explanation.html and pictures.")] = Path(
        "explanation"
    ),
    site: Annotated[
        str,
        typer.Option(
            metavar="NAME_OR_SITE.toml",
            help="This site's own model (fedbn, ditto, apfl) and grey levels (data.harmonise): "
            "one of a simulation, or yours.",
        ),
    ] = "",
) -> None:
    """Show what in one image made a run's model say what it says."""
    from medfed.cli.explain import print_explanation

    print_explanation(run, image or (), column or (), out, site)


@app.command()
def audit(
    target: Annotated[
        Path,
        typer.Argument(metavar="RUN_OR_LEDGER", help="Run folder, ledger.jsonl or its folder."),
    ],
    part: Annotated[
        list[str] | None,
        typer.Option(help="ledger, mechanism, membership or reconstruction; all of them if unset."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for audit.html.")] = Path("audit"),
    seed: Annotated[int, typer.Option(help="Of the auditor's own draws.")] = 0,
    full: Annotated[
        bool, typer.Option("--full", help="Take more time: more reference models and steps.")
    ] = False,
    delta: Annotated[
        float | None, typer.Option(help="State epsilon at this delta, not at the policy's.")
    ] = None,
) -> None:
    """Check a run's privacy claims: recompute its ledgers, test its noise, attack its model."""
    from medfed.cli.audit import AuditRequest, print_audit

    print_audit(AuditRequest(target, tuple(part or ()), out, as_json, seed, full, delta))


@site_app.command()
def releases(
    site: Annotated[Path, typer.Argument(metavar="SITE.toml", help="The site's own file.")] = Path(
        "site.toml"
    ),
    last: Annotated[
        int | None, typer.Option(min=0, help="Show only so many of the latest.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """List every quantity that left this site, in bytes and with its privacy cost."""
    from medfed.cli.site_releases import print_releases

    print_releases(site, last=last, as_json=as_json)


@study_app.command("keys")
def study_keys() -> None:
    """Explain every key of a study file: meaning, unit and default."""
    from medfed.cli.keys import print_keys

    print_keys()


@study_app.command("show")
def study_show(
    study: Annotated[Path, typer.Argument(help="Study file.")], overrides: Overrides = None
) -> None:
    """Print the resolved study: every value, defaults written out."""
    from medfed.common.study_file import load_study, study_to_toml

    typer.echo(study_to_toml(load_study(study, overrides or ())), nl=False)


def _log_to_stderr(verbose: bool) -> None:
    handler = logging.StreamHandler()
    # On the handler: the run's own log file takes more than the screen.
    handler.setLevel(logging.INFO if verbose else logging.ERROR)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().handlers = [handler]
