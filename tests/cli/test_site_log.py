"""`medfed site log`: the story on the screen, and a planted name that is nowhere in it."""

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from medfed.cli import site_log, site_status
from medfed.client.agent.folder import AgentFolder
from medfed.client.agent.metrics import metrics_text
from medfed.client.audit_lines import make_line
from medfed.client.audit_log import AuditLog
from medfed.client.site import SiteConfig, load_site
from medfed.common import messages
from medfed.common.ledger.chain import Link, canonical
from medfed.common.messages import Refusal, unpack_reply

sys.path.insert(0, str(Path(__file__).parents[1] / "client" / "agent"))

from trial_hospital import ask, make_site, make_store, make_study

app = typer.Typer()


@app.callback()
def _root() -> None:
    """Make each a command of its own."""


site_log.add_to(app)
site_status.add_to(app)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("stores"))


@pytest.fixture
def site(tmp_path: Path, store: Path) -> SiteConfig:
    return load_site(make_site(tmp_path, store))


@pytest.fixture
def audit(site: SiteConfig) -> AuditLog:
    """A log of one request, its answer, and a pause."""
    log = AuditLog(site.state_folder)
    about = {"run": "run-1", "study": "ham", "kind": "train"}
    log.write("asked", **about, round_number=7, bytes=100)
    log.write("answered", **about, round_number=7, bytes=2000, seconds=4.0, epsilon=1.25)
    log.write("paused")
    return log


def run(site: SiteConfig, *options: str, command: str = "log") -> str:
    arguments = [command, str(site.folder / "site.toml"), *options]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "250"})
    assert done.exception is None, done.output
    return done.output


def test_story_is_told_line_by_line(site: SiteConfig, audit: AuditLog) -> None:
    lines = run(site).splitlines()
    assert [line.split("  ", 1)[1] for line in lines] == [
        "Set up, medfed 0.1.0.",
        "The coordinator asked to train round 7 of study ham (run run-1). Trained in 4.0 s. "
        "2.0 kB left. Epsilon 1.25 of 8 per patient spent (delta 1e-05), 6.75 left.",
        "Paused by the site.",
    ]


