"""`medfed federation start|run|stop` from the outside."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).parents[1] / "server" / "federation"))

from coordinator import kill, make_home, make_hospital, wait_until

from medfed.cli import federation_runs
from medfed.common.errors import FederationError, MedfedError, RunError, StudyError
from medfed.common.locking import held_alone, holder
from medfed.server.federation.home import FederationHome
from medfed.server.federation.queue import RunQueue, RunState
from medfed.server.federation.supervisor import lock_file

STUDY = """
[study]
name = "tiny"
[task]
classes = ["normal", "nodule"]
[data]
image_size = 16
[training]
rounds = 2
local_steps = 1
batch_size = 4
[federation]
min_sites = 2
[privacy]
unit = "none"
[simulation]
dataset = "phantom"
"""

PROGRAM = (
    "import sys, typer; from medfed.cli import federation_runs\n"
    "app = typer.Typer(); federation_runs.add_to(app); app()"
)


@pytest.fixture
def home(tmp_path: Path) -> FederationHome:
    home = make_home(tmp_path / "federation")
    for name in ("alice", "bob"):
        make_hospital(name).record(home, "approved")
    return home


@pytest.fixture
def study(tmp_path: Path) -> str:
    path = tmp_path / "study.toml"
    path.write_text(STUDY, encoding="utf-8")
    return str(path)


@pytest.fixture
def supervised(home: FederationHome) -> Iterator[FederationHome]:
    """A federation whose supervisor is this process, and does nothing."""
    with held_alone(lock_file(home), "a test"):
        yield home


def medfed(home: FederationHome, *arguments: str) -> Result:
    app = typer.Typer()
    federation_runs.add_to(app)
    return CliRunner().invoke(app, [*arguments, "--home", str(home.folder)])


def error_of(result: Result) -> MedfedError:
    assert isinstance(result.exception, MedfedError), result.output
    return result.exception


def test_run_queues_a_study_without_its_simulation(supervised: FederationHome, study: str) -> None:
    result = medfed(
        supervised, "run", study, "--name", "one", "--set", "training.rounds=5", "--detach"
    )
    assert result.exit_code == 0, result.output
    assert "[simulation] plays no part" in result.stderr
    assert "Run one is waiting" in result.stdout
    folder = supervised.runs_folder / "one"
    text = (folder / "study.toml").read_text()
    assert "rounds = 5" in text
    assert "[simulation" not in text
    assert json.loads((folder / "environment.json").read_text())["grid"] == "superlink"


def test_run_names_a_run_after_its_study(supervised: FederationHome, study: str) -> None:
    result = medfed(supervised, "run", study, "--detach", "--json")
    table = json.loads(result.stdout)
    assert table["name"].startswith("tiny-2")
    assert (table["state"], table["rounds"]) == ("waiting", 0)
    assert table["run"].startswith(table["name"])
    assert table["folder"] == str(supervised.runs_folder / table["name"])


def test_run_refuses_when_nobody_would_run_it(home: FederationHome, study: str) -> None:
    error = error_of(medfed(home, "run", study, "--name", "one", "--detach"))
    assert "is not running: nothing was queued" in str(error)
    assert RunQueue(home).runs() == []


def test_commands_say_when_there_is_no_federation(tmp_path: Path, study: str) -> None:
    app = typer.Typer()
    federation_runs.add_to(app)
    for command in (["start"], ["run", study], ["stop"], ["stop", "one"]):
        result = CliRunner().invoke(app, [*command, "--home", str(tmp_path / "none")])
        assert isinstance(result.exception, FederationError)
        assert "medfed federation init" in str(result.exception)


def test_commands_say_when_the_federation_is_another_users(
    home: FederationHome, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    for command in (["start"], ["run", study], ["stop"], ["stop", "one"]):
        assert "this is user 54321" in str(error_of(medfed(home, *command)))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--set", "training.rounds=0"], "training.rounds"),
        (["--set", "training.runds=1"], "Did you mean rounds?"),
        (["--set", 'model.name="unet"'], "unet"),
        (["--resume", "one"], "give its name alone"),
    ],
)
def test_run_validates_before_it_queues(
    supervised: FederationHome, study: str, arguments: list[str], expected: str
) -> None:
    error = error_of(medfed(supervised, "run", study, *arguments))
    assert isinstance(error, StudyError)
    assert expected in str(error)
    assert RunQueue(supervised).runs() == []


def test_run_asks_for_a_study(supervised: FederationHome) -> None:
    assert "Expected a study file or --resume" in str(error_of(medfed(supervised, "run")))


def finish(queue: RunQueue, name: str, state: RunState) -> None:
    """Bring a waiting run to its end as a supervisor and a ServerApp do."""
    wait_until(lambda: any(r.name == name and r.state == "waiting" for r in queue.runs()), name)
    arm = queue.arm(name)
    with queue.lock():
        queue.put(queue.get(name).to("running"))
    arm.emit("started", arm="federated", rounds=2, after=0)
    for number in (1, 2):
        arm.emit("round", round=number, sites=2)
        arm.emit("completed", round=number, metrics=None, epsilon=None)
    with queue.lock():
        queue.put(queue.get(name).to(state, "as asked"))


@contextmanager
def watching(home: FederationHome, study: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command in a process of its own; enter when it shows the run."""
    arguments = ["run", study, "--name", "one", "--home", str(home.folder)]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith("one: waiting"):
                break
        yield process
    finally:
        kill(process)


