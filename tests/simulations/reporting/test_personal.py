"""Personal models on the page: each beside the global one, and alpha as the sites kept it."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfed.client.own_parts import OwnParts
from medfed.server.records import ArmFolder
from medfed.simulations.reporting.compare import compare_runs
from medfed.simulations.reporting.personal import personal_csv, personal_table
from medfed.simulations.reporting.report import write_report
from medfed.simulations.reporting.run_data import load_run
from medfed.simulations.reporting.tables import ABSENT

ALPHAS = {"site-1": {1: 0.5, 2: 0.625, 3: 0.75}, "site-2": {1: 0.5, 3: 0.125}}
AUROC = (("site-1", 0.75, 0.5), ("site-2", 0.5, 0.625), ("site-3", 0.25, 0.25))
LEARNED = {"algorithm": "apfl", "apfl_alpha_rate": 0.25}


@pytest.fixture
def personal(make_run: Callable[..., Path]) -> Callable[..., Path]:
    """Writes a run of personal models whose sites keep `ALPHAS`; two of three have trained."""

    def make(**federation: Any) -> Path:
        folder = make_run(private=False, arms=("federated",), federation=federation)
        arm = ArmFolder(folder / "arms" / "federated")
        rounds = arm.read_rounds()
        for record in rounds:
            record.global_metrics = record.metrics
            for site, own, shared in AUROC:
                record.sites[site].metrics = {"auroc": own}
                record.sites[site].global_metrics = {"auroc": shared}
        arm.rewrite_rounds(rounds)
        study = load_run(folder).study
        for site, by_round in ALPHAS.items() if "apfl_alpha_rate" in federation else ():
            state = arm.folder / "sites" / site / "state"
            parts = OwnParts(state, arm.read_plan().run, study.digest())
            for number, alpha in by_round.items():
                parts.keep(number, {"v": np.zeros(2)}, alpha)
            # A round that the server never completed.
            parts.keep(4, {"v": np.zeros(2)}, 0.875)
        return folder

    return make


def test_alpha_is_shown_by_site_as_the_sites_kept_it(
    personal: Callable[..., Path], read_page: Callable[[Path], Any]
) -> None:
    folder = personal(**LEARNED)
    page = read_page(write_report(folder))
    heads = ["Site", "alpha at the end", "AUROC own model", "AUROC global model"]
    assert page.row("sites", "Site") != heads  # the table of all sites is first
    [found] = [i for i, row in enumerate(page.rows["sites"]) if row[:4] == heads]
    assert page.rows["sites"][found + 1 : found + 4] == [
        ["site-1", "0.750", "0.750", "0.500", "+0.250"],
        ["site-2", "0.125", "0.500", "0.625", "-0.125"],
        ["site-3", ABSENT, "0.250", "0.250", "+0.000"],
    ]
    assert "It never leaves a site: this page reads it from the simulated sites'" in page.text
    drawn = (folder / "figures" / "alphas.svg").read_text()
    assert "site-1 0.75" in drawn
    assert "site-2 0.12" in drawn
    assert "site-3" not in drawn
    assert "| site-2 | 0.125 |" in (folder / "personal.md").read_text()


def test_alphas_are_kept_by_round_as_a_table_for_programs(personal: Callable[..., Path]) -> None:
    folder = personal(**LEARNED)
    write_report(folder)
    [header, *lines] = csv.reader((folder / "personal.csv").read_text().splitlines())
    assert header == ["site", "round", "alpha", "auroc own", "auroc global"]
    assert len(lines) == 9
    found: dict[str, dict[int, float]] = {}
    for site, number, alpha, own, shared in lines:
        assert (site, float(own), float(shared)) in AUROC
        if alpha:
            found.setdefault(site, {})[int(number)] = float(alpha)
    assert found == ALPHAS


def test_alphas_stand_beside_those_of_other_runs_where_any_were_learned(
    personal: Callable[..., Path], make_run: Callable[..., Path], tmp_path: Path
) -> None:
    plain, learned = make_run("plain", arms=("federated",)), personal(**LEARNED)
    both = compare_runs([plain, learned], tmp_path / "both")
    # (0.75 + 0.125) / 2: the third site has not trained.
    assert [row[both.columns.index("Learned alpha")] for row in both.rows] == [ABSENT, "0.438"]
    lines = csv.DictReader(both.csv.read_text().splitlines())
    assert [line["alpha"] for line in lines] == ["", "0.4375"]
    assert "no site sends it" in both.html.read_text()
    neither = compare_runs([plain, plain], tmp_path / "neither")
    assert "Learned alpha" not in neither.columns
    assert "alpha" not in neither.csv.read_text()


@pytest.mark.parametrize(
    ("federation", "said"),
    [({"algorithm": "ditto"}, ""), ({"algorithm": "apfl"}, "0.5 at every site")],
)
def test_without_a_learned_alpha_the_table_has_none(
    personal: Callable[..., Path], federation: dict[str, Any], said: str
) -> None:
    folder = personal(**federation)
    page = write_report(folder).read_text()
    assert "Each site's own model and the global one" in page.replace("&#39;", "'")
    assert said in page
    assert "alpha at the end" not in page
    assert 'id="figure-alphas"' not in page
    assert personal_csv(load_run(folder)).splitlines()[1] == "site-1,1,,0.75,0.5"


def test_a_coordinator_s_page_says_that_alpha_stays_at_the_sites(
    personal: Callable[..., Path],
) -> None:
    folder = personal(**LEARNED)
    (folder / "simulation.json").rename(folder / "queue.json")
    (folder / "arms" / "federated" / "sites").rename(folder / "elsewhere")
    page = write_report(folder).read_text()
    assert "alpha at the end" not in page
    assert "medfed explain --site site.toml" in page
    assert "alpha, which it learns for its own model and tells nobody" in page


def test_a_plain_run_has_no_personal_models(finished_run: Path) -> None:
    assert not personal_table(load_run(finished_run))
    assert not (finished_run / "personal.csv").exists()
