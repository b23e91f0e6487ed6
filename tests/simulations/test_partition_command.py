"""`medfed data partition`: a table, JSON and a figure of what a study's sites would hold."""

import json
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from medfed.cli import data_partition
from medfed.common.errors import DataError, StudyError
from medfed.simulations.reporting.partition_words import partition_in_words

CLASSES = ["normal", "nodule", "effusion", "cardiomegaly"]


@pytest.fixture
def run(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("MEDFED_CACHE", str(cache))
    monkeypatch.setenv("COLUMNS", "120")
    app = typer.Typer()
    app.callback()(lambda: None)
    data_partition.add_to(app)

    def command(*arguments: object) -> Result:
        return CliRunner().invoke(app, ["partition", str(tiny), *map(str, arguments)])

    return command


def test_partition_command_counts_what_the_simulation_gets(run, medfed, tiny, tmp_path) -> None:  # type: ignore[no-untyped-def]
    result = run("--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    medfed("simulate", tiny, "--out", tmp_path / "run", "--set", "training.rounds=1")
    simulated = json.loads((tmp_path / "run" / "simulation.json").read_text())
    assert found["classes"] == CLASSES
    assert found["left_out"] == simulated["left_out"]
    assert list(found["sites"]) == list(simulated["sites"])
    for name, site in found["sites"].items():
        for side in ("train", "test"):
            for count in ("patients", "images"):
                assert site[side][count] == simulated["sites"][name][side][count]
            # A phantom patient has one class in all images.
            assert sum(site[side]["by_class"].values()) == site[side]["patients"]
    assert sum(s[side]["patients"] for s in found["sites"].values() for side in ("train", "test")) \
        == 120  # fmt: skip


def test_partition_command_prints_a_table_and_writes_the_figure(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for name in ("partition.png", "partition.svg"):
        result = run("--out", tmp_path / name)
        assert result.exit_code == 0, result.output
        for text in ("scanner-1", "scanner-3", "Train", "cardiomegaly", "natural (column"):
            assert text in result.stdout
        assert str(tmp_path / name) in result.stdout.replace("\n", "")
    with Image.open(tmp_path / "partition.png") as picture:
        assert picture.size[0] > 500
    svg = (tmp_path / "partition.svg").read_text()
    for text in ("scanner-2", "effusion", "held out"):
        assert text in svg


def test_partition_command_turns_a_table_that_is_too_wide(run, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    wide = run().stdout
    monkeypatch.setenv("COLUMNS", "60")
    narrow = run().stdout
    assert max(map(len, narrow.splitlines())) <= 60
    [heading] = [line for line in narrow.splitlines() if "Site" in line]
    assert "scanner-1" in heading
    # The same figures, none of them cut.
    [normal] = [line for line in narrow.splitlines() if "normal" in line]
    counts = [int(word) for word in normal.split() if word.isdecimal()]
    assert len(counts) == 3
    assert all(str(count) in wide for count in counts)


def test_partition_command_lists_who_is_left_out(run) -> None:  # type: ignore[no-untyped-def]
    result = run("--set", "simulation.partition.min_patients=40")
    assert "Left out: scanner-" in result.stdout
    assert "fewer than min_patients = 40" in result.stdout


def test_partition_command_says_what_it_cannot_do(run, tiny: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    result = run("--out", tmp_path / "partition.gif")
    assert isinstance(result.exception, StudyError)
    assert "Expected --out to end in .png or .svg, got partition.gif" in str(result.exception)
    result = run("--set", "simulation.partition.column=scaner")
    assert isinstance(result.exception, DataError)
    assert "Did you mean scanner?" in str(result.exception)
    tiny.write_text(tiny.read_text().partition("[simulation]")[0])
    result = run()
    assert isinstance(result.exception, StudyError)
    assert "Expected a [simulation] section" in str(result.exception)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"method": "iid", "num_sites": 4, "sigma": 1.0}, "iid (num_sites = 4)"),
        ({"method": "quantity", "num_sites": 4, "sigma": 1.0, "sizes": "auto"},
         "quantity (num_sites = 4, sigma = 1.0)"),
        ({"method": "natural", "column": "c", "min_patients": 8, "missing": None},
         "natural (column = c, min_patients = 8)"),
        ({"method": "dirichlet", "num_sites": 3, "alpha": 0.5, "sizes": "power", "exponent": 2.0},
         "dirichlet (num_sites = 3, alpha = 0.5, sizes = power, exponent = 2.0)"),
        ({"method": "dirichlet", "alpha": 0.5, "sizes": "lognormal", "sigma": 2.0},
         "dirichlet (alpha = 0.5, sizes = lognormal, sigma = 2.0)"),
        ({"method": "iid", "noise": {"rate": 0.1, "pairs": {"a": "b"}, "sites": ["s", "t"]}},
         "iid, label noise (rate = 0.1, pairs = a: b, sites = s and t)"),
        ({"method": "iid", "missing": {"num_classes": None, "at_sites": {"s": ["a", "b"]}},
          "shift": {"strength": 0.5}},
         "iid, missing classes (at_sites = s: a and b), scanner shift (strength = 0.5)"),
        ({}, ""),
    ],
)  # fmt: skip
def test_partition_in_words(facts: dict[str, object], words: str) -> None:
    assert partition_in_words(facts) == words
