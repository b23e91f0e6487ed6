"""A sweep: what it plans, what it runs, what its tables say."""

import csv
import hashlib
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from medfed.cli.run_log import logging_into
from medfed.common.errors import RunError, StudyError
from medfed.common.study import StudyConfig
from medfed.common.study_file import load_study
from medfed.common.tasks import Figure
from medfed.simulations.reporting import sweep_csv, sweep_tables
from medfed.simulations.reporting.latex import to_latex
from medfed.simulations.reporting.results import by_arm
from medfed.simulations.reporting.run_data import load_run
from medfed.simulations.reporting.sweep_data import CellRuns, SweepData, load_sweep
from medfed.simulations.reporting.sweep_statistics import corrected, paired_difference, summarise
from medfed.simulations.reporting.sweep_tables import (
    effects,
    shown_figures,
    target_table,
)
from medfed.simulations.reporting.tables import ABSENT, Table, to_markdown
from medfed.simulations.study import Options, Preparing, prepare_run, start_study
from medfed.simulations.sweep import (
    Cell,
    PlannedRun,
    cells_of,
    planned_runs,
    run_sweep,
    short_keys,
    start_sweep,
    study_of,
)

SWEEP = """
[sweep]
seeds = [3, 4]
[sweep.vary]
"training.learning_rate" = [0.1, 0.02]
"""
QUICK = (
    *("--set", "training.rounds=1"),
    *("--set", 'simulation.arms=["federated","pooled","local"]'),
    "--quiet",
)


@pytest.fixture
def swept(tiny: Path) -> Path:
    """The tiny study with two seeds and two learning rates."""
    tiny.write_text(tiny.read_text() + SWEEP)
    return tiny


def weights_of(run: Path) -> dict[str, str]:
    return {
        path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.glob("arms/*/model.safetensors"))
    }


def test_cells_are_all_combinations_in_the_order_of_the_file(tiny: Path) -> None:
    tiny.write_text(
        tiny.read_text()
        + '[sweep.vary]\n"training.momentum" = [0.0, 0.5]\n"model.name" = ["cnn", "resnet18"]\n'
    )
    study = load_study(tiny)
    cells = cells_of(study)
    assert [tuple(cell.settings.values()) for cell in cells] == [
        (0.0, "cnn"), (0.0, "resnet18"), (0.5, "cnn"), (0.5, "resnet18"),
    ]  # fmt: skip
    last = study_of(study, cells[3], seed=11)
    assert (last.study.seed, last.training.momentum, last.model.name) == (11, 0.5, "resnet18")
    assert last.sweep is None
    # A run is the study that --set would have made.
    plain = load_study(
        tiny, ["study.seed=11", "training.momentum=0.5", "model.name=resnet18"]
    ).model_copy(update={"sweep": None})
    assert last == plain


def test_a_cell_of_cases_is_called_by_what_its_case_gives(tiny: Path, tmp_path: Path) -> None:
    tiny.write_text(
        tiny.read_text() + '[sweep.vary]\n"training.momentum" = [0.0, 0.5]\n'
        '[[sweep.cases]]\n"federation.algorithm" = "fedavg"\n'
        '[[sweep.cases]]\n"federation.algorithm" = "fedprox"\n"federation.proximal_mu" = 0.1\n'
    )
    study = load_study(tiny)
    names = [
        "algorithm fedavg, momentum 0.0", "algorithm fedavg, momentum 0.5",
        "algorithm fedprox, proximal_mu 0.1, momentum 0.0",
        "algorithm fedprox, proximal_mu 0.1, momentum 0.5",
    ]  # fmt: skip
    assert [cell.label for cell in cells_of(study)] == names
    start_sweep(study, tmp_path / "sweep", None, Options())
    assert [run.cell.label for run in planned_runs(tmp_path / "sweep")][:4] == names
    assert [run.cell for run in planned_runs(tmp_path / "sweep")][:4] == list(cells_of(study))


