"""A sweep's figure over epsilon: a line for what differs in privacy alone, with both spreads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medfed.simulations.reporting.results import by_arm
from medfed.simulations.reporting.run_data import load_run
from medfed.simulations.reporting.spending import stated_epsilon
from medfed.simulations.reporting.sweep_data import CellRuns, SweepData
from medfed.simulations.reporting.sweep_plots import plot_against_epsilon
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
