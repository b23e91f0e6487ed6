"""Where a federation stands, from files alone: those of the real writers, whole or broken."""

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from medfed.common.errors import FederationError, RefusalReason
from medfed.common.files import write_json
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study
from medfed.common.tasks import make_task
from medfed.server.federation.home import FederationConfig, FederationHome, init_home
from medfed.server.federation.queue import RunQueue
from medfed.server.federation.registry import Registry, SiteRecord
from medfed.server.federation.rejections import LINES_A_MINUTE, Rejections
from medfed.server.federation.status import SILENT_S, StatusReader, read_status
from medfed.server.federation.status_runs import LEADING
from medfed.server.federation.status_types import Alarm, FederationStatus, MemberStatus, RunStatus
from medfed.server.records import ArmFolder, RoundRecord, SiteRound

SITES = ("north", "south", "west")
Told = list[tuple[str, str]]


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federation of three approved sites, none of which has ever done anything."""
    folder = tmp_path_factory.mktemp("made") / "federation"
    home = init_home(folder, FederationConfig(name="trial", address="fed.example.org:8443"))
    for name in SITES:
        Registry(home.sites_folder).put(SiteRecord(name=name, state="approved"))
    return folder


@pytest.fixture
def home(made: Path, tmp_path: Path) -> FederationHome:
    folder = tmp_path / "federation"
    shutil.copytree(made, folder)
    return FederationHome(folder, FederationConfig(name="trial", address="fed.example.org:8443"))


def start(home: FederationHome, *, heartbeat_s: float = 1.0, problem: str = "") -> None:
    """Write what a supervisor writes while it is well."""
    processes = {
        name: {"pid": 100 + i, "restarts": i, "state": "running"}
        for i, name in enumerate(("superlink", "superexec"))
    }
    table = {"pid": 99, "started": ago(3600), "heartbeat": ago(heartbeat_s), "problem": problem}
    write_json(home.supervisor_file, {**table, "processes": processes})


def connect(home: FederationHome, *names: str, written_s: float = 1.0) -> None:
    nodes = {
        name: {"node_id": i, "online": name in names, "last_seen": ago(1 if name in names else 600)}
        for i, name in enumerate(SITES)
    }
    write_json(home.nodes_file, {"time": ago(written_s), "nodes": nodes})


def study(**training: Any) -> StudyConfig:
    return parse_study(
        {
            "study": {"name": "trial"},
            "task": {"classes": ["yes", "no"]},
            "training": {"rounds": 5, "local_steps": 2, "learning_rate": 0.1, **training},
            "federation": {"min_sites": 2},
            "privacy": {"noise_multiplier": 1.0, "sample_rate": 0.1, "target_delta": 1e-4},
        },
        "test",
    )


def submit(home: FederationHome, name: str = "first", state: str = "running") -> ArmFolder:
    queue = RunQueue(home)
    run = queue.submit(study(), name, {})
    if state != "waiting":
        queue.put(replace(run, state=state))  # type: ignore[arg-type]
    return queue.arm(name)


def begin(arm: ArmFolder, after: int = 0) -> None:
    arm.emit("started", arm="federated", rounds=5, after=after)
    for name in SITES:
        arm.emit("joined", site=name)


def complete(arm: ArmFolder, number: int, auroc: float = 0.7, **sites: SiteRound) -> None:
    """A round as the loop writes it: its events and its record."""
    arm.emit("round", round=number, sites=3)
    for name in SITES:
        arm.emit("trained", round=number, site=name)
    epsilon = 0.5 * number
    rows = {name: SiteRound(status="ok", bytes_down=100, bytes_up=40, epsilon=epsilon)
            for name in SITES}  # fmt: skip
    record = RoundRecord(
        round_number=number,
        started=ago(60 - number),
        seconds=10.0 + number,
        sites={**rows, **sites},
        metrics={"loss": 1.0, "auroc": auroc},
    )
    arm.append_round(record)
    arm.emit("completed", round=number, metrics=record.metrics, epsilon=epsilon)


def site(status: FederationStatus, name: str) -> MemberStatus:
    return next(one for one in status.sites if one.name == name)


def run(status: FederationStatus, name: str = "first") -> RunStatus:
    return next(one for one in status.runs if one.name == name)


def told(status: FederationStatus) -> Told:
    return [(alarm.level, alarm.what) for alarm in status.alarms]


@pytest.fixture
def well(home: FederationHome) -> FederationHome:
    """Supervisor up, all sites connected."""
    start(home)
    connect(home, *SITES)
    return home


def test_status_of_a_new_federation_says_how_to_start_it(home: FederationHome) -> None:
    status = read_status(home.folder)
    assert (status.name, status.address) == ("trial", "fed.example.org:8443")
    assert status.supervisor.state == "never started"
    assert [one.online for one in status.sites] == [None, None, None]
    [alarm] = status.alarms
    assert (alarm.level, alarm.what) == (
        "warning", "Nothing runs: the federation was never started."
    )  # fmt: skip
    assert "medfed federation start" in alarm.way_out


def test_status_of_a_federation_that_is_well_alarms_nobody(well: FederationHome) -> None:
    arm = submit(well)
    begin(arm)
    complete(arm, 1)
    status = read_status(well.folder)
    assert status.alarms == ()
    assert status.healthy
    assert status.supervisor.up
    assert {p.name: p.restarts for p in status.supervisor.processes} == {
        "superexec": 1, "superlink": 0,
    }  # fmt: skip


def test_status_needs_a_federation(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="medfed federation init"):
        read_status(tmp_path)


def test_status_of_a_run_counts_what_its_rounds_say(well: FederationHome) -> None:
    arm = submit(well)
    begin(arm)
    complete(arm, 1, 0.6)
    complete(arm, 2, 0.8)
    status = read_status(well.folder)
    now = run(status)
    assert (now.completed, now.rounds, now.round_number) == (2, 5, 2)
    assert (now.metric, now.values) == ("auroc", ((1, 0.6), (2, 0.8)))
    assert (now.phase, now.asked, now.answered) == ("between rounds", 3, 3)
    assert (now.epsilon, now.unit, now.delta, now.min_sites) == (1.0, "patient", 1e-4, 2)
    assert now.round_s == 11.5
    assert now.left_s == pytest.approx(3 * 11.5)
    north = site(status, "north")
    assert (north.bytes_down, north.bytes_up, north.epsilon) == (200, 80, 1.0)
    assert (north.doing, north.answered_run, north.last_answered) == ("ok", "first", 2)


def test_status_tells_what_each_site_does_in_the_round(well: FederationHome) -> None:
    arm = submit(well)
    begin(arm)
    complete(arm, 1)
    arm.emit("round", round=2, sites=3)
    arm.emit("trained", round=2, site="north")
    arm.emit("lost", round=2, site="south")
    status = read_status(well.folder)
    assert {one.name: one.doing for one in status.sites} == {
        "north": "answered", "south": "lost", "west": "asked",
    }  # fmt: skip
    assert (run(status).phase, run(status).answered, run(status).asked) == ("training", 1, 3)
    assert site(status, "west").last_answered == 1
    arm.emit("rejoined", round=2, site="south")
    assert site(read_status(well.folder), "south").doing == "asked"
    for name in ("south", "west"):
        arm.emit("trained", round=2, site=name)
    assert run(read_status(well.folder)).phase == "evaluating"


def test_status_knows_who_was_asked_where_only_some_were(well: FederationHome) -> None:
    arm = submit(well)
    begin(arm)
    arm.emit("round", round=1, sites=2)
    arm.emit("trained", round=1, site="north")
    status = read_status(well.folder)
    # Which two is not said: nobody is called asked who may not have been.
    assert {one.name: one.doing for one in status.sites} == {
        "north": "answered", "south": "", "west": "",
    }  # fmt: skip
    arm.emit("round", round=1, sites=2, names=["south", "west"])
    status = read_status(well.folder)
    assert {one.name: one.doing for one in status.sites} == {
        "north": "", "south": "asked", "west": "asked",
    }  # fmt: skip


def test_status_knows_who_is_away_or_will_not_be_asked_again(well: FederationHome) -> None:
    arm = submit(well)
    begin(arm)
    arm.emit("away", site="west")
    arm.emit("round", round=1, sites=2)
    arm.emit("refused", round=1, site="south", reason="budget")

    def doing() -> dict[str, str]:
        return {one.name: one.doing for one in read_status(well.folder).sites}

    assert doing() == {"north": "asked", "south": "refused", "west": "away"}
    arm.emit("rejoined", site="west")
    assert doing() == {"north": "asked", "south": "refused", "west": ""}
    arm.emit("round", round=2, sites=2)
    assert doing() == {"north": "asked", "south": "", "west": "asked"}


def test_status_forgets_the_round_of_an_earlier_start(well: FederationHome) -> None:
    arm = submit(well)
    begin(arm)
    complete(arm, 1)
    arm.emit("round", round=2, sites=3)
    arm.emit("trained", round=2, site="north")
    begin(arm, after=1)
    now = run(read_status(well.folder))
    assert (now.round_number, now.phase, now.answered) == (1, "between rounds", 3)


def test_status_of_a_run_that_waits_for_sites_says_so(well: FederationHome) -> None:
    arm = submit(well)
    begin(arm)
    arm.emit("waiting", reason="1 of 2 sites connected")
    status = read_status(well.folder)
    assert (run(status).phase, run(status).waits_for) == ("waiting", "1 of 2 sites connected")
    assert told(status) == [("warning", "Run first waits: 1 of 2 sites connected")]


@pytest.mark.parametrize(
    ("status", "why", "what"),
    [
        ("refused", "paused", "west refused in round 1 of first: paused."),
        ("rejected", "NaN", "What west sent in round 1 of first was rejected: NaN"),
        ("late", "late", "west was too late in round 1 of first."),
        ("lost", "gone", "west was lost in round 1 of first (gone)."),
    ],
)
def test_alarms_say_which_site_did_not_take_part(
    well: FederationHome, status: Any, why: str, what: str
) -> None:
    arm = submit(well)
    begin(arm)
    complete(arm, 1, west=SiteRound(status=status, reason=why, bytes_down=100))
    seen = read_status(well.folder)
    assert told(seen) == [("warning", what)]
    west = site(seen, "west")
    assert (west.doing, west.why, west.last_answered, west.bytes_up) == (status, why, 0, 0)
    assert west.refusals == ({"paused": 1} if status == "refused" else {})
    assert west.num_rejected == (status == "rejected")


def test_every_reason_to_refuse_has_a_way_out(well: FederationHome) -> None:
    arm = submit(well)
    begin(arm)
    for number, reason in enumerate(RefusalReason, start=1):
        complete(arm, number, west=SiteRound(status="refused", reason=reason.value))
        [alarm] = read_status(well.folder).alarms
        assert alarm.way_out, reason


def test_status_counts_refusals_to_join_of_all_starts(well: FederationHome) -> None:
    arm = submit(well)
    for _ in range(2):
        arm.emit("started", arm="federated", rounds=5, after=0)
        arm.emit("joined", site="north")
        arm.emit("refused", site="west", reason="policy")
    arm.emit("joined", site="south")
    arm.emit("round", round=1, sites=2)
    west = site(read_status(well.folder), "west")
    assert (west.doing, west.why, west.refusals) == ("refused", "policy", {"policy": 2})


def test_status_adds_up_runs_and_shows_the_one_that_goes_on(well: FederationHome) -> None:
    first = submit(well, "first", "finished")
    begin(first)
    for number in range(1, 4):
        complete(first, number)
    second = submit(well, "second")
    begin(second)
    complete(second, 1, west=SiteRound(status="late", bytes_down=100))
    status = read_status(well.folder)
    assert [one.name for one in status.runs] == ["first", "second"]
    west = site(status, "west")
    assert (west.run, west.doing, west.round_number) == ("second", "late", 1)
    assert (west.answered_run, west.last_answered) == ("first", 3)
    assert (west.bytes_down, west.epsilon) == (400, 1.5)


def test_status_of_a_supervisor_that_fell_silent(well: FederationHome) -> None:
    start(well, heartbeat_s=SILENT_S + 5)
    status = read_status(well.folder)
    assert status.supervisor.state == "silent"
    assert not status.healthy
    assert status.alarms[0].what.startswith("The supervisor has not been heard of since ")


def test_status_of_a_supervisor_that_was_stopped(well: FederationHome) -> None:
    submit(well, state="waiting")
    processes = {"superlink": {"pid": None, "restarts": 0, "state": "waiting"}}
    write_json(
        well.supervisor_file,
        {"pid": 9, "started": ago(99), "heartbeat": ago(1), "problem": "", "processes": processes},
    )
    status = read_status(well.folder)
    assert status.supervisor.state == "stopped"
    # A run is waiting: that is worth waking somebody up.
    assert told(status) == [("error", "Nothing runs: the federation was stopped.")]


def test_alarms_say_which_process_is_down_and_what_the_supervisor_says(
    well: FederationHome,
) -> None:
    processes = {
        "superlink": {"pid": None, "restarts": 3, "state": "waiting"},
        "superexec": {"pid": 7, "restarts": 0, "state": "running"},
    }
    table = {"pid": 9, "started": ago(99), "heartbeat": ago(1), "problem": "superlink ended: port"}
    write_json(well.supervisor_file, {**table, "processes": processes})
    status = read_status(well.folder)
    assert told(status) == [
        ("error", "superlink is down (waiting, 3 restarts)."),
        ("error", "The supervisor says: superlink ended: port"),
    ]


def test_status_does_not_say_who_is_online_from_an_old_list(well: FederationHome) -> None:
    connect(well, *SITES, written_s=SILENT_S + 5)
    assert [one.online for one in read_status(well.folder).sites] == [None, None, None]


def test_alarms_when_too_few_sites_are_connected(well: FederationHome) -> None:
    connect(well, "west")
    begin(submit(well))
    status = read_status(well.folder)
    assert told(status)[0] == ("error", "Run first needs 2 sites, 1 are connected.")
    assert status.alarms[0].way_out == "Ask for `medfed site status` at: north, south."
    assert [what for level, what in told(status)[1:]] == [
        f"{name} is not connected (last seen: {ago(600)[:16].replace('T', ' ')} UTC)."
        for name in ("north", "south")
    ]


def test_alarms_name_a_round_that_takes_long_and_who_has_not_answered(
    well: FederationHome,
) -> None:
    arm = submit(well)
    begin(arm)
    complete(arm, 1)
    arm.emit("round", round=2, sites=3)
    arm.emit("trained", round=2, site="north")
    reader = StatusReader(well.folder)
    start(well)
    assert not [a for a in reader.read().alarms if "takes" in a.what]
    later = reader.read(datetime.now(UTC) + timedelta(seconds=300))
    [alarm] = [a for a in later.alarms if "takes" in a.what]
    assert alarm.what == "Run first: round 2 takes 5 min, the last ones took 11 s."
    assert alarm.way_out == "No answer yet from south, west."
    assert run(later).left_s == 0


def test_alarms_name_the_failed_run_unless_something_ended_since(well: FederationHome) -> None:
    arm = submit(well, state="failed")
    begin(arm)
    arm.write_outcome("failed", "Round 1 had 0 usable updates")
    arm.emit("failed", reason="Round 1 had 0 usable updates")
    [alarm] = read_status(well.folder).alarms
    assert alarm == Alarm(
        level="error",
        what="Run first failed after 0 of 5 rounds: Round 1 had 0 usable updates",
        way_out="Mend that, then: medfed federation run --resume first",
    )
    begin(submit(well, "second", "finished"))
    assert read_status(well.folder).alarms == ()


def test_alarms_warn_of_the_certificate_in_time(well: FederationHome) -> None:
    certificate = x509.load_pem_x509_certificate(well.certificate.read_bytes())
    expires = certificate.not_valid_after_utc
    reader = StatusReader(well.folder)

    def levels(days: float) -> list[str]:
        status = reader.read(expires - timedelta(days=days))
        assert status.certificate.days_left == pytest.approx(days)
        return [a.level for a in status.alarms if "certificate" in a.what]

    assert levels(31) == []
    assert levels(29) == ["warning"]
    assert levels(-1) == ["error"]


def test_alarms_ask_for_approval(well: FederationHome) -> None:
    Registry(well.sites_folder).put(SiteRecord(name="east", state="enrolled", note="came twice"))
    status = read_status(well.folder)
    assert told(status) == [
        ("warning", "east: came twice"),
        ("note", "east has enrolled and waits for your approval."),
    ]
    assert status.alarms[1].way_out == "medfed federation approve east"


def test_status_counts_what_the_gate_turned_down_within_the_hour(well: FederationHome) -> None:
    clock = [0.0]
    gate = Rejections(well.rejections_file, clock=lambda: clock[0])
    for _ in range(LINES_A_MINUTE + 5):
        gate.add("", "/v1/fleet/x", "unknown key")
    clock[0] = 61.0
    gate.add("", "/v1/fleet/x", "unknown key")
    old = {"time": ago(3700), "site": "", "what": "/", "reason": "old"}
    with well.rejections_file.open("a") as file:
        file.write(json.dumps(old) + "\n")
    status = read_status(well.folder)
    assert status.gate.num_turned_down == LINES_A_MINUTE + 6
    assert status.gate.sites == {"": LINES_A_MINUTE + 6}
    assert [alarm.level for alarm in status.alarms] == ["note"]
    gate.add("west", "/v1/fleet/x", "clock is off")
    status = read_status(well.folder)
    assert status.gate.sites["west"] == 1
    assert [alarm.level for alarm in status.alarms] == ["warning"]
    with well.rejections_file.open("a") as file:
        file.write('{"time": "torn')
    assert read_status(well.folder).gate == status.gate


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\x00\xff", '{"half": '])
@pytest.mark.parametrize(
    "name",
    [
        *("federation.toml", "supervisor.json", "superlink/nodes.json", "pki/server.pem"),
        *("superlink/rejections.jsonl", "sites/west.json", "runs/first/queue.json"),
        *(f"runs/first/arms/federated/{name}" for name in ("plan.json", "study.json")),
        *(f"runs/first/arms/federated/{name}" for name in ("events.jsonl", "rounds.jsonl")),
    ],
)
def test_status_survives_every_damaged_file(well: FederationHome, name: str, content: str) -> None:
    arm = submit(well)
    begin(arm)
    complete(arm, 1)
    path = well.folder / name
    path.write_bytes(content.encode("latin-1"))
    status = read_status(well.folder)
    json.dumps(status.as_json(), allow_nan=False)
    is_torn = name.endswith(".jsonl") and "\xff" not in content  # a last line without its end
    if content and not is_torn and name != "federation.toml":
        assert any(name in line for line in status.unreadable), status.unreadable
        assert not status.healthy
    if name == "federation.toml":
        assert status.unreadable
        assert status.name == ""
        assert len(status.sites) == 3
    if name == "sites/west.json":
        assert site(status, "west").state == "unreadable"


@pytest.mark.parametrize(
    "line",
    [
        '{"event": 3, "time": [], "site": {}}',
        '{"event": "round", "round": "two", "sites": "all", "names": 7}',
        '{"event": "trained", "site": null}',
        '{"event": "waiting", "reason": {"no": "text"}}',
        '{"round_number": 2, "sites": [], "metrics": 3, "seconds": "long"}',
        '{"round_number": 2, "sites": {"west": 3, "north": {"status": 5, "epsilon": NaN}}}',
        '{"round_number": 2, "sites": {"west": {"status": "dancing", "bytes_up": "many"}}}',
        '{"round_number": 2, "metrics": {"auroc": Infinity}, "site_epsilon": true}',
        '{"round_number": 2, "seconds": 1%s}' % ("0" * 400),
        "[" * 100_000,
    ],
)
@pytest.mark.parametrize("name", ["events.jsonl", "rounds.jsonl"])
def test_status_survives_lines_of_another_shape(well: FederationHome, name: str, line: str) -> None:
    arm = submit(well)
    begin(arm)
    complete(arm, 1)
    with (arm.folder / name).open("a") as file:
        file.write(line + "\n")
    status = read_status(well.folder)
    json.dumps(status.as_json(), allow_nan=False)
    assert run(status).values[0] == (1, 0.7)
    assert site(status, "north").last_answered == 1


def test_status_holds_nothing_that_steers_a_terminal(well: FederationHome) -> None:
    arm = submit(well)
    begin(arm)
    escape = "\x1b]0;owned\x07 \ud800 \u202e\nsecond line"
    complete(arm, 1, west=SiteRound(status="rejected", reason=escape))
    arm.emit("waiting", reason=escape)
    status = read_status(well.folder)
    assert site(status, "west").why == "?]0;owned? ? ? second line"
    assert run(status).waits_for == "?]0;owned? ? ? second line"


def test_reader_sees_what_was_appended_since(well: FederationHome) -> None:
    reader = StatusReader(well.folder)
    assert reader.read().runs == ()
    arm = submit(well)
    begin(arm)
    assert run(reader.read()).completed == 0
    complete(arm, 1)
    assert run(reader.read()).completed == 1
    RunQueue(well).stop("first")
    assert run(reader.read()).state == "stopped"


def test_reading_changes_no_file(well: FederationHome) -> None:
    begin(submit(well))

    def files() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in well.folder.rglob("*") if p.is_file()}

    before = files()
    read_status(well.folder)
    assert files() == before


@pytest.mark.parametrize(
    "task",
    [
        {"classes": ["a", "b"]},
        {"classes": ["a", "b", "c"], "mode": "ordinal"},
        {"classes": ["a", "b"], "mode": "multilabel"},
        {"type": "segmentation", "classes": ["a"]},
        {"type": "report", "report": {"findings": {"a": ["a"]}}},
        {"type": "report"},
    ],
)
def test_leading_figure_is_that_of_the_task(task: dict[str, Any]) -> None:
    name = {"segmentation": "unet", "report": "report_lstm"}.get(task.get("type", ""), "cnn")
    config = parse_study(
        {
            "study": {"name": "trial"},
            "task": task,
            "model": {"name": name},
            "training": {"rounds": 1, "local_epochs": 1, "learning_rate": 0.1},
            "privacy": {"unit": "none"},
        },
        "test",
    )
    keys = [figure.key for figure in make_task(config).figures]
    assert next(key for key in LEADING if key in keys) == keys[0]
