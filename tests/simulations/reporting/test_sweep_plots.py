"""A sweep's figures over epsilon and over rounds, and its sites over seeds."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfed.simulations.reporting.results import by_arm, site_scores
from medfed.simulations.reporting.rounds_plot import curve_of, plot_rounds
from medfed.simulations.reporting.run_data import load_run
from medfed.simulations.reporting.spending import stated_epsilon
from medfed.simulations.reporting.sweep_data import CellRuns, SweepData
from medfed.simulations.reporting.sweep_plots import plot_against_epsilon, plot_against_key
from medfed.simulations.reporting.sweep_sites import sites_csv, sites_table
from medfed.simulations.reporting.sweep_statistics import summarise
from medfed.simulations.sweep import Cell

Make = Callable[..., Path]


def sweep(make_run: Make, cells: list[tuple[dict[str, Any], list[dict[str, Any]]]]) -> SweepData:
    """A sweep of made runs: settings of each cell, and how each seed's run is made."""
    made = tuple(
        CellRuns(
            Cell(f"c{number:03d}", settings),
            tuple(load_run(make_run(f"c{number}-{i}", **one)) for i, one in enumerate(seeds)),
        )
        for number, (settings, seeds) in enumerate(cells)
    )
    run = made[0].runs[0]
    assert run is not None
    return SweepData(run.folder, run.study, tuple(range(len(cells[0][1]))), made)


NOISE, RATE = "privacy.noise_multiplier", "training.learning_rate"
SHORT, LONG = {"rounds": 2}, {"rounds": 4}


def test_cells_that_differ_in_privacy_alone_are_one_line_of_means_with_spreads(
    make_run: Make,
) -> None:
    data = sweep(
        make_run,
        [
            ({NOISE: 1.0, RATE: 0.1}, [LONG, {"rounds": 3}]),
            ({NOISE: 2.0, RATE: 0.1}, [SHORT, SHORT]),
            ({NOISE: 2.0, RATE: 0.5}, [SHORT, SHORT]),
        ],
    )
    figure = plot_against_epsilon(data)
    assert figure is not None
    [axes] = figure.axes
    first, second = axes.containers
    spent = [summarise([stated_epsilon(run) for run in cell.runs if run]) for cell in data.cells]
    scores = [
        summarise([by_arm(run, "auroc")[0] for run in cell.runs if run]) for cell in data.cells
    ]
    # In order of epsilon: the second cell spent less.
    assert list(first.lines[0].get_xdata()) == [spent[1].mean, spent[0].mean]
    assert list(first.lines[0].get_ydata()) == [scores[1].mean, scores[0].mean]
    assert list(second.lines[0].get_xdata()) == [spent[2].mean]
    across = first.lines[2][0].get_segments()[1]
    assert across[1][0] - across[0][0] == pytest.approx(2 * (spent[0].deviation or 0.0))
    assert spent[0].deviation
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["learning_rate 0.1", "learning_rate 0.5"]


def test_a_run_without_dp_is_a_dashed_line_to_hold_the_curve_against(make_run: Make) -> None:
    cells = [({NOISE: 1.0}, [LONG]), ({NOISE: 2.0}, [SHORT]), ({NOISE: 0.0}, [{"private": False}])]
    data = sweep(make_run, cells)
    figure = plot_against_epsilon(data)
    assert figure is not None
    assert "dashed: without DP" in figure.axes[0].get_ylabel()
    assert figure.axes[0].get_legend() is None


def test_there_is_no_curve_where_all_runs_spent_the_same_or_nothing(make_run: Make) -> None:
    same = [({RATE: 0.1}, [SHORT]), ({RATE: 0.5}, [SHORT])]
    assert plot_against_epsilon(sweep(make_run, same)) is None


def test_a_curve_has_the_rounds_that_every_seed_has_with_their_spread(make_run: Make) -> None:
    other = {"rounds": 3, "num_images": 31}
    data = sweep(make_run, [({RATE: 0.1}, [LONG, other]), ({RATE: 0.5}, [SHORT, SHORT])])
    cell = data.cells[0]
    runs = [
        [record.metrics["auroc"] for record in run.federated.rounds if record.metrics]
        for run in cell.runs
        if run is not None and run.federated is not None
    ]
    shared = np.array([values[:3] for values in runs])
    curve = curve_of(cell, "auroc")
    assert curve.rounds == (1, 2, 3)
    assert (shared[0] != shared[1]).all()
    assert curve.means == pytest.approx(shared.mean(axis=0))
    assert curve.deviations == pytest.approx(shared.std(axis=0, ddof=1))
    figure = plot_rounds(data)
    assert figure is not None
    [axes] = figure.axes
    assert [len(line.get_xdata()) for line in axes.lines] == [3, 2]


def test_one_evaluation_is_no_curve(make_run: Make) -> None:
    assert plot_rounds(sweep(make_run, [({RATE: 0.2}, [{"rounds": 1}])])) is None


def test_sites_have_means_over_the_seeds_that_have_them(make_run: Make) -> None:
    few = {"rounds": 2, "num_sites": 2}
    data = sweep(make_run, [({RATE: 0.1}, [LONG, SHORT]), ({RATE: 0.5}, [few, SHORT])])
    rows = {(row[0], row[2]): row[3:] for row in sites_table(data).rows}
    assert set(rows) == {(f"c00{cell}", f"site-{n}") for cell in (0, 1) for n in (1, 2, 3)}
    scores = [site_scores(run, "auroc") for run in data.cells[0].runs if run]
    for site in ("site-1", "site-3"):
        federated, pooled, own = np.array([one[site] for one in scores], dtype=float).T
        texts = [
            f"{values.mean():.3f} \u00b1 {values.std(ddof=1):.3f}"
            for values in (federated, pooled, own, federated - own)
        ]
        assert list(rows["c000", site]) == texts
    # One of the second cell's runs has two sites.
    assert rows["c001", "site-3"][0].endswith("(1 of 2)")
    lines = list(csv.DictReader(io.StringIO(sites_csv(data))))
    found = [line for line in lines if (line["cell"], line["figure"]) == ("c001", "auroc")]
    assert [(line["site"], line["seed"]) for line in found] == [
        ("site-1", "0"), ("site-1", "1"), ("site-2", "0"), ("site-2", "1"), ("site-3", "1"),
    ]  # fmt: skip
    assert float(found[-1]["own_data"]) == site_scores(data.cells[1].runs[1], "auroc")["site-3"][2]  # type: ignore[arg-type]


def test_a_number_that_goes_with_another_setting_is_no_axis(make_run: Make) -> None:
    both = [({"federation.algorithm": name, RATE: rate}, [SHORT]) for name, rate in
            (("fedavg", 0.1), ("scaffold", 0.5))]  # fmt: skip
    assert plot_against_key(sweep(make_run, both)) is None
