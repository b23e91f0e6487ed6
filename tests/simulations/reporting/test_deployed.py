"""The page of a run whose sites are hospitals: what the coordinator's folder holds, and no more."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medfed.common.files import write_json
from medfed.common.ledger import Ledger, Spend
from medfed.server.countersigning import HEADS_FILE, SERVER_KEY, Countersigner
from medfed.server.records import ArmFolder, RunPlan
from medfed.simulations.reporting.compare import compare_runs
from medfed.simulations.reporting.deployed import by_round
from medfed.simulations.reporting.history import history_table, read_history
from medfed.simulations.reporting.participation_plot import stretches
from medfed.simulations.reporting.report import write_report
from medfed.simulations.reporting.run_data import load_run
from medfed.simulations.reporting.spending import SERVER, ledger_checks
from medfed.simulations.reporting.tables import ABSENT

MakeRun = Callable[..., Path]


def deploy(run: Path, **queue: Any) -> ArmFolder:
    """Leave of a run folder what a coordinator's machine has; sign the sites' ledger heads."""
    arm = ArmFolder(run / "arms" / "federated")
    for other in (run / "arms").iterdir():
        if other.name != "federated":
            shutil.rmtree(other)
    signer = Countersigner(arm.folder / HEADS_FILE, arm.folder / "server_state" / SERVER_KEY, "r")
    sites = sorted((arm.folder / "sites").glob("*/state"))
    for record in arm.read_rounds():
        heads = {state.parent.name: f"{record.round_number:064x}" for state in sites}
        signer.sign_round(record.round_number, heads)
    for name in ("examples", "arms/federated/sites", "figures"):
        shutil.rmtree(run / name, ignore_errors=True)
    for name in ("simulation.json", "report.html"):
        (run / name).unlink(missing_ok=True)
    write_json(run / "environment.json", {"command": "medfed federation run study.toml"})
    state = {"name": run.name, "state": "finished", "reason": "", "submitted": "2026-11-23"}
    write_json(run / "queue.json", {**state, **queue})
    return arm


def emit_all(arm: ArmFolder) -> None:
    """The life of a run of three rounds, with a site that is lost and comes back."""
    sites = ("site-1", "site-2", "site-3")
    arm.emit("started", arm="federated", rounds=3, after=0)
    arm.emit("waiting", reason="1 of 2 sites connected")
    arm.emit("refused", site="site-9", reason="budget")
    for site in sites:
        arm.emit("joined", site=site)
    for number in (1, 2, 3):
        arm.emit("round", round=number, sites=3)
        if number == 2:
            arm.emit("lost", site="site-3", round=2)
            arm.emit("started", arm="federated", rounds=3, after=1)
            arm.emit("rejoined", site="site-3", round=2)
        arm.emit("trained", round=number, site="site-1")
        if number == 3:
            arm.emit("refused", round=3, site="site-3", reason="budget")
            arm.emit("rejected", round=3, site="site-2", reason="Expected finite values")
        arm.emit("completed", round=number, metrics={}, epsilon=None)
    arm.emit("sung", song="of another release")
    arm.emit("finished", rounds=3, reason="")


@pytest.fixture
def deployed(make_run: MakeRun) -> Path:
    """A finished deployed run with something of everything."""
    run = make_run()
    emit_all(deploy(run))
    return run


def test_report_of_a_deployed_run_has_what_a_coordinator_knows(
    deployed: Path, read_page: Any
) -> None:
    page = read_page(write_report(deployed))
    assert page.headings == [
        "happened",
        *("convergence", "sites", "model", "privacy", "traffic", "time", "participation"),
        *("unseen", "reproduction"),
    ]
    figures = {v["id"] for t, v in page.tags if t == "figure"}
    assert {"figure-participation", "figure-convergence", "figure-epsilon"} <= figures
    assert not {"figure-partition"} & figures
    assert not [t for t, _ in page.tags if t == "img"]
    for absent in ("pooled", "local model", "simulat", "Partition", "--resume", "machine; "):
        assert absent not in page.text
    assert "Images, labels, reports and names of patients: they stay at the sites" in page.text
    assert "The sites' ledgers: each site keeps its own" in page.text
    assert page.rows["sites"][0][2:] == ["AUROC", "Balanced accuracy"]
    assert page.row("participation", "site-3")[-1] == "round 3: refused (budget)"
    words = [row for row in page.rows["participation"] if len(row) == 2]
    assert ["site-1", "ok 1\u20133"] in words
    assert ["site-3", "ok 1\u20132; refused 3"] in words
    assert "8 of 9" in page.text


def test_report_of_a_deployed_run_tells_what_happened(deployed: Path, read_page: Any) -> None:
    page = read_page(write_report(deployed))
    told = [row[1] for row in page.rows["happened"][1:]]
    assert told == [
        "Started: 3 rounds to go.",
        "Waiting: 1 of 2 sites connected",
        "site-9 refused to join (budget).",
        "3 sites joined: site-1, site-2, site-3.",
        "Round 1 completed.",
        "site-3 was lost in round 2.",
        "Resumed after round 1 of 3.",
        "site-3 came back in round 2.",
        "Round 2 completed.",
        "site-3 refused in round 3 (budget).",
        "What site-2 sent in round 3 was rejected: Expected finite values",
        "Round 3 completed.",
        "Finished after 3 rounds.",
    ]


def test_report_of_a_deployed_run_lists_countersigned_heads(deployed: Path, read_page: Any) -> None:
    page = read_page(write_report(deployed))
    assert page.row("privacy", "site-2")[:3] == ["site-2", "3", "round 3"]
    assert page.row("privacy", "site-2")[-1] == f"{3:064x}"
    assert "All signatures hold" in page.text
    assert "Recomputed from the ledgers" not in page.text


def test_report_of_a_deployed_run_says_when_the_book_of_heads_was_changed(
    deployed: Path, read_page: Any
) -> None:
    path = deployed / "arms" / "federated" / HEADS_FILE
    path.write_text(path.read_text().replace(f"{2:064x}", f"{7:064x}", 1))
    page = read_page(write_report(deployed))
    assert "The book of countersigned ledger heads: heads.jsonl: line 3: " in page.text
    assert "is not signed by the key" in page.text
    assert str(deployed) not in page.text


def test_report_of_a_deployed_run_reports_every_connection_status(
    deployed: Path, read_page: Any
) -> None:
    arm = ArmFolder(deployed / "arms" / "federated")
    records = [record.to_dict() for record in arm.read_rounds()]
    for number, (status, reason) in enumerate([("away", "not connected"), ("lost", ""),
                                               ("hiding", "of another release")]):  # fmt: skip
        records[number]["sites"]["site-2"] |= {"status": status, "reason": reason, "epsilon": None}
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (arm.folder / "rounds.jsonl").write_text(lines)
    page = read_page(write_report(deployed))
    head = next(row for row in page.rows["participation"] if "Away" in row)
    assert head[6:9] == ["Away", "Lost", "Not asked"]
    row = page.row("participation", "site-2")
    assert row[6:8] == ["1", "1"]
    assert row[-1] == (
        "round 1: away (not connected); round 2: lost; round 3: hiding (of another release)"
    )
    assert ["site-2", "away 1; lost 2; hiding 3"] in page.rows["participation"]


def test_report_of_a_deployed_run_shows_no_budget_of_a_simulation(
    deployed: Path, read_page: Any
) -> None:
    assert "max_epsilon" in (deployed / "study.toml").read_text()
    page = read_page(write_report(deployed))
    assert "each site's own" in page.text
    assert "dashed line is the budget" not in page.text
    assert "[simulation" not in page.text


@pytest.mark.parametrize(
    ("queue", "told"),
    [
        ({"state": "running"}, "it is running, and goes on while `medfed federation start` runs"),
        ({"state": "waiting", "reason": "another run is on"}, "it is waiting (another run is on)"),
        ({"state": "stopped", "reason": "by the coordinator"}, "was stopped (by the coordinator)"),
    ],
)
def test_report_of_an_unfinished_deployed_run_says_how_it_goes_on(
    make_run: MakeRun, read_page: Any, queue: dict[str, str], told: str
) -> None:
    run = make_run(finished=False)
    deploy(run, **queue)
    page = read_page(write_report(run))
    assert "Federated: unfinished, 2 of 3 rounds" in page.text
    assert told in page.text


def test_report_of_a_deployed_run_that_waits_for_its_first_round(
    make_run: MakeRun, read_page: Any
) -> None:
    run = make_run(finished=False, rounds=1)
    arm = deploy(run, state="running")
    for name in ("rounds.jsonl", "final_sums.json", HEADS_FILE):
        (arm.folder / name).unlink()
    shutil.rmtree(arm.checkpoint)
    arm.emit("waiting", reason="no site is connected")
    page = read_page(write_report(run))
    assert "Waiting: no site is connected" in page.text
    assert "No ledger head has been signed yet." in page.text
    assert "No round was completed." in page.text


def test_outcome_from_before_a_restart_is_no_outcome(make_run: MakeRun) -> None:
    run = make_run(finished=False)
    arm = deploy(run, state="running")
    arm.write_outcome("failed", "Round 3 had 0 usable updates")
    assert "failed after 2" in load_run(run).arms["federated"].state
    write_json(
        arm.folder / "outcome.json",
        {"state": "failed", "reason": "no quorum", "time": "2020-01-01T00:00:00.000+00:00"},
    )
    arm.emit("started", arm="federated", rounds=3, after=2)
    assert load_run(run).arms["federated"].state == "unfinished, 2 of 3 rounds"


def test_server_ledger_is_compared_up_to_the_runs_last_entry(make_run: MakeRun) -> None:
    """One ledger for all runs of a federation: a later run's spending is not this run's."""
    run = make_run(finished=False, rounds=1)
    arm = deploy(run)
    shared = run.parent / "server_state"
    arm.write_plan(RunPlan(run="run-a/federated", server_state=str(shared)))
    with Ledger(shared).locked() as ledger:
        for name in ("earlier/federated", "run-a/federated", "later/federated"):
            ledger.append(_spend(name))
    facts = load_run(run).arms["federated"].server_ledger
    assert facts is not None
    assert [spend.run for spend in facts.spends] == ["earlier/federated", "run-a/federated"]
    checks = ledger_checks(load_run(run), load_run(run).federated)
    assert [(check.site, check.entries) for check in checks] == [(SERVER, 2)]


def _spend(run: str) -> Spend:
    return Spend(
        release=run,
        study="s",
        run=run,
        round_number=1,
        unit="site",
        images_per_patient=0,
        noise_multiplier=1.0,
        sample_rate=1.0,
        steps=1,
        max_grad_norm=1.0,
        noise="secure",
    )


def test_deployed_runs_can_be_compared(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("a"), make_run("b", learning_rate=0.1)]
    for run in runs:
        deploy(run)
    comparison = compare_runs(runs, tmp_path / "out")
    assert [row[:2] for row in comparison.rows] == [("a", ABSENT), ("b", ABSENT)]
    assert [row[0] for row in comparison.differing.rows] == ["training.learning_rate"]


def test_history_leaves_out_what_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    lines = [
        '{"event": "failed", "time": "t", "reason": "r"}',
        *("half", "[]", "{}", '{"event": "b"}'),
        '{"event": "refused", "time": "2026-01-01T00:00:00"}',
        '{"event": "torn',
    ]
    path.write_text("\n".join(lines))
    happened = read_history(path)
    assert [event.kind for event in happened] == ["failed", "refused"]
    assert history_table(happened).rows == (
        ("t", "Failed: r"),
        ("2026-01-01 00:00:00", "refused"),
    )


def test_history_of_a_long_run_tells_its_beginning_and_its_end(tmp_path: Path) -> None:
    arm = ArmFolder(tmp_path)
    for number in range(1, 101):
        arm.emit("away", site="north", round=number)
    rows = history_table(read_history(tmp_path / "events.jsonl")).rows
    assert len(rows) == 61
    assert rows[0][1] == "north was away in round 1."
    assert rows[30] == ("…", "40 lines left out; see events.jsonl")
    assert rows[-1][1] == "north was away in round 100."


def test_stretches_join_rounds_in_a_row_alone() -> None:
    statuses = {1: "ok", 2: "ok", 4: "ok", 5: "late", 6: "ok"}
    assert stretches(statuses) == [("ok", 1, 2), ("ok", 4, 4), ("late", 5, 5), ("ok", 6, 6)]
    assert by_round(statuses) == "ok 1\u20132, 4, 6; late 5"
