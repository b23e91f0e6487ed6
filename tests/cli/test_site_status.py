"""`medfed site status`: what a person sees at a glance."""

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from medfed.cli import site_status
from medfed.client.agent.folder import AgentFolder, Status
from medfed.client.agent.glance import GlanceReader
from medfed.client.audit_log import AuditLog
from medfed.client.site import SiteConfig, load_site
from medfed.common.ledger import Ledger, Spend

sys.path.insert(0, str(Path(__file__).parents[1] / "client" / "agent"))

from trial_hospital import make_site, make_store

app = typer.Typer()
SPEND = Spend(
    release="r",
    study="s",
    run="run",
    round_number=1,
    unit="patient",
    images_per_patient=1,
    noise_multiplier=1.5,
    sample_rate=0.1,
    steps=7,
    max_grad_norm=1.0,
    noise="secure",
)


@app.callback()
def _root() -> None:
    """Make `status` a command of its own."""


site_status.add_to(app)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("stores"))


@pytest.fixture
def site(tmp_path: Path, store: Path) -> SiteConfig:
    return load_site(make_site(tmp_path, store))


def run(site: SiteConfig, *options: str) -> str:
    arguments = ["status", str(site.folder / "site.toml"), *options]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "250"})
    assert done.exception is None, done.output
    return done.output


def say(site: SiteConfig, **changes: object) -> None:
    folder = AgentFolder(site)
    folder.make()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    status = Status(pid=os.getpid(), state="waiting", since=now, heartbeat=now)
    folder.write_status(replace(status, **changes))  # type: ignore[arg-type]


def line(printed: str, name: str) -> str:
    [found] = [row for row in printed.splitlines() if row.startswith(name)]
    return found.removeprefix(name).strip()


def test_site_that_never_ran_says_how_to_start(site: SiteConfig) -> None:
    printed = run(site)
    assert "not started yet. Start it: medfed site start" in line(printed, "State")
    assert line(printed, "Privacy") == (
        "epsilon 0.00 of 8 per patient spent (delta 1e-05), 8.00 left"
    )
    assert line(printed, "Messages") == "0 answered, 0 refused"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "connected, and waiting to be asked since"),
        (
            {"state": "working", "kind": "train", "study": "ham", "round_number": 7, "run": "r-1"},
            "training round 7 of study ham (run r-1) since",
        ),
        (
            {"state": "working", "kind": "surprise", "study": "ham"},
            "answering a message for study ham",
        ),
        ({"state": "connecting", "reason": "no network"}, ": no network. It keeps trying."),
        ({"state": "starting", "reason": "the worker is loading"}, ": the worker is loading"),
        ({"state": "failed", "reason": "no disk"}, ": no disk"),
        ({"state": "stopped"}, "Start it: medfed site start"),
        ({"heartbeat": "2020-01-01T00:00:00+00:00"}, "no sign of life since 01 Jan 2020"),
        ({"heartbeat": "yesterday"}, "no sign of life since an unknown time"),
        ({"pid": 2**22 + 1}, "it ended without a word"),
    ],
)
def test_state_is_said_in_words(site: SiteConfig, changes: dict[str, object], said: str) -> None:
    say(site, **changes)
    assert said in line(run(site), "State")


def test_everything_a_person_asks_for_is_there(site: SiteConfig) -> None:
    say(site, worker_restarts=2)
    audit = AuditLog(site.state_folder)
    audit.write("answered", study="ham", kind="train", round_number=6, bytes=1_500_000)
    audit.write("answered", study="ham", kind="evaluate", round_number=6, bytes=1000)
    audit.write("refused", study="ham", kind="train", round_number=7, reason="budget")
    with Ledger(site.state_folder).locked() as ledger:
        ledger.append(SPEND)
    AgentFolder(site).pause("new GPU")
    printed = run(site)
    assert "evaluate, round 6 of study ham, 1.0 kB" in line(printed, "Last answer")
    assert "over the privacy budget" in line(printed, "Last refusal")
    assert line(printed, "Messages") == "2 answered (1 evaluate, 1 train), 1 refused (1 budget)"
    assert line(printed, "Sent") == "1.5 MB today, 1.5 MB in all"
    assert "new GPU. Take part again: medfed site resume" in line(printed, "Paused")
    assert "2 time(s)" in line(printed, "Worker")
    spent = GlanceReader(site).read().budget.spent
    assert f"epsilon {spent:.2f} of 8 per patient" in line(printed, "Privacy")


def test_ledger_without_an_epsilon_says_so(site: SiteConfig) -> None:
    with Ledger(site.state_folder).locked() as ledger:
        ledger.append(replace(SPEND, unit="none", noise="none", noise_multiplier=0.0))
    assert "no epsilon bounds" in line(run(site), "Privacy")
    assert json.loads(run(site, "--json"))["budget"]["spent"] == "infinite"
    path = site.state_folder / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"steps": 7', b'"steps": 1'))
    assert "the ledger cannot be trusted" in line(run(site), "Privacy")


def test_authority_that_ends_is_said(site: SiteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from medfed.server.federation import pki

    monkeypatch.setattr(pki, "CA_DAYS", 12)
    made = pki.own_certificate("trial", ["127.0.0.1"])
    site.path(site.connection.ca).write_bytes(made.ca)
    assert line(run(site), "Certificate") == (
        "the coordinator's authority is valid for 11 more days"
    )
    then = datetime.now(UTC) - timedelta(days=3)
    gone = replace(GlanceReader(site).read(), authority_expires=then)
    rows = {name: text for name, text, _ in site_status.rows(gone, Path("site.toml"))}
    assert rows["Certificate"] == f"the coordinator's authority expired on {then:%d %b %Y}"


def test_json_is_for_programs(site: SiteConfig) -> None:
    say(site, state="working", kind="train", study="ham", round_number=7)
    AuditLog(site.state_folder).write("answered", kind="train", bytes=10, epsilon=1.5)
    table = json.loads(run(site, "--json"))
    assert (table["life"], table["status"]["state"]) == ("running", "working")
    assert table["last_answer"]["facts"] == {"kind": "train", "bytes": 10, "epsilon": 1.5}
    assert table["budget"]["left"] == 8.0
    assert table["answered"] == {"train": 1}
    assert table["authority_expires"] is None


def test_screen_shows_the_same_lines(site: SiteConfig) -> None:
    say(site)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(site_status._panel(GlanceReader(site).read(), Path("site.toml")))
    text = console.export_text()
    assert "waiting to be asked" in text
    assert "Ctrl-C ends" in text


def test_watch_goes_on_until_ctrl_c(site: SiteConfig) -> None:
    say(site)
    program = "import typer; from medfed.cli.site_status import status; typer.run(status)"
    watching = subprocess.Popen(
        [sys.executable, "-uc", program, str(site.folder / "site.toml"), "--watch"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    seen = 0
    while seen < 2:
        row = watching.stdout.readline()
        assert row, "it ended by itself"
        seen += row.startswith("State")
    watching.send_signal(signal.SIGINT)
    assert watching.wait(30) == 0
    assert "Traceback" not in watching.stdout.read()
    watching.stdout.close()
