"""Every model's answer for every held-out image gives the run's own figures."""

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from medfed.common.errors import RunError
from medfed.common.metrics.classification import LOG_ODDS_RANGE, NUM_BINS
from medfed.common.study_file import load_study
from medfed.simulations.predictions import write_predictions
from medfed.simulations.reporting.arms import model_name
from medfed.simulations.reporting.run_data import load_run
from medfed.simulations.study import Options, prepare_run, start_study

SEGMENTATION = (
    *(
        "--set",
        "task.type=segmentation",
        "--set",
        'task.classes=["nodule","effusion","cardiomegaly"]',
    ),
    *("--set", "model.name=unet", "--set", "data.image_size=32", "--set", "model.widths=[8,16]"),
)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def share_of_ties(scores: np.ndarray, is_it: np.ndarray) -> float:
    """Pairs that fall into one bin of the report's histograms (`common.metrics.classification`)."""
    log_odds = np.log(scores) - np.log1p(-scores)
    bins = np.floor((log_odds + LOG_ODDS_RANGE) / (2 * LOG_ODDS_RANGE) * NUM_BINS)
    return float(np.mean(bins[is_it][:, None] == bins[~is_it][None])) + 1e-9


@pytest.mark.slow
def test_predictions_give_the_figures_of_the_report(medfed, tiny, tmp_path) -> None:  # type: ignore[no-untyped-def]
    run = tmp_path / "run"
    arms = ("--set", 'simulation.arms=["federated","pooled","local"]')
    columns = ("--set", 'simulation.subgroups=["sex"]', "--set", "simulation.resamples=0")
    medfed("simulate", tiny, "--out", run, "--quiet", *arms, *columns)
    done = medfed("report", run, "--predictions")
    assert str(run / "predictions.csv") in done.stdout
    rows, loaded = rows_of(run / "predictions.csv"), load_run(run)
    # The names of figures.csv, so that the two can be joined.
    named = {row["model"] for row in rows_of(run / "tables" / "figures.csv")} - {"local mean"}
    assert {row["model"] for row in rows} == named
    assert {row["sex"] for row in rows} <= {"F", "M"}
    classes = loaded.study.task.classes
    for name, arm in loaded.arms.items():
        mine = [row for row in rows if row["model"] == model_name(name)]
        scores = np.array([[float(row[f"p_{name}"]) for name in classes] for row in mine])
        truths = np.array([classes.index(row["truth"]) for row in mine])
        assert len(mine) == int(arm.final_metrics["num_images"])
        accuracy = np.mean(scores.argmax(axis=1) == truths)
        assert accuracy == pytest.approx(arm.final_metrics["accuracy"], abs=1e-12)
        for index, name in enumerate(classes):
            is_it = truths == index
            if f"auroc/{name}" not in arm.final_metrics:
                continue
            wins = mannwhitneyu(scores[is_it, index], scores[~is_it, index]).statistic
            area = wins / (is_it.sum() * (~is_it).sum())
            found = arm.final_metrics[f"auroc/{name}"]
            assert area == pytest.approx(found, abs=share_of_ties(scores[:, index], is_it) / 2)


@pytest.mark.slow
def test_personal_models_and_the_global_one_are_both_asked(medfed, tiny, tmp_path) -> None:  # type: ignore[no-untyped-def]
    run = tmp_path / "run"
    ditto = ("--set", "federation.algorithm=ditto", "--set", "privacy.unit=none")
    few = ("--set", "training.rounds=2", "--set", "simulation.resamples=0", "--quiet")
    medfed("simulate", tiny, "--out", run, *few, *ditto, "--set", 'simulation.arms=["federated"]')
    rows = rows_of(write_predictions(run))
    loaded = load_run(run)
    arm, classes = loaded.arms["federated"], loaded.study.task.classes
    accuracy = {}
    for model in ("federated", "federated global"):
        mine = [row for row in rows if row["model"] == model]
        said = [max(classes, key=lambda name: float(row[f"p_{name}"])) for row in mine]
        truths = [row["truth"] for row in mine]
        accuracy[model] = np.mean([one == other for one, other in zip(said, truths, strict=True)])
    assert accuracy["federated"] == pytest.approx(arm.final_metrics["accuracy"], abs=1e-12)
    wanted = arm.final_global_metrics["accuracy"]
    assert accuracy["federated global"] == pytest.approx(wanted, abs=1e-12)


@pytest.mark.slow
def test_images_of_a_segmentation_have_their_own_figures(medfed, tiny, tmp_path) -> None:  # type: ignore[no-untyped-def]
    run = tmp_path / "run"
    few = ("--set", "training.rounds=1", "--set", "simulation.resamples=0", "--quiet")
    medfed("simulate", tiny, "--out", run, *few, *SEGMENTATION)
    rows = rows_of(write_predictions(run))
    arm = load_run(run).arms["federated"]
    assert len(rows) == int(arm.final_metrics["num_images"])
    found = [float(row["dice"]) for row in rows if row["dice"]]
    assert found
    assert np.mean(found) == pytest.approx(arm.final_metrics["dice"], abs=1e-5)


def test_predictions_need_a_model(tiny: Path, tmp_path: Path) -> None:
    start_study(load_study(tiny), tmp_path / "run", None, Options())
    prepare_run(tmp_path / "run")
    with pytest.raises(RunError, match="no finished arm"):
        write_predictions(tmp_path / "run")
