"""What pages say of hostile sites: what they do under DP, and how much they reach in a sweep."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from medfed.common.files import write_json
from medfed.common.study.failures import FailuresSection
from medfed.simulations.attack_success import ATTACKS_FILE
from medfed.simulations.reporting.failures import failures_statement
from medfed.simulations.reporting.run_data import load_run
from medfed.simulations.reporting.sweep_data import CellRuns, SweepData
from medfed.simulations.reporting.sweep_tables import cells_table, runs_csv
from medfed.simulations.reporting.tables import ABSENT
from medfed.simulations.sweep import Cell


@pytest.mark.parametrize(
    ("private", "kind", "said"),
    [(True, "label_flip", True), (False, "label_flip", False), (True, "sign_flip", False)],
)
def test_page_says_that_poisoned_sites_add_noise_where_they_do(
    make_run: Callable[..., Path], private: bool, kind: str, said: bool
) -> None:
    run = load_run(make_run(private=private, arms=()))
    assert run.study.simulation is not None
    failures = FailuresSection.model_validate({"poisoned": {"site-1": kind}})
    simulation = run.study.simulation.model_copy(update={"failures": failures})
    study = run.study.model_copy(update={"simulation": simulation})
    text = " ".join(failures_statement(replace(run, study=study)))
    assert "site-1" in text
    assert ("clip and add noise as all do" in text) == said


def test_page_says_how_strong_an_attack_is_and_which_labels_are_wrong(
    make_run: Callable[..., Path],
) -> None:
    run = load_run(make_run(private=False, arms=()))
    assert failures_statement(run) == ()
    assert run.study.simulation is not None
    table = run.study.simulation.model_dump()
    table["failures"]["poisoned"] = {"site-1": "sign_flip", "site-2": "noise"}
    table["failures"] |= {"strength": 2.5, "first_round": {"site-2": 4, "site-3": 3}}
    table["partition"]["noise"] = {"rate": 0.3, "sites": ["site-2"], "pairs": {"nodule": "normal"}}
    simulation = type(run.study.simulation).model_validate(table)
    lines = failures_statement(
        replace(run, study=run.study.model_copy(update={"simulation": simulation}))
    )
    assert lines == (
        "site-2 answers in no round.",  # the run has three
        "site-3 answers from round 3 on.",
        "A round without an answer is counted as failed (dropped out) in Participation.",
        "site-1 sends its update times -2.5.",
        "site-2 sends noise in place of its update, 2.5 times as long.",
        "Labels of a training patient are wrong with probability 0.3 at site-2, in all arms: "
        "nodule is called normal. Held-out labels are right.",
    )


def test_a_sweep_has_the_success_of_attacks_beside_mere_mistakes(
    make_run: Callable[..., Path],
) -> None:
    folders = [make_run(name, arms=("federated",)) for name in ("a", "b", "clean")]
    for folder, success in zip(folders[:2], (0.75, 0.25), strict=True):
        facts = {"images": 8, "success": success, "without_trigger": 0.125}
        write_json(folder / ATTACKS_FILE, {"federated": {"backdoor": facts}})
    first, second, clean = map(load_run, folders)
    cells = (
        CellRuns(Cell("c001", {"boost": 3}), (first, second)),
        CellRuns(Cell("c002", {"boost": 1}), (clean, None)),
    )
    sweep = SweepData(first.folder, first.study, (1, 2), cells)
    table = cells_table(sweep)
    shown = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [row["Backdoor success"] for row in shown] == ["0.500 ± 0.354", ABSENT]
    assert [row["Without trigger"] for row in shown] == ["0.125 ± 0.000", ABSENT]
    assert "Label flip success" not in table.columns
    lines = list(csv.DictReader(runs_csv(sweep).splitlines()))
    assert [line["backdoor_success"] for line in lines] == ["0.75", "0.25", ""]
