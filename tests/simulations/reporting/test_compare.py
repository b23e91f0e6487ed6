import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medfed.common.errors import RunError
from medfed.common.files import write_json
from medfed.server.records import ArmFolder
from medfed.simulations.reporting.compare import compare_runs
from medfed.simulations.reporting.tables import ABSENT

MakeRun = Callable[..., Path]


def test_compare_puts_runs_side_by_side(make_run: MakeRun, tmp_path: Path, read_page: Any) -> None:
    first = make_run("a")
    second = make_run("b", private=False, learning_rate=0.02)
    comparison = compare_runs([first, second], tmp_path / "out" / "new")
    rows = [dict(zip(comparison.columns, row, strict=True)) for row in comparison.rows]
    assert [row["Run"] for row in rows] == ["a", "b"]
    assert rows[0]["Data set"] == "Phantom cohort"
    metrics = ArmFolder(second / "arms" / "federated").read_rounds()[-1].metrics
    assert metrics is not None
    assert rows[1]["AUROC federated"] == f"{metrics['auroc']:.3f}"
    epsilon = ArmFolder(first / "arms" / "federated").read_rounds()[-1].sites["site-1"].epsilon
    assert rows[0]["Privacy"] == "patient, seeded noise"
    assert rows[0]["ε @ δ"] == f"{epsilon:.2f} @ 1e-5"
    assert rows[1]["Privacy"] == "none"
    assert comparison.differing.rows == (
        ("privacy.unit", "patient", "none"),
        ("training.learning_rate", "0.05", "0.02"),
    )
    with comparison.csv.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert float(table[1]["auroc_federated"]) == metrics["auroc"]
    assert float(table[0]["epsilon"]) == epsilon
    assert table[1]["epsilon"] == ""
    assert [row["training.learning_rate"] for row in table] == ["0.05", "0.02"]
    page = read_page(comparison.html)
    assert page.row("differences", "training.learning_rate")[1:] == ["0.05", "0.02"]
    assert [link for link in page.links if not link.startswith("#")] == []


def test_a_key_that_a_run_lacks_is_an_empty_cell_for_programs(
    make_run: MakeRun, tmp_path: Path
) -> None:
    frozen, plain = make_run(folder="a", model={"low_rank": 2}), make_run(folder="b")
    comparison = compare_runs([frozen, plain], tmp_path / "out")
    with comparison.csv.open(newline="") as file:
        assert [row["model.low_rank"] for row in csv.DictReader(file)] == ["2", ""]
    assert ("model.low_rank", "2", ABSENT) in comparison.differing.rows


def test_compare_is_the_same_bytes_again(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("a"), make_run("b", rounds=2)]
    once = compare_runs(runs, tmp_path / "one")
    again = compare_runs(runs, tmp_path / "two")
    assert once.html.read_bytes() == again.html.read_bytes()
    assert once.csv.read_bytes() == again.csv.read_bytes()


def test_compare_numbers_runs_of_one_name(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a", arms=("federated",))
    comparison = compare_runs([run, run], tmp_path / "out")
    assert [row[0] for row in comparison.runs.rows] == ["a (1)", "a (2)"]
    assert not comparison.differing


def test_compare_warns_of_different_data(make_run: MakeRun, tmp_path: Path, read_page: Any) -> None:
    runs = [make_run("a", arms=("federated",)), make_run("b", arms=("federated",), num_images=30)]
    page = read_page(compare_runs(runs, tmp_path / "out").html)
    assert "judged on different held-out images" in page.text
    write_json(runs[1] / "simulation.json", {"dataset": {"name": "Another"}})
    page = read_page(compare_runs(runs, tmp_path / "out").html)
    assert "on different data sets" in page.text


def test_compare_shows_runs_that_have_not_trained(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("a", arms=()), make_run("b", arms=())]
    comparison = compare_runs(runs, tmp_path / "out")
    assert comparison.runs.rows[0][4] == "0 of 3"


def test_compare_wants_two_runs(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Expected at least two run folders, got 1"):
        compare_runs([make_run(arms=())], tmp_path / "out")


def test_compare_names_a_place_that_cannot_be_written(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    runs = [make_run("a", arms=()), make_run("b", arms=())]
    with pytest.raises(RunError, match="Name another folder"):
        compare_runs(runs, tmp_path / "file")


def test_compare_of_two_tasks_shows_both_figures(
    make_run: MakeRun, tmp_path: Path, read_page: Any
) -> None:
    runs = [
        make_run("a", arms=("federated",)),
        make_run("b", task_type="segmentation", arms=("federated",)),
    ]
    comparison = compare_runs(runs, tmp_path / "out")
    first, second = (dict(zip(comparison.columns, row, strict=True)) for row in comparison.rows)
    metrics = ArmFolder(runs[1] / "arms" / "federated").read_rounds()[-1].metrics
    assert metrics is not None
    assert second["Dice federated"] == f"{metrics['dice']:.3f}"
    assert second["AUROC federated"] == first["Dice federated"] == ABSENT
    assert "different tasks" in read_page(comparison.html).text
    with comparison.csv.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert float(table[1]["hd95_federated"]) == metrics["hd95"]
    assert table[0]["hd95_federated"] == ""


def test_compare_names_files_without_their_folders(
    make_run: MakeRun, tmp_path: Path, read_page: Any
) -> None:
    runs = [
        make_run(name, arms=(), model={"weights": f"/home/somebody/{name}.pth"}) for name in "ab"
    ]
    comparison = compare_runs(runs, tmp_path / "out")
    assert ("model.weights", "a.pth", "b.pth") in comparison.differing.rows
    assert "somebody" not in comparison.csv.read_text() + read_page(comparison.html).text