def test_run_watches_until_the_end(supervised: FederationHome, study: str) -> None:
    with watching(supervised, study) as process:
        finish(RunQueue(supervised), "one", "finished")
        result, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert "Run one is finished (as asked)" in result
    assert told.index("round 1/2") < told.index("round 2/2")


@pytest.mark.parametrize("state", ["failed", "stopped"])
def test_run_ends_with_an_error_when_the_run_does(
    supervised: FederationHome, study: str, state: RunState
) -> None:
    def run(*arguments: str) -> Result:
        thread = threading.Thread(target=finish, args=(RunQueue(supervised), "one", state))
        thread.start()
        result = medfed(supervised, "run", *arguments)
        thread.join()
        return result

    error = error_of(run(study, "--name", "one"))
    assert isinstance(error, RunError)
    assert f"Run one {state}: as asked" in str(error)
    assert "--resume one" in str(error)
    # On with it; and the same for programs.
    result = run("--resume", "one", "--json")
    assert result.exit_code == RunError.exit_code
    assert json.loads(result.stdout)["state"] == state


def test_run_goes_on_when_the_watching_is_interrupted(
    supervised: FederationHome, study: str
) -> None:
    with watching(supervised, study) as process:
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Run one goes on" in told
    assert RunQueue(supervised).get("one").state == "waiting"


def test_stop_ends_one_run(supervised: FederationHome, study: str) -> None:
    medfed(supervised, "run", study, "--name", "one", "--detach")
    assert "Run one is stopped" in medfed(supervised, "stop", "one").stdout
    assert RunQueue(supervised).get("one").state == "stopped"
    assert "nothing to stop" in str(error_of(medfed(supervised, "stop", "one")))
    assert "There are: one" in str(error_of(medfed(supervised, "stop", "two")))


def test_stop_says_when_nothing_runs(home: FederationHome) -> None:
    assert "does not run" in medfed(home, "stop").stdout
    lock_file(home).write_text(f"{os.getpid()}\n")  # left by one that was killed
    assert "does not run" in medfed(home, "stop").stdout


@pytest.mark.slow
def test_start_serves_until_stop(home: FederationHome) -> None:
    started = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "start", "--home", str(home.folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        wait_until(home.nodes_file.exists, "the SuperLink has answered")
        assert holder(lock_file(home)) == started.pid
        assert medfed(home, "stop").stdout == "Stopped.\n"
        told, _ = started.communicate(timeout=60)
        assert started.returncode == 0
        assert f"sites reach it at 127.0.0.1:{home.config.port}" in told
        assert "alice is Flower's node" in (home.logs_folder / "supervisor.log").read_text()
    finally:
        kill(started)
