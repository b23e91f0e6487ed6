"""Whole studies through the `medfed` command: run, resume after kill -9, refuse bad input."""

import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medfed.common.accounting import epsilon
from medfed.common.ledger import Ledger
from medfed.server.records import ArmFolder


def weights_of(run: Path) -> dict[str, str]:
    """SHA-256 of every arm's final model."""
    return {
        path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.glob("arms/*/model.safetensors"))
    }


def test_simulate_runs_every_arm_and_names_folder_and_report(medfed, tiny, tmp_path) -> None:  # type: ignore[no-untyped-def]
    run = tmp_path / "run"
    done = medfed(
        "simulate", tiny, "--out", run, "--set", 'simulation.arms=["federated","pooled","local"]'
    )
    assert str(run / "report.html") in done.stdout
    assert (run / "report.html").stat().st_size > 10_000
    arms = {"federated", "pooled", "local-scanner-1", "local-scanner-2", "local-scanner-3"}
    assert set(weights_of(run)) == arms
    for arm in arms:
        outcome = ArmFolder(run / "arms" / arm).read_outcome()
        assert outcome is not None
        assert outcome["state"] == "finished"
    assert "round 3/3" in done.stderr
    assert "epsilon" in done.stderr
    again = medfed("report", run)
    assert str(run / "report.html") in again.stdout


