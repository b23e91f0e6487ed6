"""`medfed federation status`: the screen for people, JSON for programs, and the live view."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from medfed.cli.federation_status import add_to
from medfed.cli.federation_status_page import status_page
from medfed.common.errors import FederationError, RunError
from medfed.common.files import write_json
from medfed.server.federation.home import FederationConfig, FederationHome, init_home
from medfed.server.federation.registry import Registry, SiteRecord
from medfed.server.federation.status import read_status
from medfed.server.federation.status_types import (
    Alarm,
    CertificateStatus,
    FederationStatus,
    GateStatus,
    MemberStatus,
    RunStatus,
    SupervisorStatus,
)

NOW = "2026-11-25T12:00:00.000+00:00"


def member(name: str, **facts: Any) -> MemberStatus:
    return MemberStatus(name=name, state="approved", **{"online": True, **facts})


STATUS = FederationStatus(
    time=NOW,
    folder="/federation",
    name="trial",
    address="fed.example.org:8443",
    supervisor=SupervisorStatus(state="up", started="2026-11-25T09:00:00.000+00:00"),
    certificate=CertificateStatus(expires="2027-01-01T00:00:00+00:00", days_left=36.5),
    sites=(
        member("north", doing="answered", run="second", answered_run="second", last_answered=3,
               bytes_down=5_790_000, bytes_up=3_200_000, epsilon=2.25),
        member("south", doing="refused", why="budget", run="second", answered_run="first",
               last_answered=9),
        member("west", online=False, last_seen="2026-11-25T11:50:00.000+00:00", doing="away"),
        MemberStatus(name="east", state="enrolled"),
    ),
    runs=(
        RunStatus(name="first", state="failed", reason="no quorum " * 20, completed=9,
                  round_number=9, rounds=10),
        RunStatus(name="second", state="running", phase="training", round_number=4, completed=3,
                  rounds=20, asked=3, answered=1, in_round_s=42.0, left_s=1500.0,
                  metric="auroc", values=((1, 0.7), (2, 0.8), (3, 0.812)), epsilon=2.25,
                  unit="patient"),
    ),
    gate=GateStatus(),
    alarms=(
        Alarm(level="error", what="Run first failed.", way_out="Do this."),
        Alarm(level="note", what="east waits."),
    ),
)  # fmt: skip


def shown(
    status: FederationStatus = STATUS, *, width: int = 120, height: int | None = None
) -> list[str]:
    console = Console(width=width, height=height or 25, record=True, file=io.StringIO())
    console.print(status_page(status, console, height=height))
    return console.export_text().splitlines()


def test_page_says_first_what_is_wrong_and_what_to_do() -> None:
    lines = shown()
    assert lines[0].startswith("Federation trial | fed.example.org:8443 | up 3 h | certificate ")
    assert [line.split() for line in lines[1:4]] == [
        ["ERROR", "Run", "first", "failed."],
        ["Do", "this."],
        ["NOTE", "east", "waits."],
    ]
    assert shown(replace(STATUS, alarms=()))[1] == "All is well."


def test_page_tells_each_runs_state_in_words() -> None:
    line = next(line for line in shown() if line.startswith("second"))
    words = " ".join(line.split())
    assert "second training, 1 of 3 answered, 42 s 4/20 25 min AUROC 0.812 +0.112" in words
    assert words.endswith("2.25/patient")
    line = next(line for line in shown() if line.startswith("first"))
    assert "failed: no quorum" in line


def test_page_tells_each_sites_state_in_words() -> None:
    rows = {line.split()[0]: " ".join(line.split()) for line in shown() if line.strip()}
    assert rows["north"] == "north online answered round 3 5.79 MB 3.2 MB 2.25"
    assert rows["south"] == "south online refused: budget round 9 of first"
    assert rows["west"] == "west away 10 min away"
    assert rows["east"] == "east waits for approval"


def test_page_does_not_call_a_site_working_that_is_not_connected() -> None:
    sites = (member("near", doing="asked"), member("far", doing="asked", online=False))
    rows = {line.split()[0]: line for line in shown(replace(STATUS, sites=sites)) if line.strip()}
    assert "working" in rows["near"]
    assert "no answer" in rows["far"]


@pytest.mark.parametrize("width", [80, 100, 160])
def test_page_fits_the_width(width: int) -> None:
    lines = shown(width=width)
    assert max(len(line.rstrip()) for line in lines) <= width
    text = " ".join(" ".join(lines).split())
    for word in ("training,", "AUROC", "refused: budget", "away 10 min", "waits for approval"):
        assert word in text


@pytest.mark.parametrize("height", [20, 30, 60])
def test_page_fits_the_height_and_keeps_what_is_not_well(height: int) -> None:
    sites = tuple(member(f"site-{i:02d}", doing="answered") for i in range(64))
    bad = (member("zeta", doing="rejected", why="NaN"),)
    lines = shown(replace(STATUS, sites=sites + bad), height=height)
    assert len(lines) <= height
    assert any(line.startswith("zeta") for line in lines)
    assert any("more sites" in line for line in lines)
    everything = shown(replace(STATUS, sites=sites + bad))
    assert sum(line.startswith("site-") for line in everything) == 64


def test_page_shows_the_last_runs_that_ended_and_all_that_go_on() -> None:
    ended = tuple(
        RunStatus(name=f"old-{i}", state="finished", changed=f"2026-11-{i + 1:02d}")
        for i in range(9)
    )
    waiting = tuple(RunStatus(name=f"next-{i}", state="waiting") for i in range(4))
    names = [line.split()[0] for line in shown(replace(STATUS, runs=ended + waiting)) if line]
    assert [name for name in names if name.startswith("old")] == ["old-6", "old-7", "old-8"]
    assert [name for name in names if name.startswith("next")] == [f"next-{i}" for i in range(4)]
    assert any("and 6 earlier runs" in line for line in shown(replace(STATUS, runs=ended)))


def test_page_of_an_empty_federation_says_how_to_begin() -> None:
    text = "\n".join(shown(replace(STATUS, sites=(), runs=(), alarms=())))
    assert "medfed federation invite SITE" in text
    assert "medfed federation run STUDY" in text


@pytest.fixture
def home(tmp_path: Path) -> FederationHome:
    made = init_home(
        tmp_path / "federation", FederationConfig(name="trial", address="fed.example.org:8443")
    )
    Registry(made.sites_folder).put(SiteRecord(name="north", state="enrolled"))
    return made


def call(*arguments: str) -> Result:
    app = typer.Typer()
    add_to(app)
    app.command()(lambda: None)  # with one command alone, Typer takes no name
    return CliRunner().invoke(app, ["status", *arguments])


def test_status_command_prints_without_colours_into_a_pipe(home: FederationHome) -> None:
    result = call("--home", str(home.folder))
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stdout
    assert "Nothing runs: the federation was never started." in result.stdout
    assert "medfed federation approve north" in result.stdout


def test_status_command_prints_json_with_the_documented_keys(home: FederationHome) -> None:
    result = call("--home", str(home.folder), "--json")
    table = json.loads(result.stdout)
    assert set(table) == {
        "healthy", "time", "folder", "name", "address", "alarms", "supervisor", "certificate",
        "sites", "runs", "gate", "unreadable",
    }  # fmt: skip
    assert table["sites"][0]["name"] == "north"
    assert table["healthy"]
    assert set(table["alarms"][0]) == {"level", "what", "way_out"}
    import medfed.cli.federation_status as module

    assert all(f"`{key}`" in (module.__doc__ or "") for key in table)


def test_status_command_takes_the_home_from_the_environment(
    home: FederationHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDFED_FEDERATION", str(home.folder))
    assert json.loads(call("--json").stdout)["name"] == "trial"


def test_status_command_refuses_what_is_no_federation(tmp_path: Path) -> None:
    result = call("--home", str(tmp_path))
    assert isinstance(result.exception, FederationError)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(("--watch", "--json"), "one of --watch and --json"), (("--watch",), "needs a terminal")],
)
def test_status_command_refuses_to_watch_without_a_terminal(
    home: FederationHome, arguments: tuple[str, ...], told: str
) -> None:
    result = call("--home", str(home.folder), *arguments)
    assert isinstance(result.exception, RunError)
    assert told in str(result.exception)


def test_watch_shows_what_changes_until_ctrl_c(home: FederationHome, tmp_path: Path) -> None:
    program = tmp_path / "status.py"
    program.write_text(
        "import typer\nfrom medfed.cli.federation_status import add_to\n"
        "app = typer.Typer()\nadd_to(app)\n\n@app.command()\ndef other(): ...\n\napp()\n"
    )
    ours, theirs = pty.openpty()
    command = [sys.executable, str(program), "status", "--watch", "--home", str(home.folder)]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    try:
        _read_until(ours, b"never started")
        write_json(home.supervisor_file, {"pid": 1, "problem": "port 8443 is taken"})
        _read_until(ours, b"port 8443 is taken")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _read_until(terminal: int, text: bytes) -> None:
    seen = b""
    deadline = time.monotonic() + 60
    while text not in seen:
        assert time.monotonic() < deadline, seen[-2000:]
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 65536)


def test_status_of_the_real_thing_fits_the_page(home: FederationHome) -> None:
    assert shown(read_status(home.folder))[1].startswith("WARNING Nothing runs")
