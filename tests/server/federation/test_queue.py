"""Runs on disk, and the dispatcher's decisions, before a stand-in for Flower."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from coordinator import make_home, make_hospital

from medfed.common.errors import FederationError, RunError
from medfed.common.study import StudyConfig
from medfed.common.study_file import load_study, parse_study
from medfed.server.federation.control import FlowerRun
from medfed.server.federation.dispatcher import MAX_ATTEMPTS, Dispatcher
from medfed.server.federation.home import FederationHome
from medfed.server.federation.queue import RunQueue


def tiny_study(**federation: Any) -> StudyConfig:
    table = {
        "study": {"name": "tiny"},
        "task": {"classes": ["normal", "nodule"]},
        "federation": {"min_sites": 2, **federation},
        "training": {"rounds": 3, "local_steps": 1, "batch_size": 4},
        "privacy": {"unit": "none"},
    }
    return parse_study(table, "test")


@pytest.fixture
def home(tmp_path: Path) -> FederationHome:
    home = make_home(tmp_path / "federation")
    for name in ("alice", "bob", "carol"):
        make_hospital(name).record(home, "approved")
    make_hospital("dora").record(home, "enrolled")
    return home


@pytest.fixture
def queue(home: FederationHome) -> RunQueue:
    return RunQueue(home)


def submit(queue: RunQueue, name: str) -> None:
    queue.submit(tiny_study(), name, {"medfed": "test"})


def test_queue_makes_a_run_folder(home: FederationHome, queue: RunQueue) -> None:
    run = queue.submit(tiny_study(), "first", {"medfed": "test"})
    assert (run.state, run.flower_runs, run.attempts) == ("waiting", (), 0)
    folder = home.runs_folder / "first"
    assert load_study(folder / "study.toml") == tiny_study()
    assert json.loads((folder / "run.json").read_text())["data"] == ""
    assert json.loads((folder / "environment.json").read_text()) == {"medfed": "test"}
    plan = queue.arm("first").read_plan()
    assert (plan.min_sites, plan.expected_sites, plan.arm) == (2, 3, "federated")
    assert (plan.train_sites, plan.seeded_noise) == (None, False)
    assert plan.server_state == str(home.server_state)
    study = json.loads((queue.arm("first").folder / "study.json").read_text())
    assert study == json.loads(tiny_study().for_sites().to_json())
    assert queue.get("first") == run
    assert not [path for path in home.runs_folder.glob(".first*")]


def test_queue_never_names_two_runs_alike_to_sites(home: FederationHome, queue: RunQueue) -> None:
    submit(queue, "first")
    before = queue.arm("first").read_plan().run
    (home.runs_folder / "first").rename(home.runs_folder / "put-away")
    submit(queue, "first")
    assert before.startswith("first-")
    assert queue.arm("first").read_plan().run != before


def test_queue_refuses_a_name_that_is_taken(home: FederationHome, queue: RunQueue) -> None:
    submit(queue, "first")
    plan = queue.arm("first").read_plan()
    with pytest.raises(RunError, match="--resume first"):
        submit(queue, "first")
    assert queue.arm("first").read_plan() == plan
    assert [path.name for path in home.runs_folder.iterdir() if path.is_dir()] == ["first"]


@pytest.mark.parametrize("name", ["../x", "..", "", "a/b", ".hidden", "a" * 65, "x\n"])
def test_queue_refuses_what_is_no_name(queue: RunQueue, name: str) -> None:
    with pytest.raises(FederationError):
        submit(queue, name)
    with pytest.raises(FederationError):
        queue.get(name)


def test_queue_refuses_a_study_for_more_sites_than_are_approved(queue: RunQueue) -> None:
    with pytest.raises(RunError, match="at least 4 approved sites"):
        queue.submit(tiny_study(min_sites=4), "first", {})
    assert queue.runs() == []


def test_queue_names_the_known_runs_when_there_is_none(queue: RunQueue) -> None:
    submit(queue, "first")
    with pytest.raises(RunError, match=r"got 'secnd'. There are: first"):
        queue.get("secnd")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"name": "first"}', '{"name": "../x", "state": "waiting"}', "\0"]
)
def test_queue_shows_a_damaged_run_as_failed(queue: RunQueue, content: str) -> None:
    submit(queue, "first")
    submit(queue, "second")
    (queue.folder("first") / "queue.json").write_text(content)
    states = {run.name: run.state for run in queue.runs()}
    assert states == {"first": "failed", "second": "waiting"}
    with pytest.raises(RunError, match="damaged"):
        queue.get("first")


def test_queue_stops_and_resumes(queue: RunQueue) -> None:
    submit(queue, "first")
    with pytest.raises(RunError, match="is waiting already"):
        queue.resume("first")
    queue.stop("first")
    assert queue.get("first").state == "stopped"
    with pytest.raises(RunError, match="nothing to stop"):
        queue.stop("first")
    queue.arm("first").write_outcome("failed", "too few sites")
    queue.put(dataclasses.replace(queue.get("first").to("failed", "x"), attempts=6))
    run = queue.resume("first")
    assert (run.state, run.attempts, run.reason) == ("waiting", 0, "")
    assert queue.arm("first").read_outcome() is None
    queue.put(queue.get("first").to("finished"))
    with pytest.raises(RunError, match="has finished"):
        queue.resume("first")


class FlowerOnPaper:
    """What the SuperLink says, and which ServerApps live, as a test wants it."""

    def __init__(self) -> None:
        self.known: dict[int, FlowerRun] = {}
        self.arms: dict[int, Path] = {}
        self.apps: list[int] = []
        self.now = 1000.0

    def start_run(self, arm: Path) -> int:
        run_id = 100 + len(self.known)
        self.arms[run_id] = arm
        self.become(run_id, "pending")
        return run_id

    def run(self, run_id: int) -> FlowerRun | None:
        return self.known.get(run_id)

    def runs(self) -> list[FlowerRun]:
        return list(self.known.values())

    def stop_run(self, run_id: int) -> None:
        self.become(run_id, "finished", "stopped")

    def become(self, run_id: int, status: Any, outcome: str = "", details: str = "") -> None:
        self.known[run_id] = FlowerRun(
            run_id=run_id, status=status, outcome=outcome, details=details
        )

    def unfinished(self) -> list[int]:
        return [run.run_id for run in self.known.values() if not run.is_over]


@pytest.fixture
def flower() -> FlowerOnPaper:
    return FlowerOnPaper()


@pytest.fixture
def dispatcher(queue: RunQueue, flower: FlowerOnPaper) -> Dispatcher:
    return Dispatcher(queue, flower, lambda: list(flower.apps), clock=lambda: flower.now)


def state_of(queue: RunQueue, name: str) -> str:
    return queue.get(name).state


def complete_rounds(queue: RunQueue, name: str, count: int) -> None:
    with (queue.arm(name).folder / "rounds.jsonl").open("a") as file:
        file.write("{}\n" * count)


def begin(queue: RunQueue, flower: FlowerOnPaper, dispatcher: Dispatcher, name: str) -> int:
    """Submit a run and have its ServerApp live."""
    submit(queue, name)
    dispatcher.tick()
    run_id = int(queue.get(name).flower_runs[-1])
    flower.become(run_id, "running")
    flower.apps = [5_000_000 + run_id]  # above the largest number that Linux gives
    dispatcher.tick()
    return run_id


def die(flower: FlowerOnPaper, run_id: int, details: str = "") -> None:
    flower.become(run_id, "finished", "failed", details)
    flower.apps = []


def test_dispatcher_brings_runs_to_their_end_one_at_a_time(
    queue: RunQueue, flower: FlowerOnPaper, dispatcher: Dispatcher
) -> None:
    run_id = begin(queue, flower, dispatcher, "first")
    submit(queue, "second")
    for _ in range(5):
        dispatcher.tick()
    assert (state_of(queue, "first"), state_of(queue, "second")) == ("running", "waiting")
    assert flower.arms[run_id] == queue.arm("first").folder
    queue.arm("first").write_outcome("finished", "privacy budget spent")
    dispatcher.tick()
    assert state_of(queue, "first") == "running"  # its ServerApp still lives
    flower.become(run_id, "finished", "completed")
    flower.apps = []
    dispatcher.tick()
    first = queue.get("first")
    assert (first.state, first.reason) == ("finished", "privacy budget spent")
    dispatcher.tick()
    assert state_of(queue, "second") == "running"


def test_dispatcher_fails_a_run_that_says_so(
    queue: RunQueue, flower: FlowerOnPaper, dispatcher: Dispatcher
) -> None:
    run_id = begin(queue, flower, dispatcher, "first")
    queue.arm("first").write_outcome("failed", "2 sites answered, the quorum is 3.")
    die(flower, run_id, "ServerApp failed with exception")
    dispatcher.tick()
    run = queue.get("first")
    assert (run.state, run.reason) == ("failed", "2 sites answered, the quorum is 3.")
    queue.resume("first")
    dispatcher.tick()
    assert (state_of(queue, "first"), len(queue.get("first").flower_runs)) == ("running", 2)


def test_dispatcher_submits_a_run_again_whose_server_app_died(
    queue: RunQueue, flower: FlowerOnPaper, dispatcher: Dispatcher
) -> None:
    run_id = begin(queue, flower, dispatcher, "first")
    complete_rounds(queue, "first", 3)
    die(flower, run_id, "out of memory")
    dispatcher.tick()
    run = queue.get("first")
    assert (run.state, run.attempts) == ("waiting", 0)
    assert run.reason == "its ServerApp ended early (out of memory); goes on after round 3"
    dispatcher.tick()
    run = queue.get("first")
    assert (run.state, run.num_rounds_at_start, run.reason) == ("running", 3, "")
    assert flower.arms[int(run.flower_runs[-1])] == flower.arms[run_id]


def test_dispatcher_gives_up_on_a_run_without_progress(
    queue: RunQueue, flower: FlowerOnPaper, dispatcher: Dispatcher
) -> None:
    run_id = begin(queue, flower, dispatcher, "first")
    for attempt in range(1, MAX_ATTEMPTS + 1):
        die(flower, run_id)
        dispatcher.tick()
        run = queue.get("first")
        assert (run.state, run.attempts) == ("waiting", attempt)
        before = len(run.flower_runs)
        dispatcher.tick()
        assert len(queue.get("first").flower_runs) == before  # a pause first
        flower.now += 60
        dispatcher.tick()
        run_id = int(queue.get("first").flower_runs[-1])
        assert state_of(queue, "first") == "running"
    die(flower, run_id, "no such file")
    dispatcher.tick()
    run = queue.get("first")
    assert run.state == "failed"
    assert "(no such file), 6 times in a row and without one more round" in run.reason
    assert len(run.flower_runs) == MAX_ATTEMPTS + 1


def test_dispatcher_counts_anew_after_a_round(
    queue: RunQueue, flower: FlowerOnPaper, dispatcher: Dispatcher
) -> None:
    run_id = begin(queue, flower, dispatcher, "first")
    for number in range(3 * MAX_ATTEMPTS):
        complete_rounds(queue, "first", number % 2)
        die(flower, run_id)
        dispatcher.tick()
        flower.now += 60
        dispatcher.tick()
        assert state_of(queue, "first") == "running"
        run_id = int(queue.get("first").flower_runs[-1])


def test_dispatcher_stops_a_flower_run_whose_server_app_is_gone(
    queue: RunQueue, flower: FlowerOnPaper, dispatcher: Dispatcher
) -> None:
    # Flower believes in a ServerApp for a minute after its last sign of life.
    run_id = begin(queue, flower, dispatcher, "first")
    flower.apps = []
    dispatcher.tick()
    assert flower.unfinished() == [run_id]  # it may be starting
    flower.now += 6
    dispatcher.tick()
    assert flower.unfinished() == []
    assert state_of(queue, "first") == "waiting"
    flower.now += 60
    dispatcher.tick()
    assert state_of(queue, "first") == "running"


def test_dispatcher_waits_for_a_run_that_flower_has_not_begun(
    queue: RunQueue, flower: FlowerOnPaper, dispatcher: Dispatcher
) -> None:
    submit(queue, "first")
    for _ in range(20):
        dispatcher.tick()
        flower.now += 60
    run = queue.get("first")
    assert (run.state, len(run.flower_runs)) == ("running", 1)


def test_dispatcher_starts_no_second_server_app_beside_a_living_one(
    queue: RunQueue, flower: FlowerOnPaper, dispatcher: Dispatcher
) -> None:
    run_id = begin(queue, flower, dispatcher, "first")
    # The SuperLink was away for long and gave the run up.
    flower.become(run_id, "finished", "failed")
    for _ in range(10):
        dispatcher.tick()
        flower.now += 10
    assert queue.get("first").flower_runs == (str(run_id),)
    flower.apps = []
    dispatcher.tick()
    flower.now += 60
    dispatcher.tick()
    assert len(queue.get("first").flower_runs) == 2


def test_dispatcher_ends_what_a_person_stopped(
    queue: RunQueue, flower: FlowerOnPaper, dispatcher: Dispatcher
) -> None:
    begin(queue, flower, dispatcher, "first")
    submit(queue, "second")
    queue.stop("first")
    dispatcher.tick()
    assert flower.unfinished() == []
    assert state_of(queue, "second") == "waiting"  # the first one's ServerApp still lives
    flower.apps = []
    dispatcher.tick()
    assert (state_of(queue, "first"), state_of(queue, "second")) == ("stopped", "running")


def test_dispatcher_ends_a_flower_run_that_it_does_not_know(
    queue: RunQueue, flower: FlowerOnPaper, dispatcher: Dispatcher
) -> None:
    # The supervisor was killed after it submitted the run and before it wrote that down.
    stray = flower.start_run(queue.arm("first").folder)
    submit(queue, "first")
    dispatcher.tick()
    assert flower.unfinished() == []
    dispatcher.tick()
    assert queue.get("first").flower_runs == (str(stray + 1),)


def test_dispatcher_submits_anew_what_flower_has_forgotten(
    queue: RunQueue, flower: FlowerOnPaper, dispatcher: Dispatcher
) -> None:
    run_id = begin(queue, flower, dispatcher, "first")
    del flower.known[run_id]
    flower.apps = []
    dispatcher.tick()
    assert state_of(queue, "first") == "waiting"


def test_dispatcher_takes_an_outcome_from_before_for_none(
    queue: RunQueue, flower: FlowerOnPaper, dispatcher: Dispatcher
) -> None:
    submit(queue, "first")
    queue.arm("first").write_outcome("failed", "of a ServerApp that was stopped")
    dispatcher.tick()
    assert queue.arm("first").read_outcome() is None


def test_dispatcher_lets_runs_wait_for_the_next_supervisor(
    queue: RunQueue, flower: FlowerOnPaper, dispatcher: Dispatcher
) -> None:
    begin(queue, flower, dispatcher, "first")
    dispatcher.release("stopped")
    run = queue.get("first")
    assert (run.state, run.reason, run.attempts) == ("waiting", "stopped", 0)