def test_ledger_of_a_run_recomputes_to_what_the_run_printed(medfed, tiny, tmp_path) -> None:  # type: ignore[no-untyped-def]
    # By Google PLD at ten times the resolution of the run's own accountant.
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    run = tmp_path / "run"
    medfed("simulate", tiny, "--out", run)
    last = ArmFolder(run / "arms" / "federated").read_rounds()[-1]
    for name, site in last.sites.items():
        entries = Ledger(run / "arms" / "federated" / "sites" / name / "state").entries()
        assert len(entries) == 3
        accountant = PLDAccountant(value_discretization_interval=1e-4)
        for entry in entries:
            spend = entry.spend
            accountant.compose(
                dp_accounting.PoissonSampledDpEvent(
                    spend.sample_rate, dp_accounting.GaussianDpEvent(spend.noise_multiplier)
                ),
                spend.steps,
            )
            assert spend.noise == "seeded"
        assert site.epsilon == pytest.approx(accountant.get_epsilon(1e-3), rel=0.01)
        assert site.epsilon == epsilon([entry.spend.event for entry in entries], 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("privacy", ["patient", "none"])
def test_run_killed_at_random_moments_resumes_to_the_same_weights(  # type: ignore[no-untyped-def]
    medfed, tiny, tmp_path, cache, privacy
) -> None:
    options = ["--set", f"privacy.unit={privacy}", "--set", "training.rounds=6"]
    medfed("simulate", tiny, "--out", tmp_path / "whole", *options)
    clock = random.Random(privacy)
    run = tmp_path / "killed"
    command = [sys.executable, "-m", "medfed", "simulate", "--quiet"]
    start = [*command, str(tiny), "--out", str(run), *options]
    kills = 0
    for _ in range(20):
        arguments = [*command, "--resume", str(run)] if (run / "run.json").exists() else start
        if not (run / "run.json").exists():
            shutil.rmtree(run, ignore_errors=True)
        process = subprocess.Popen(
            arguments, env={**os.environ, "MEDFED_CACHE": str(cache)}, cwd=tmp_path
        )
        # Imports take seconds and touch nothing: most kills should fall into the rounds.
        seen = progress_of(run)
        deadline = time.monotonic() + 60
        while process.poll() is None and progress_of(run) == seen and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(clock.random() * 0.25)
        if process.poll() is not None:
            assert process.returncode == 0
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    else:
        medfed("simulate", "--resume", run)
    assert kills >= 2
    assert weights_of(run) == weights_of(tmp_path / "whole")
    resumed = ArmFolder(run / "arms" / "federated").read_rounds()
    whole = ArmFolder(tmp_path / "whole" / "arms" / "federated").read_rounds()
    assert [r.weights_sha256 for r in resumed] == [r.weights_sha256 for r in whole]
    assert [r.metrics for r in resumed] == [r.metrics for r in whole]
    if privacy == "patient":
        # Seeded noise: the same release again is the same bits, and is charged once.
        for name in whole[-1].sites:
            entries = Ledger(run / "arms" / "federated" / "sites" / name / "state").entries()
            assert [entry.spend.round_number for entry in entries] == [1, 2, 3, 4, 5, 6]


def progress_of(run: Path) -> int:
    """Grows with every event of the federated arm."""
    path = run / "arms" / "federated" / "events.jsonl"
    return path.stat().st_size if path.exists() else 0


def test_resume_of_a_finished_run_changes_nothing(medfed, tiny, tmp_path) -> None:  # type: ignore[no-untyped-def]
    medfed("simulate", tiny, "--out", tmp_path / "run")
    before = weights_of(tmp_path / "run")
    medfed("simulate", "--resume", tmp_path / "run")
    assert weights_of(tmp_path / "run") == before


def test_budget_stops_training_and_keeps_the_last_model(medfed, tiny, tmp_path) -> None:  # type: ignore[no-untyped-def]
    # Round 1 costs epsilon 2.58 at delta 1e-3, round 2 would bring it to 3.54.
    run = tmp_path / "run"
    done = medfed("simulate", tiny, "--out", run, "--set", "simulation.max_epsilon=3.0")
    assert "privacy budget spent before round 2" in done.stderr
    arm = ArmFolder(run / "arms" / "federated")
    assert [record.round_number for record in arm.read_rounds()] == [1]
    for site in arm.read_rounds()[0].sites:
        assert len(Ledger(arm.folder / "sites" / site / "state").entries()) == 1
    assert "budget" in (run / "report.html").read_text()


def ham_folder(tmp_path: Path, num_lesions: int = 40) -> Path:
    """A small data set in HAM10000's layout whose lesion identifiers are patients' names."""
    folder = tmp_path / "ham"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(num_lesions):
        image = f"ISIC_{number:07d}"
        pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{image}.jpg")
        lesion = f"PLANTED^NAME^{number}"
        clinic = ["rosendahl", "vidir_modern"][number % 2]
        dx = ["nv", "mel"][number // 2 % 2]
        rows.append([lesion, image, dx, "histo", "50.0", "male", "trunk", clinic])
    write_metadata(folder, rows)
    return folder


HEADER = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset"]


def write_metadata(folder: Path, rows: list[list[str]], header: list[str] = HEADER) -> None:
    with (folder / "HAM10000_metadata").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def read_metadata(folder: Path) -> list[list[str]]:
    with (folder / "HAM10000_metadata").open(newline="") as file:
        return list(csv.reader(file))


HAM_OPTIONS = [
    *("--set", "training.rounds=2", "--set", "training.batch_size=4"),
    *("--set", "federation.min_sites=2", "--set", "data.image_size=16"),
    *("--set", 'simulation.arms=["federated"]'),
]
STUDIES = Path(__file__).parents[2] / "studies"


def test_planted_patient_name_appears_nowhere_in_a_run(medfed, tmp_path) -> None:  # type: ignore[no-untyped-def]
    folder = ham_folder(tmp_path)
    # A damaged image too: its error must not carry the name out either.
    (folder / "images" / "ISIC_0000003.jpg").write_bytes(b"not a picture")
    run = tmp_path / "run"
    done = medfed(
        "simulate", STUDIES / "ham10000.toml", "--data", folder, "--out", run, "-v", *HAM_OPTIONS
    )
    assert b"PLANTED" in (folder / "HAM10000_metadata").read_bytes()
    assert "PLANTED" not in done.stdout + done.stderr
    for path in run.rglob("*"):
        if path.is_file():
            assert b"PLANTED" not in path.read_bytes(), path
    assert "1 quarantined" in (run / "report.html").read_text().replace("\n", " ") or (
        json.loads((run / "simulation.json").read_text())["dataset"]["num_quarantined"] == 1
    )


def break_label(folder: Path) -> None:
    change_row(folder, 2, "zebra")


def break_duplicate(folder: Path) -> None:
    change_row(folder, 1, "ISIC_0000001")


def change_row(folder: Path, column: int, value: str) -> None:
    rows = read_metadata(folder)
    rows[1][column] = value
    write_metadata(folder, rows[1:], rows[0])


def drop_column(folder: Path) -> None:
    rows = read_metadata(folder)
    write_metadata(folder, [row[1:] for row in rows[1:]], rows[0][1:])


@pytest.mark.parametrize(
    ("spoil", "options", "code", "fragments"),
    [
        (break_label, [], 3, ["zebra", "row"]),
        (break_duplicate, [], 3, ["ISIC_0000001"]),
        (drop_column, [], 3, ["lesion_id"]),
        (None, ["--set", "training.batch_size=500"], 3, ["batch_size = 500", "Lower it"]),
        (None, ["--set", "simulation.partition.min_patients=100"], 3, ["100", "min_patients"]),
        (None, ["--set", "simulation.partition.column=nowhere"], 3, ["nowhere", "dataset"]),
        (None, ["--set", "training.bach_size=5"], 2, ["bach_size", "batch_size"]),
        (
            None,
            [
                "--set",
                "model.name=resnet18",
                "--set",
                "model.norm=batch",
                "--set",
                "privacy.unit=patient",
            ],
            2,
            ["BatchNorm"],
        ),
        (None, ["--grid", "moon"], 2, ["local or ray"]),
        pytest.param(
            None,
            ["--set", "compute.device=cuda"],
            2,
            ["Expected a GPU"],
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here"),
        ),
    ],
)
def test_simulate_refuses_before_training(  # type: ignore[no-untyped-def]
    medfed, tmp_path, spoil, options, code, fragments
) -> None:
    folder = ham_folder(tmp_path)
    if spoil is not None:
        spoil(folder)
    done = medfed(
        *("simulate", STUDIES / "ham10000.toml", "--data", folder, "--out", tmp_path / "run"),
        *HAM_OPTIONS,
        *options,
        code=code,
    )
    assert "Traceback" not in done.stderr
    for fragment in fragments:
        assert fragment in done.stderr
    assert not (tmp_path / "run").exists()


def test_simulate_strict_refuses_a_damaged_image(medfed, tmp_path) -> None:  # type: ignore[no-untyped-def]
    folder = ham_folder(tmp_path)
    (folder / "images" / "ISIC_0000003.jpg").write_bytes(b"not a picture")
    done = medfed(
        *("simulate", STUDIES / "ham10000.toml", "--data", folder, "--strict"),
        *HAM_OPTIONS,
        code=3,
    )
    assert "ISIC_0000003" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "fragment"),
    [
        (("simulate",), 2, "--resume"),
        (("simulate", "nowhere.toml"), 2, "nowhere.toml"),
        (("simulate", "--resume", "nowhere"), 6, "nowhere"),
        (("report", "nowhere"), 6, "nowhere"),
        (("compare", "nowhere"), 6, "two or more"),
        (("study", "show", "nowhere.toml"), 2, "nowhere.toml"),
    ],
)
def test_command_names_the_way_out(medfed, arguments, code, fragment) -> None:  # type: ignore[no-untyped-def]
    done = medfed(*arguments, code=code)
    assert fragment in done.stderr
    assert "Traceback" not in done.stderr