def test_sites_see_nothing_of_a_sweep(swept: Path) -> None:
    study = load_study(swept)
    without = study.model_copy(update={"sweep": None})
    assert study.digest() == without.digest()
    assert "sweep" not in (study.for_sites().model_dump(exclude_none=True))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seeds = [1]", "a sweep of one run"),
        ("seeds = [1, 1]", "names one twice"),
        ('seeds = [1, 2]\n[sweep.vary]\n"study.seed" = [1, 2]', "Seeds are in sweep.seeds"),
        ('[sweep.vary]\n"momentum" = [0.1, 0.2]', "expected section.key"),
        ('[sweep.vary]\n"training.momentum" = []', "has no value"),
        ('[sweep.vary]\n"training.momentum" = [0.1, 0.1]', "names a value twice"),
        ("seed = [1, 2]", "Did you mean seeds?"),
        ("[sweep.vary]\ntraining.momentum = [0.1, 0.2]", r'in quotes: "training.momentum" = \['),
        ('[sweep.vary]\n"model.widths" = [[8], [16]]', "Lists are not varied"),
        (
            '[[sweep.cases]]\n"simulation.failures.drift.from_round" = { site-1 = 6 }',
            r'one by one: "simulation\.failures\.drift\.from_round\.site-1" = 6',
        ),
        ("[[sweep.cases]]\ntraining.momentum = 0.1", r'in quotes: "training.momentum" = \.\.\.'),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(tiny: Path, text: str, said: str) -> None:
    tiny.write_text(tiny.read_text() + f"[sweep]\n{text}\n")
    with pytest.raises(StudyError, match=said):
        load_study(tiny)


def test_nothing_is_started_when_a_combination_is_invalid(tiny: Path, tmp_path: Path) -> None:
    vary = '"privacy.max_grad_nrom" = [1.0, 2.0]'
    tiny.write_text(tiny.read_text() + f"[sweep.vary]\n{vary}\n")
    with pytest.raises(StudyError, match=r"max_grad_nrom 1\.0(.|\n)*Did you mean max_grad_norm"):
        start_sweep(load_study(tiny), tmp_path / "sweep", None, Options())
    assert not (tmp_path / "sweep").exists()


def test_the_first_seed_of_every_cell_comes_before_the_second(swept: Path, tmp_path: Path) -> None:
    start_sweep(load_study(swept), tmp_path / "sweep", None, Options())
    runs = [run.folder.name for run in planned_runs(tmp_path / "sweep")]
    assert runs == ["c001-s3", "c002-s3", "c001-s4", "c002-s4"]
    with pytest.raises(RunError, match=f"exists already.*--resume {tmp_path}/sweep,"):
        start_sweep(load_study(swept), tmp_path / "sweep", None, Options())
    (tmp_path / "a folder").mkdir()
    with pytest.raises(RunError, match="is no run that could go on"):
        start_sweep(load_study(swept), tmp_path / "a folder", None, Options())
    assert not any((tmp_path / "a folder").iterdir())
    (tmp_path / "a folder" / "run.json").touch()  # a run's: it stays a run
    with pytest.raises(RunError, match="exists already"):
        start_sweep(load_study(swept), tmp_path / "a folder", None, Options())
    with pytest.raises(RunError, match=f"--resume '{tmp_path}/a folder',"):
        start_study(load_study(swept), tmp_path / "a folder", None, Options())
    with pytest.raises(RunError, match=r"sweep\.json"):
        planned_runs(tmp_path)


