"""The bootstrap over held-out patients, and subgroups."""

import csv
import json

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.stats import norm

from medfed.common.metrics import classification_sums
from medfed.common.study import StudyConfig
from medfed.common.tasks import make_task
from medfed.server.records import ArmFolder
from medfed.simulations.reporting.run_data import load_run
from medfed.simulations.uncertainty.between import paired_sums
from medfed.simulations.uncertainty.bootstrap import (
    compare_arms,
    draw_counts,
    interval,
    resampled,
)
from medfed.simulations.uncertainty.patient_sums import (
    PatientSums,
    flat,
    patient_sums,
    unflat,
)
from medfed.simulations.uncertainty.subgroups import UNKNOWN, compare_groups, groups_of

TASK = make_task(
    StudyConfig.model_validate(
        {
            "study": {"name": "t"},
            "task": {"classes": ["a", "b"]},
            "training": {"local_steps": 1},
            "privacy": {"unit": "none"},
        }
    ),
    (),
)

[ACCURACY] = [figure for figure in TASK.figures if figure.key == "accuracy"]


def made(right: np.ndarray, sites: list[str], **columns: tuple[str, ...]) -> PatientSums:
    """Patients of one image each, of class a or b in turn; right or wrong as told."""
    rows = []
    for number, is_right in enumerate(right):
        truth = number % 2
        said = truth if is_right else 1 - truth
        probabilities = np.eye(2)[[said]] * 0.8 + 0.1
        rows.append(
            flat(
                classification_sums(probabilities, np.array([truth]), np.zeros(1), "multiclass"),
                TASK,
            )
        )
    return PatientSums(TASK, sparse.csr_array(np.stack(rows)), tuple(sites), columns)


def test_sums_come_back_from_flat() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([1.0, 1.0], 9)
    sums = classification_sums(probabilities, rng.integers(0, 2, 9), rng.random(9), "multiclass")
    again = unflat(flat(sums, TASK), TASK)
    assert set(again) == set(sums)
    assert all(np.array_equal(again[name], sums[name]) for name in sums)


def test_every_site_keeps_its_number_of_patients() -> None:
    sites = ["x"] * 5 + ["y"] * 2 + ["x"]
    counts = draw_counts(sites, 300, np.random.default_rng(1))
    at_x = np.array(sites) == "x"
    assert (counts[:, at_x].sum(axis=1) == 6).all()
    assert (counts[:, ~at_x].sum(axis=1) == 2).all()
    # Each is drawn once on the average, and seldom exactly once by all.
    assert np.abs(counts.mean(axis=0) - 1).max() < 0.25
    assert (counts == 1).mean() < 0.6


def test_interval_of_an_accuracy_is_that_of_its_formula() -> None:
    rng = np.random.default_rng(2)
    sums = made(rng.random(400) < 0.7, ["x"] * 400)
    found = compare_arms({"federated": sums}, ["accuracy"], resamples=2000, rng=rng)
    accuracy = found["accuracy"]["arms"]["federated"]
    half = 1.96 * np.sqrt(accuracy["value"] * (1 - accuracy["value"]) / 400)
    assert accuracy["high"] - accuracy["value"] == pytest.approx(half, rel=0.15)
    assert accuracy["value"] - accuracy["low"] == pytest.approx(half, rel=0.15)


