"""Every site's own model on every site's held-out images: from the records, to the bit."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medfed.server.records import ArmFolder
from medfed.simulations.reporting.drawing import draw
from medfed.simulations.reporting.matrix import matrix_csv, matrix_rows, matrix_table, plot_matrix
from medfed.simulations.reporting.report import write_report
from medfed.simulations.reporting.run_data import load_run


def test_matrix_has_each_arm_s_last_figure_at_each_site(finished_run: Path) -> None:
    run = load_run(finished_run)
    rows = matrix_rows(run)
    sites = run.site_names
    assert list(rows) == [*(f"{site} alone" for site in sites), "pooled", "federated"]
    for name, values in rows.items():
        arm = f"local-{name.removesuffix(' alone')}" if name.endswith(" alone") else name
        last = ArmFolder(finished_run / "arms" / arm).read_rounds()[-1]
        assert values == [(last.sites[site].metrics or {})["auroc"] for site in sites]
    [header, *lines] = csv.reader(matrix_csv(run).splitlines())
    assert header == ["auroc of", *sites]
    assert [[float(cell) for cell in line[1:]] for line in lines] == list(rows.values())
    table = matrix_table(run)
    assert table.rows[-1][1] == f"{rows['federated'][0]:.3f}"


def test_report_shows_the_matrix_and_keeps_it_as_files(finished_run: Path) -> None:
    page = write_report(finished_run).read_text()
    assert 'id="figure-matrix"' in page
    assert "Every site's model at every site" in page
    assert (finished_run / "matrix.csv").read_text().startswith("auroc of,site-1,")
    assert "| site-1 alone |" in (finished_run / "matrix.md").read_text()
    for suffix in ("svg", "png"):
        assert (finished_run / "figures" / f"matrix.{suffix}").stat().st_size > 3_000


@pytest.mark.parametrize("arms", [("federated",), ("federated", "pooled")])
def test_without_local_models_there_is_no_matrix(
    make_run: Callable[..., Path], arms: tuple[str, ...]
) -> None:
    folder = make_run(arms=arms)
    assert matrix_rows(load_run(folder)) == {}
    assert "Every site's model" not in write_report(folder).read_text()
    assert not (folder / "matrix.csv").exists()


def test_what_a_site_withholds_is_empty_and_alike_models_are_drawn(
    make_run: Callable[..., Path],
) -> None:
    folder = make_run()
    for path in (folder / "arms").iterdir():
        arm = ArmFolder(path)
        rounds: list[Any] = arm.read_rounds()
        for site, said in rounds[-1].sites.items():
            said.metrics = None if site == "site-2" else {"auroc": 0.5}
        arm.rewrite_rounds(rounds)
    run = load_run(folder)
    assert all(values == [0.5, None, 0.5] for values in matrix_rows(run).values())
    assert ",0.5,,0.5" in matrix_csv(run)
    assert draw("matrix", "", lambda: plot_matrix(run)) is not None