@pytest.mark.slow
def test_a_sweep_runs_ordinary_runs_and_sums_them_up(medfed, swept, tmp_path) -> None:  # type: ignore[no-untyped-def]
    sweep = tmp_path / "sweep"
    done = medfed("simulate", swept, "--out", sweep, *QUICK)
    assert str(sweep / "report.html") in done.stdout
    folders = sorted(path.name for path in (sweep / "runs").iterdir())
    assert folders == ["c001-s3", "c001-s4", "c002-s3", "c002-s4"]

    with (sweep / "runs.csv").open() as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    for name in folders:
        run = load_run(sweep / "runs" / name)
        found = [float(rows[name][f"auroc_{arm}"]) for arm in ("federated", "pooled", "local")]
        assert found == list(by_arm(run, "auroc"))
        assert rows[name]["training.learning_rate"] == str(run.study.training.learning_rate)
        assert float(rows[name]["epsilon"]) > 0
    assert len({row["auroc_federated"] for row in rows.values()}) == 4

    values = [float(rows[f"c002-s{seed}"]["auroc_federated"]) for seed in (3, 4)]
    text = f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
    assert text in (sweep / "cells.md").read_text()
    assert text.replace(" ", "\u00a0") in (sweep / "report.html").read_text()
    assert text.replace("±", r"$\pm$") in (sweep / "cells.tex").read_text()
    assert "alpha" not in rows["c001-s3"]
    with (sweep / "cells.csv").open() as file:
        cells = {(row["cell"], row["figure"]): row for row in csv.DictReader(file)}
    kept = cells["c002", "auroc_federated"]
    assert float(kept["mean"]) == pytest.approx(np.mean(values), abs=1e-15)
    assert float(kept["standard_deviation"]) == pytest.approx(np.std(values, ddof=1), abs=1e-15)
    assert kept["runs"] == "2"
    with (sweep / "pairs.csv").open() as file:
        pairs = {(row["of"], row["minus"]): row for row in csv.DictReader(file)}
    pooled = [float(rows[f"c002-s{seed}"]["auroc_pooled"]) for seed in (3, 4)]
    expected = stats.ttest_rel(values, pooled)
    assert float(pairs["c002", "c002 pooled"]["p"]) == pytest.approx(expected.pvalue)
    assert ("c002", "c001") in pairs
    assert "Learned alpha" not in (sweep / "report.html").read_text()
    for figure in ("cells", "against-key"):
        assert (sweep / "figures" / f"{figure}.png").stat().st_size > 5_000

    # A run of a sweep is the run that anyone would start alone.
    alone = tmp_path / "alone"
    shutil.copy(swept, tmp_path / "one.toml")
    one = tmp_path / "one.toml"
    one.write_text(one.read_text().replace(SWEEP, ""))
    settings = ("--set", "study.seed=4", "--set", "training.learning_rate=0.02")
    medfed("simulate", one, "--out", alone, *QUICK, *settings)
    assert weights_of(alone) == weights_of(sweep / "runs" / "c002-s4")


@pytest.mark.slow
def test_learned_alphas_are_a_column_of_every_table(medfed, tiny, tmp_path) -> None:  # type: ignore[no-untyped-def]
    vary = '[sweep.vary]\n"federation.apfl_alpha_rate" = [0.0, 0.5]\n'
    tiny.write_text(f"{tiny.read_text()}[sweep]\nseeds = [3, 4]\n{vary}")
    sweep = tmp_path / "sweep"
    values = ("federation.algorithm=apfl", "privacy.unit=none", "training.rounds=2")
    medfed("simulate", tiny, "--out", sweep, "--quiet", *(f"--set={value}" for value in values))
    with (sweep / "runs.csv").open() as file:
        rows = {row["run"]: row["alpha"] for row in csv.DictReader(file)}
    assert (rows.pop("c001-s3"), rows.pop("c001-s4")) == ("", "")  # a fixed alpha is in the study
    for name, shown in rows.items():
        ends = {}
        personal = (sweep / "runs" / name / "personal.csv").read_text()
        for line in csv.DictReader(personal.splitlines()):
            ends[line["site"]] = float(line["alpha"])  # the last round is the last line
        assert len(ends) == 3
        assert float(shown) == pytest.approx(np.mean(list(ends.values())), abs=1e-12)
    first, second = map(float, rows.values())
    assert first != second
    text = f"{(first + second) / 2:.3f} ± {abs(first - second) / math.sqrt(2):.3f}"
    heads, _, fixed, learned = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (sweep / "cells.md").read_text().splitlines()
    )
    place = heads.index("Learned alpha")
    assert (fixed[place], learned[place]) == (ABSENT, text)
    latex = (sweep / "cells.tex").read_text().splitlines()[-3]
    assert latex.split(" & ")[place] == text.replace("±", r"$\pm$")
    page = (sweep / "report.html").read_text()
    assert text.replace(" ", "\u00a0") in page
    assert "no site sends it" in page


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_was_and_repeats_nothing(medfed, swept, tmp_path) -> None:  # type: ignore[no-untyped-def]
    sweep = tmp_path / "sweep"
    arms = ("--set", 'simulation.arms=["federated"]', "--set", "training.rounds=1", "--quiet")
    medfed("simulate", swept, "--out", sweep, *arms)
    before = {path: path.stat().st_mtime_ns for path in sweep.glob("runs/*/arms/*/model.*")}
    weights = weights_of(sweep / "runs" / "c002-s3")
    # As a kill leaves it: one run without an end, one not even begun, one begun and no more.
    for name in ("model.safetensors", "outcome.json"):
        (sweep / "runs" / "c002-s3" / "arms" / "federated" / name).unlink()
    shutil.rmtree(sweep / "runs" / "c001-s4")
    shutil.rmtree(sweep / "runs" / "c002-s4")
    (sweep / "runs" / "c002-s4").mkdir()
    medfed("simulate", "--resume", sweep, "--quiet")
    assert weights_of(sweep / "runs" / "c002-s3") == weights
    after = {path: path.stat().st_mtime_ns for path in before}
    again = {path.parts[-4] for path in before if after[path] != before[path]}
    assert again == {"c002-s3", "c001-s4", "c002-s4"}
    assert "4 of 4 runs are finished" in (sweep / "report.html").read_text()
    medfed("simulate", "--resume", sweep, "--set", "training.rounds=2", code=2)


