"""Data cards on the page: what was said, with its error; what was withheld; what is damaged."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfed.common.errors import RunError
from medfed.common.files import write_json
from medfed.common.harmonisation import quantiles
from medfed.common.statistics import quantities, standard_errors, to_lists
from medfed.common.study import StudyConfig
from medfed.common.study_file import load_study, study_to_toml
from medfed.server.records import STATISTICS_FILE
from medfed.simulations.reporting.report import write_report


def describe(run: Path, *, noise: float | None, harmonise: bool = False) -> StudyConfig:
    """Have three sites of a run describe their data: one whole, one in part, one not at all."""
    table = load_study(run / "study.toml").model_dump()
    table["statistics"] = {"collect": True, "bins": 16, "noise_multiplier": noise}
    table["data"]["harmonise"] = "histogram" if harmonise else "none"
    study = StudyConfig.model_validate(table)
    (run / "study.toml").write_text(study_to_toml(study))
    rng = np.random.default_rng(0)
    cards: dict[str, Any] = {}
    for site in ("site-1", "site-2"):
        values = {q.name: np.floor(rng.uniform(20, 90, q.shape)) for q in quantities(study)}
        mass = rng.gamma(2.0, 1.0, (1, 16))
        values["intensities"] = mass / mass.sum() * (300 if noise else 1)
        if noise is None and site == "site-2":
            values["classes"][:2] = np.nan
            values["images"][:] = np.nan
        cards[site] = {
            "status": "ok", "bytes": 900, "noise": "secure" if noise else "none",
            "min_count": 0 if noise else 12, "epsilon": 1.25 if noise else None,
            "values": to_lists(values),
        }  # fmt: skip
    cards["site-3"] = {"status": "refused", "bytes": 90, "reason": "policy"}
    functions = [quantiles(np.array(cards[s]["values"]["intensities"][0])) for s in list(cards)[:2]]
    reference = np.mean([f for f in functions if f is not None], axis=0)
    table = {"sites": cards, "reference": [reference.tolist()] if harmonise else []}
    write_json(run / "arms" / "federated" / STATISTICS_FILE, table)
    return study


def test_cards_show_what_was_said_and_withheld(make_run: Any, read_page: Any) -> None:
    run = make_run(private=False, arms=("federated",))
    describe(run, noise=None)
    page = read_page(write_report(run))
    assert "2 of 3 sites described their training data" in page.text
    assert "fewer than 10 patients" in page.text
    assert "withheld below 12 patients; no noise" in page.text
    assert "withheld" in page.row("cards", "site-2")[3]
    assert page.row("cards", "site-3")[1:3] == ["refused", "\u2013"]
    figures = {path.stem for path in (run / "figures").glob("*.svg")}
    assert {"cards", "card-site-1", "card-site-2"} <= figures
    assert "card-site-3" not in figures
    assert "Grey levels were harmonised" not in page.text


def test_cards_state_the_standard_error_of_noise(make_run: Any, read_page: Any) -> None:
    run = make_run(arms=("federated",))
    study = describe(run, noise=2.0, harmonise=True)
    page = read_page(write_report(run))
    errors = standard_errors(study)
    assert f"± {errors['patients']:.0f}" in page.row("cards", "site-1")[2]
    assert page.row("cards", "site-1")[5] == "1.2500"
    assert "one Gaussian release (multiplier 2)" in page.text
    assert "Grey levels were harmonised" in page.text


def test_a_run_that_asked_for_none_has_no_cards(make_run: Any, read_page: Any) -> None:
    run = make_run(arms=("federated",))
    page = read_page(write_report(run))
    assert "Data cards" not in page.text
    assert not list((run / "figures").glob("card*"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda table: table.pop("reference"),
        lambda table: table["sites"]["site-1"].pop("status"),
        lambda table: table["sites"]["site-1"]["values"].pop("classes"),
        lambda table: table["sites"]["site-1"]["values"].update(patients=[1, 2]),
        lambda table: table["sites"]["site-1"]["values"].update(patients=["many"]),
        lambda table: table.update(sites=[]),
    ],
)
def test_damaged_statistics_are_named(make_run: Any, damage: Any) -> None:
    from medfed.common.files import read_json

    run = make_run(private=False, arms=("federated",))
    describe(run, noise=None)
    path = run / "arms" / "federated" / STATISTICS_FILE
    table = read_json(path)
    damage(table)
    write_json(path, table)
    with pytest.raises(RunError, match=r"statistics\.json is damaged"):
        write_report(run)