def test_times_are_local_with_their_zone(tmp_path: Path, store: Path) -> None:
    site_file = make_site(tmp_path, store)
    line, _ = make_line("started", {}, Link())
    table = {**json.loads(line), "time": "2020-07-01T12:00:00.000+00:00"}
    del table["hash"]
    digest = hashlib.sha256(canonical(table)).hexdigest()
    path = tmp_path / "state" / "audit.jsonl"
    path.write_bytes(canonical({**table, "hash": digest}) + b"\n")
    program = "import typer; from medfed.cli.site_log import log; typer.run(log)"
    done = subprocess.run(
        [sys.executable, "-c", program, str(site_file)],
        env={"TZ": "Europe/Berlin", "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "01 Jul 2020 14:00:00 CEST  Started.\n"


def test_last_and_since_choose(site: SiteConfig, audit: AuditLog) -> None:
    assert run(site, "--last", "1").splitlines()[0] == "(2 earlier: --last 0)"
    assert len(run(site, "--last", "1").splitlines()) == 2
    assert len(run(site, "--last", "0").splitlines()) == 3
    assert len(run(site, "--since", "1h").splitlines()) == 3
    assert len(run(site, "--since", "2020-01-01").splitlines()) == 3
    assert run(site, "--since", "2999-01-01") == "Nothing since then.\n"
    arguments = ["log", str(site.folder / "site.toml"), "--since", "soon"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "how long" in done.output


def test_site_where_nothing_happened_says_so(tmp_path: Path, site: SiteConfig) -> None:
    AuditLog(site.state_folder).path.unlink()
    assert run(site) == "Nothing has happened at clinic yet.\n"


def test_json_gives_the_entries_and_whether_they_hold(site: SiteConfig, audit: AuditLog) -> None:
    table = json.loads(run(site, "--json"))
    assert (table["site"], table["trusted"], table["problem"]) == ("clinic", True, "")
    assert [entry["event"] for entry in table["entries"]] == [
        "installed",
        "asked",
        "answered",
        "paused",
    ]
    assert table["entries"][2]["facts"]["epsilon"] == 1.25
    assert len(json.loads(run(site, "--json", "--last", "2"))["entries"]) == 2
    audit.path.write_bytes(audit.path.read_bytes().replace(b'"bytes": 2000', b'"bytes": 2'))
    table = json.loads(run(site, "--json"))
    assert not table["trusted"]
    assert "entry 2" in table["problem"]
    assert "Warning: " in run(site)
    assert "cannot be trusted" in run(site)


def test_ledger_that_is_damaged_does_not_hide_the_story(site: SiteConfig, audit: AuditLog) -> None:
    (site.state_folder / "ledger.jsonl").write_text("{}\n")
    assert "Trained in 4.0 s" in run(site)


def start_following(
    site: SiteConfig, *options: str
) -> tuple["subprocess.Popen[str]", Callable[[], str]]:
    program = "import typer; from medfed.cli.site_log import log; typer.run(log)"
    command = [sys.executable, "-uc", program, str(site.folder / "site.toml"), "--follow"]
    following = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    output = following.stdout
    assert output is not None
    return following, output.readline


def end(following: "subprocess.Popen[str]") -> None:
    following.send_signal(signal.SIGINT)
    assert following.wait(30) == 0
    assert following.stdout is not None
    assert "Traceback" not in following.stdout.read()
    following.stdout.close()


def test_follow_tells_a_request_when_it_comes_and_its_outcome_later(
    site: SiteConfig, audit: AuditLog
) -> None:
    following, line = start_following(site, "--last", "1")
    assert "earlier" in line()
    assert "Paused by the site." in line()
    about = {"run": "run-1", "study": "ham", "kind": "evaluate", "round_number": 7}
    audit.write("asked", **about)
    asked = line()
    assert asked.endswith("asked to evaluate round 7 of study ham (run run-1).\n")
    audit.write("resumed")
    assert line().endswith("Resumed by the site.\n")
    audit.write("answered", **about, bytes=5, seconds=2.0)
    assert line().endswith("  Evaluated in 2.0 s. 5 bytes left.\n")
    end(following)


def test_follow_in_json_gives_a_line_an_entry(site: SiteConfig, audit: AuditLog) -> None:
    following, line = start_following(site, "--json", "--last", "1")
    assert json.loads(line())["event"] == "paused"
    audit.write("resumed")
    assert json.loads(line())["event"] == "resumed"
    end(following)


def test_planted_name_is_on_no_screen_and_in_no_file(tmp_path: Path, store: Path) -> None:
    site_file = make_site(tmp_path, store, max_epsilon=4.5, release_evaluation=True)
    site = load_site(site_file)
    ask(site_file, messages.JOIN)
    for number in range(1, 4):
        ask(site_file, messages.TRAIN, number)
    ask(site_file, messages.EVALUATE, 3)
    # Refusals whose detail, in the site's own log, names paths and counts.
    private = make_study()
    too_large = {"privacy": private.privacy.model_copy(update={"expected_batch_size": 99.0})}
    for study in (make_study("none"), private.model_copy(update=too_large)):
        assert isinstance(unpack_reply(ask(site_file, messages.JOIN, study=study)), Refusal)
    AgentFolder(site).pause("new GPU")
    story = run(site, "--last", "0")
    screens = [
        story,
        run(site, "--json", "--last", "0"),
        run(site, command="status"),
        run(site, "--json", command="status"),
        metrics_text(site),
    ]
    assert "this site's data do not serve the study" in story
    assert "more than this site's policy allows" in story
    assert "evaluation figures of" in story.lower()
    files = [path.read_text() for path in (tmp_path / "state").rglob("*.jsonl")]
    assert len(files) == 3
    for text in (*screens, *files):
        assert "zyxwvut" not in text.lower()
        assert "/scans" not in text
        assert str(store) not in text