def test_other_runs_go_on_when_one_fails(medfed, tiny, tmp_path) -> None:  # type: ignore[no-untyped-def]
    vary = '[sweep.vary]\n"privacy.expected_batch_size" = [8.0, 500.0]\n'
    tiny.write_text(tiny.read_text() + vary)
    sweep = tmp_path / "sweep"
    arms = ("--set", 'simulation.arms=["federated"]', "--set", "training.rounds=1", "--quiet")
    done = medfed("simulate", tiny, "--out", sweep, *arms, code=6)
    assert "1 of 2 runs failed" in done.stderr
    assert "expected batch of 500" in done.stderr
    page = (sweep / "report.html").read_text()
    assert "1 of 2 runs are finished" in page
    assert "failed: " in page
    assert page.count("expected batch of 500") == 1
    # A sweep's page can be made again without its terminal.
    medfed("report", sweep)
    assert (sweep / "report.html").read_text() == page


def test_a_study_that_was_changed_is_not_resumed(medfed, swept, tmp_path) -> None:  # type: ignore[no-untyped-def]
    sweep = tmp_path / "sweep"
    start_sweep(load_study(swept), sweep, None, Options())
    first = planned_runs(sweep)[0]
    start_study(study_of(load_study(swept), first.cell, first.seed), first.folder, None, Options())
    prepare_run(first.folder)
    for folder in (sweep, first.folder):
        file = folder / "study.toml"
        before = file.read_text()
        file.write_text(before.replace("local_steps = 3", "local_steps = 2"))
        done = medfed("simulate", "--resume", folder, "--quiet", code=6)
        assert f"{file} is not the study that" in done.stderr
        file.write_text(before)
    assert prepare_run(first.folder) == load_study(first.folder / "study.toml")