def test_differences_are_paired_patient_by_patient() -> None:
    rng = np.random.default_rng(3)
    right = rng.random(200) < 0.6
    better = right.copy()
    better[np.flatnonzero(~right)[:20]] = True
    sites = ["x"] * 120 + ["y"] * 80
    arms = {
        "federated": made(better, sites),
        "pooled": made(right, sites),
        "local-x": made(better, sites),
        "local-y": made(better, sites),
    }
    found = compare_arms(arms, ["accuracy"], resamples=1000, rng=rng)["accuracy"]["differences"]
    # Two models that say the same differ by nothing, whoever is drawn.
    assert found["local"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    # One that is right wherever the other is, and 20 times more, is better in every resample;
    # unpaired, each accuracy varies by ten times as much.
    assert found["pooled"]["value"] == pytest.approx(0.1)
    assert 0.05 < found["pooled"]["low"] < found["pooled"]["high"] < 0.15


def test_two_runs_are_paired_as_mcnemar_pairs_them() -> None:
    rng = np.random.default_rng(6)
    first, second = rng.random(500) < 0.6, rng.random(500) < 0.68
    sites = ["x"] * 500
    counts = draw_counts(sites, 2000, rng)
    same, other = made(first, sites), made(second, sites)
    found = paired_sums(made(first, sites), [same, other], ["accuracy", "auroc"], counts)
    itself = found[0].differences["accuracy"]
    assert (itself.value, itself.low, itself.high, found[0].p["accuracy"]) == (0.0, 0.0, 0.0, 1.0)
    one = found[1].differences["accuracy"]
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    assert one.value == pytest.approx((gained - lost) / 500)
    # The variance of a difference of paired shares, Fleiss 1981, chapter 8.
    deviation = np.sqrt(gained + lost - (gained - lost) ** 2 / 500) / 500
    assert one.low is not None
    assert one.high is not None
    assert one.high - one.low == pytest.approx(2 * 1.96 * deviation, rel=0.1)
    expected = 2 * norm.sf(abs(one.value) / deviation)
    assert found[1].p["accuracy"] == pytest.approx(expected, rel=0.5, abs=0.002)


@pytest.mark.slow
def test_compared_runs_are_paired_patient_by_patient(medfed, tiny, tmp_path) -> None:  # type: ignore[no-untyped-def]
    quick = ("--set", "training.rounds=1", "--set", "simulation.resamples=0", "--quiet")
    for name, more in (
        ("a", ()),
        ("b", ("--set", "training.learning_rate=0.02")),
        ("c", ("--set", "study.seed=9")),
    ):
        medfed("simulate", tiny, "--out", tmp_path / name, *quick, *more)
    a, b, c = (tmp_path / name for name in "abc")
    done = medfed("compare", a, b, "--paired", "--out", tmp_path / "out")
    with (tmp_path / "out" / "paired.csv").open() as file:
        rows = {row["figure"]: row for row in csv.DictReader(file)}
    finals = [load_run(run).federated.final_metrics for run in (a, b)]
    auroc = rows["auroc"]
    assert float(auroc["difference"]) == pytest.approx(finals[1]["auroc"] - finals[0]["auroc"])
    assert float(auroc["low"]) < float(auroc["difference"]) < float(auroc["high"])
    assert "b \u2212 a, patient by patient" in done.stdout
    assert "Patient by patient" in (tmp_path / "out" / "compare.html").read_text()
    assert {"compare.md", "compare.tex", "paired.md", "paired.tex"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    done = medfed("compare", a, c, "--paired", "--out", tmp_path / "no", code=6)
    assert "judged on other held-out patients" in done.stderr
    assert not (tmp_path / "no").exists()


def test_what_is_seldom_defined_has_no_interval() -> None:
    values = np.array([0.5, 0.6, np.nan, np.nan])
    assert interval(0.5, values).to_dict() == {"value": 0.5, "low": None, "high": None}
    assert interval(None, values).value is None


def test_an_average_over_other_classes_is_another_figure() -> None:
    # 20 patients of class a, all right, and two of class b, both wrong.
    every = made(np.arange(40) % 2 == 0, ["x"] * 40)
    chosen = [*range(0, 40, 2), 1, 3]
    sums = PatientSums(TASK, sparse.csr_array(every.sums_PD[chosen]), ("x",) * 22, {})
    counts = draw_counts(sums.sites, 2000, np.random.default_rng(7))
    drawn = resampled(sums, counts, ["balanced_accuracy", "average_precision", "accuracy"])
    # Without a patient of class b its mean over classes would be 1.
    known = drawn["balanced_accuracy"][~np.isnan(drawn["balanced_accuracy"])]
    assert set(known) == {0.5}
    missing = (counts[:, 20:].sum(axis=1) == 0).mean()
    assert missing == pytest.approx((20 / 22) ** 22, rel=0.15)
    assert np.isnan(drawn["balanced_accuracy"]).mean() == missing
    assert np.isnan(drawn["average_precision"]).mean() == missing
    assert not np.isnan(drawn["accuracy"]).any()


def test_words_are_groups_and_numbers_are_cut_at_terciles() -> None:
    groups = groups_of(("f", "m", "", "f", "f"))
    assert {name: members.tolist() for name, members in groups.items()} == {
        "f": [True, False, False, True, True],
        "m": [False, True, False, False, False],
        UNKNOWN: [False, False, True, False, False],
    }
    ages = groups_of((*map(str, range(30, 60)), ""))
    assert {name: int(members.sum()) for name, members in ages.items()} == {
        "up to 39.6667": 10, "39.6667 to 49.3333": 10, "above 49.3333": 10, UNKNOWN: 1,
    }  # fmt: skip
    # Few numbers are codes.
    assert list(groups_of(("1", "2", "1"))) == ["1", "2"]


def test_subgroups_are_judged_on_their_own_patients() -> None:
    right = np.array([True, True, True, True, False, False, True, False])
    sex = ("f", "f", "f", "f", "m", "m", "m", "m")
    sums = made(right, ["x", "y"] * 4, sex=sex)
    found, gaps = compare_groups(
        sums, "sex", [ACCURACY], resamples=200, rng=np.random.default_rng(4)
    )
    assert {name: facts["patients"] for name, facts in found.items()} == {"f": 4, "m": 4}
    assert found["f"]["figures"]["accuracy"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found["m"]["figures"]["accuracy"]["value"] == 0.25
    assert found["m"]["figures"]["accuracy"]["high"] > 0.25
    assert gaps == {}  # four patients say nothing of a gap


def test_a_gap_between_groups_has_the_interval_of_a_difference_of_shares() -> None:
    rng = np.random.default_rng(5)
    sex = ("f",) * 300 + ("m",) * 200 + ("",) * 100 + ("x",) * 9
    right = rng.random(len(sex)) < np.repeat([0.9, 0.7, 0.1, 0.0], [300, 200, 100, 9])
    sums = made(right, ["a"] * len(sex), sex=sex)
    found, gaps = compare_groups(sums, "sex", [ACCURACY], resamples=2000, rng=rng)
    gap = gaps["accuracy"]
    # Neither who is not known nor nine patients are a group that a model could fail.
    assert (gap["best"], gap["worst"]) == ("f", "m")
    assert {name for name, facts in found.items() if facts["in_gap"]} == {"f", "m"}
    shares = {name: found[name]["figures"]["accuracy"]["value"] for name in ("f", "m")}
    assert gap["value"] == pytest.approx(shares["f"] - shares["m"], abs=1e-12)
    variances = [shares[name] * (1 - shares[name]) / n for name, n in (("f", 300), ("m", 200))]
    half = 1.96 * np.sqrt(sum(variances))
    assert gap["high"] - gap["value"] == pytest.approx(half, rel=0.15)
    assert gap["value"] - gap["low"] == pytest.approx(half, rel=0.15)


@pytest.mark.slow
def test_a_run_says_how_sure_its_figures_are(medfed, tiny, tmp_path) -> None:  # type: ignore[no-untyped-def]
    run = tmp_path / "run"
    settings = (
        *("--set", 'simulation.arms=["federated","pooled","local"]'),
        *("--set", "training.rounds=1"),
        *("--set", "simulation.resamples=50"),
        *("--set", 'simulation.subgroups=["scanner"]'),
        *("--set", "simulation.phantom.num_patients=300"),
    )
    medfed("simulate", tiny, "--out", run, *settings, "--quiet")
    file = run / "uncertainty.json"
    table = json.loads(file.read_text())
    data = load_run(run)
    assert table["num_patients"] == sum(site.test.patients for site in data.sites.values())

    # The sums of patients are together those of the run's own evaluation, bit for bit; on a GPU
    # only with its arithmetic, which another process has to set up again.
    torch.set_deterministic_debug_mode("default")
    sums = patient_sums(run / "arms" / "federated", ())
    assert torch.get_deterministic_debug_mode() == 2
    everyone = unflat(np.ones(len(sums), dtype=np.int64) @ sums.sums_PD, sums.task)
    assert data.federated is not None
    [(_, final)] = data.federated.final_sums
    assert set(final) == set(everyone)
    for name in final:
        assert np.array_equal(final[name], everyone[name]), name
    own = sums.task.metrics(everyone)["auroc"]
    assert own == data.federated.final_metrics["auroc"]
    assert table["figures"]["auroc"]["arms"]["federated"]["value"] == own

    assert set(table["figures"]["auroc"]["differences"]) == {"pooled", "local"}
    assert set(table["subgroups"]["scanner"]) == {"scanner-1", "scanner-2", "scanner-3"}
    page = (run / "report.html").read_text()
    assert "How sure the figures are" in page
    assert "Subgroups" in page
    auroc = table["gaps"]["scanner"]["auroc"]
    values = [
        facts["figures"]["auroc"]["value"] for facts in table["subgroups"]["scanner"].values()
    ]
    assert auroc["value"] == pytest.approx(max(values) - min(values))
    assert auroc["best"] in page

    # The same run gives the same file.
    before = file.read_bytes()
    file.unlink()
    medfed("simulate", "--resume", run, "--quiet")
    assert file.read_bytes() == before


def test_no_bootstrap_where_none_is_asked_for(medfed, tiny, tmp_path) -> None:  # type: ignore[no-untyped-def]
    run = tmp_path / "run"
    settings = ("--set", "training.rounds=1", "--set", "simulation.resamples=0")
    medfed("simulate", tiny, "--out", run, *settings, "--quiet")
    assert not (run / "uncertainty.json").exists()
    assert "How sure" not in (run / "report.html").read_text()
    assert ArmFolder(run / "arms" / "federated").read_outcome() is not None


def test_a_column_that_nobody_has_is_refused_before_training(medfed, tiny, tmp_path) -> None:  # type: ignore[no-untyped-def]
    run = tmp_path / "run"
    settings = ("--set", 'simulation.subgroups=["sex","scaner"]', "--quiet")
    done = medfed("simulate", tiny, "--out", run, *settings, code=2)
    assert "names scaner, which is no metadata column" in done.stderr
    assert "Did you mean scanner? There are: " in done.stderr
    assert not run.exists()