@pytest.mark.parametrize("fault", [ZeroDivisionError("of a plug-in"), OSError("no room")])
def test_a_fault_of_one_run_does_not_stop_the_others_and_a_full_disk_does(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    tiny.write_text(tiny.read_text() + SWEEP)
    sweep, tried = tmp_path / "sweep", []
    study = load_study(tiny)
    start_sweep(study, sweep, None, Options())

    def run(folder: Path, options: Options, preparing: Preparing | None = None) -> None:
        tried.append(folder.name)
        if len(tried) == 1:
            raise fault

    @contextmanager
    def watch(run: PlannedRun, study: StudyConfig) -> Iterator[Preparing]:
        with logging_into(run.folder):
            yield lambda done, of: None

    monkeypatch.setattr("medfed.simulations.sweep.run_to_report", run)
    if isinstance(fault, OSError):
        with pytest.raises(OSError, match="no room"):
            run_sweep(sweep, Options(workers=1), watch)
        assert tried == ["c001-s3"]
        return
    failures = run_sweep(sweep, Options(workers=1), watch)
    assert tried == ["c001-s3", "c002-s3", "c001-s4", "c002-s4"]
    assert list(failures) == ["c001-s3"]
    assert failures["c001-s3"].startswith("ZeroDivisionError: of a plug-in. medfed.log")
    kept = (sweep / "runs" / "c001-s3" / "medfed.log").read_text()
    assert "Traceback" in kept
    assert "raise fault" in kept


@pytest.mark.slow
def test_rounds_and_bytes_to_a_target_are_those_of_the_records(medfed, swept, tmp_path) -> None:  # type: ignore[no-untyped-def]
    sweep = tmp_path / "sweep"
    arms = ("--set", 'simulation.arms=["federated"]', "--quiet")
    medfed("simulate", swept, "--out", sweep, *arms)
    data = load_sweep(sweep)
    records = {
        run.folder.name: run.federated.rounds
        for cell in data.cells
        for run in cell.runs
        if run is not None and run.federated is not None
    }
    reached = [value.metrics["auroc"] for value in records["c001-s3"] if value.metrics]
    # Reached later than in the first round, if at all.
    target = reached[0] + 1e-9
    [auroc] = [figure for figure in shown_figures(data) if figure.key == "auroc"]
    for cell in data.cells:
        for run, found in zip(cell.runs, cell.reaching(auroc, target), strict=True):
            assert run is not None
            rounds = records[run.folder.name]
            good = [r for r in rounds if (r.metrics or {}).get("auroc", 0.0) >= target]
            if not good:
                assert found is None
                continue
            assert found is not None
            assert found.rounds == good[0].round_number
            until = [r for r in rounds if r.round_number <= found.rounds]
            assert found.num_bytes == sum(
                site.bytes_up + site.bytes_down for r in until for site in r.sites.values()
            )
    assert data.cells[0].reaching(auroc, 0.0)[0] == data.cells[0].reaching(auroc, reached[0])[0]
    assert data.cells[0].reaching(auroc, 1.1) == (None, None)
    assert target_table(data).rows == ()
    text = (sweep / "study.toml").read_text().replace("[sweep]", "[sweep]\ntarget = 0.0", 1)
    (sweep / "study.toml").write_text(text)
    assert [row[2] for row in target_table(load_sweep(sweep)).rows] == ["2 of 2", "2 of 2"]
    medfed("report", sweep)
    assert "Sent until then" in (sweep / "report.html").read_text()


def test_a_federation_runs_no_sweep(medfed, swept, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from medfed.cli.federation_runs import _submit

    with pytest.raises(StudyError, match=r"has a \[sweep\]"):
        _submit(None, swept, (), None)  # type: ignore[arg-type]


def test_paired_differences_are_those_of_a_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    for count in (2, 3, 10):
        ours, theirs = rng.normal(0.8, 0.02, count), rng.normal(0.78, 0.02, count)
        found = paired_difference(list(ours), list(theirs))
        expected = stats.ttest_rel(ours, theirs)
        interval = expected.confidence_interval(0.95)
        assert found.mean == pytest.approx(np.mean(ours - theirs))
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
        assert found.p == pytest.approx(expected.pvalue)


def test_differences_leave_out_seeds_that_one_side_lacks() -> None:
    found = paired_difference([0.5, None, 0.9], [0.4, 0.7, 0.6])
    assert found.count == 2
    assert found.mean == pytest.approx(0.2)
    alone = paired_difference([0.5, None], [0.4, 0.7])
    assert (alone.count, alone.low, alone.p) == (1, None, None)
    assert paired_difference([None], [0.1]).text() == "\u2013"
    # Without any spread there is no test.
    assert paired_difference([0.5, 0.5], [0.25, 0.25]).p is None
    # Nor with one that is of rounding alone: 0.3 - 0.2 is not quite 0.4 - 0.3.
    assert paired_difference([0.3, 0.4, 0.9], [0.2, 0.3, 0.8]).p is None


def test_summaries_say_how_many() -> None:
    two = summarise([0.5, None, 0.7])
    assert (two.count, two.mean) == (2, pytest.approx(0.6))
    assert two.deviation == pytest.approx(math.sqrt(0.02))
    assert two.text() == "0.600 ± 0.141"
    assert summarise([0.5]).text() == "0.500"
    assert summarise([None]).text() == "\u2013"


def test_tables_survive_markdown_and_latex() -> None:
    table = Table(("a|b", "50 % & more"), (("x_1", "0.5 ± 0.1"),))
    assert to_markdown(table) == "| a\\|b | 50 % & more |\n| --- | ---: |\n| x_1 | 0.5 ± 0.1 |\n"
    tex = to_latex(table)
    assert r"50 \% \& more" in tex
    assert r"x\_1 & 0.5 $\pm$ 0.1 \\" in tex


def test_latex_has_signs_and_no_letters_that_its_fonts_lack() -> None:
    # In LaTeX's default encoding a bare < is an inverted exclamation mark, a bare - a hyphen.
    rows = (("[site-2]", "-0.003 (-0.010 to +0.004)", "< 0.001", "1e-5", "\u2013", "a|b"),)
    tex = to_latex(Table(("\u03b5", "d", "p", "\u03b4", "x", "y"), rows))
    assert r"{}[site-2] & $-$0.003 ($-$0.010 to +0.004) & $<$ 0.001 & 1e-5 & -- & a$|$b \\" in tex
    assert tex.isascii()


def test_keys_are_short_where_that_is_clear() -> None:
    keys = ["privacy.noise_multiplier", "statistics.noise_multiplier", "training.rounds"]
    assert list(short_keys(keys).values()) == [*keys[:2], "rounds"]
    section = "simulation.failures"
    keys = [f"{section}.poisoned.site-1", f"{section}.stragglers.site-1", f"{section}.boost"]
    assert list(short_keys(keys).values()) == ["poisoned.site-1", "stragglers.site-1", "boost"]
    cell = Cell("c001", dict(zip(keys, ("sign_flip", None, 2.0), strict=True)))
    assert cell.label == "poisoned.site-1 sign_flip, boost 2.0"


def test_a_sweep_reaches_a_name_that_holds_a_dot(tiny: Path) -> None:
    key = 'simulation.failures.stragglers."st.-mary"'
    study = load_study(tiny, [f"sweep.vary={{'{key}' = [0.1, 0.2]}}"])
    found = [study_of(study, cell, 1).simulation for cell in cells_of(study)]
    assert [dict(one.failures.stragglers) for one in found if one] == [
        {"st.-mary": 0.1},
        {"st.-mary": 0.2},
    ]


def test_corrected_p_values_are_holms() -> None:
    # Holm's own step-down rule, by hand: 4 x 0.01, then 3 x 0.02, 2 x 0.03 and 1 x 0.9.
    assert corrected([0.9, 0.01, None, 0.03, 0.02]) == pytest.approx((0.9, 0.04, None, 0.06, 0.06))
    assert corrected([0.6, 0.7]) == (1.0, 1.0)
    assert corrected([]) == ()


def _fake_sweep(
    section: dict[str, object], figures: dict[tuple[object, ...], tuple[float, ...]]
) -> SweepData:
    """A sweep whose cells have these leading figures, a value a seed, in place of runs."""

    class Cells(CellRuns):
        def by_arm(self, key: str, arm: str) -> tuple[float, ...]:
            return figures[tuple(self.cell.settings.values())]

    study = StudyConfig.model_validate(
        {
            "study": {"name": "t"},
            "task": {"classes": ["a", "b"]},
            "training": {"local_steps": 1},
            "privacy": {"unit": "none"},
            "sweep": {"seeds": [1, 2, 3], **section},
        }
    )
    cells = tuple(Cells(cell, ()) for cell in cells_of(study))
    return SweepData(Path(), study, (1, 2, 3), cells)


def test_effects_change_one_thing_and_leave_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    auroc = Figure("auroc", "AUROC")
    monkeypatch.setattr(sweep_tables, "shown_figures", lambda sweep: (auroc,))
    section = {
        "cases": [{"federation.algorithm": "fedavg"},
                  {"federation.algorithm": "fedprox", "federation.proximal_mu": 0.1}],
        "vary": {"training.learning_rate": [0.1, 0.2]},
    }  # fmt: skip
    figures = {
        ("fedavg", None, 0.1): (0.50, 0.60, 0.70),
        ("fedavg", None, 0.2): (0.51, 0.62, 0.73),
        ("fedprox", 0.1, 0.1): (0.60, 0.71, 0.82),
        ("fedprox", 0.1, 0.2): (0.90, 0.95, 0.97),
    }
    sweep = _fake_sweep(section, figures)
    found = {(one.cell.cell.name, one.base.cell.name): one for one in effects(sweep)}
    # A case changes as a whole, and is never held against another learning rate.
    assert set(found) == {
        ("c003", "c001"), ("c004", "c002"), ("c002", "c001"), ("c004", "c003"),
    }  # fmt: skip
    values = list(figures.values())
    expected = stats.ttest_rel(values[3], values[1])
    assert found["c004", "c002"].difference.p == pytest.approx(expected.pvalue)
    rows = {row[0]: row[1:] for row in sweep_tables.effects_table(sweep).rows}
    assert rows["c004 \u2212 c002"][:3] == (
        "algorithm fedprox, proximal_mu 0.1", "algorithm fedavg", "learning_rate 0.2",
    )  # fmt: skip
    assert rows["c002 \u2212 c001"][3].startswith("+0.020 (")
    # With one thing that varies, cell 1 is what all are held against anyway.
    assert effects(_fake_sweep({"vary": section["vary"]}, {(0.1,): (), (0.2,): ()})) == ()


def test_comparisons_with_cell_1_are_corrected_for_their_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    auroc = Figure("auroc", "AUROC")
    monkeypatch.setattr(sweep_tables, "shown_figures", lambda sweep: (auroc,))
    figures = {(0.1,): (0.5, 0.6, 0.7), (0.2,): (0.53, 0.61, 0.75), (0.4,): (0.7, 0.71, 0.9)}
    sweep = _fake_sweep({"vary": {"training.learning_rate": [0.1, 0.2, 0.4]}}, figures)
    table = sweep_tables.pairs_table(sweep)
    assert table.columns[-3:] == ("Federated \u2212 cell 1", "p", "p, Holm")
    base, *others = figures.values()
    ps = [float(stats.ttest_rel(other, base).pvalue) for other in others]
    low, high = sorted(ps)
    assert [row[-2:] for row in table.rows] == [
        (ABSENT, ABSENT),
        *((f"{p:.3f}", f"{2 * low if p == low else max(2 * low, high):.3f}") for p in ps),
    ]
    two = _fake_sweep({"vary": {"training.learning_rate": [0.1, 0.2]}}, figures)
    assert sweep_tables.pairs_table(two).columns[-1] == "p"


def test_pairs_csv_has_each_family_of_comparisons_with_its_corrected_p(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (sweep_tables, sweep_csv):
        monkeypatch.setattr(module, "shown_figures", lambda sweep: (Figure("auroc", "AUROC"),))
    figures = {
        (0.1, 4): (0.50, 0.60, 0.70),
        (0.1, 8): (0.51, 0.62, 0.73),
        (0.2, 4): (0.60, 0.71, 0.82),
        (0.2, 8): (0.90, 0.95, 0.97),
    }
    sweep = _fake_sweep(
        {"vary": {"training.learning_rate": [0.1, 0.2], "training.batch_size": [4, 8]}}, figures
    )
    rows = list(csv.DictReader(sweep_csv.pairs_csv(sweep).splitlines()))
    arms = [row for row in rows if row["family"] == "arms"]
    assert [row["p_holm"] for row in arms] == [""] * 8  # each cell against pooled and local
    runs = dict(zip(("c001", "c002", "c003", "c004"), figures.values(), strict=True))
    for family, num_pairs in (("first cell", 3), ("single change", 4)):
        found = [row for row in rows if row["family"] == family]
        pairs = [(runs[row["of"]], runs[row["minus"]]) for row in found]
        ps = [float(stats.ttest_rel(*pair).pvalue) for pair in pairs]
        assert [float(row["p"]) for row in found] == pytest.approx(ps)
        assert [float(row["p_holm"]) for row in found] == pytest.approx(corrected(ps))
        assert len(found) == num_pairs


def test_a_mean_over_some_of_the_runs_says_so() -> None:
    run = object()
    cell = CellRuns(Cell("c001", {}), (run,) * 3)  # type: ignore[arg-type]
    assert sweep_tables.over_seeds((0.5, None, 0.7), cell) == "0.600 \u00b1 0.141 (2 of 3)"
    assert sweep_tables.over_seeds((0.5, 0.6, 0.7), cell) == "0.600 \u00b1 0.100"
    assert sweep_tables.over_seeds((None, None, None), cell) == ABSENT
