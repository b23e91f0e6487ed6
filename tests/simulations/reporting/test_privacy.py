"""What the page says of privacy, on real runs: noise of the server, of all sites, and masks."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medfed.common.accounting import GaussianEvent, epsilon
from medfed.common.files import write_json
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study
from medfed.server.records import ArmFolder
from medfed.simulations.reporting.compare import compare_runs
from medfed.simulations.reporting.headline import headline, privacy_tile
from medfed.simulations.reporting.model_facts import model_rows
from medfed.simulations.reporting.privacy import (
    ledger_introduction,
    privacy_facts,
    privacy_statement,
)
from medfed.simulations.reporting.report import write_report
from medfed.simulations.reporting.results import baseline_notes
from medfed.simulations.reporting.run_data import load_run
from medfed.simulations.reporting.spending import SERVER, budget, curves, ledger_checks
from medfed.simulations.reporting.tables import ABSENT
from medfed.simulations.study import Options, run_study, start_study

MakeRun = Callable[..., Path]
BASE: dict[str, Any] = {
    "task": {"classes": ["normal", "nodule", "effusion", "cardiomegaly"]},
    "data": {"image_size": 16},
    "training": {"rounds": 2, "local_steps": 1, "batch_size": 4},
    "evaluation": {"every": 2},
    "federation": {"min_sites": 2},
}
SITE = {"unit": "site", "noise_multiplier": 2.0, "target_delta": 1e-3}
ALL_SITES = {
    "enabled": True,
    "distributed_noise": "discrete_gaussian",
    "threshold": 0.9,
    "honest_sites": 0.75,
}


def study(name: str, arms: tuple[str, ...] = ("federated",), **sections: Any) -> StudyConfig:
    simulation = {
        "dataset": "phantom",
        "arms": list(arms),
        "max_epsilon": 90.0,
        "phantom": {"num_patients": 60},
        "partition": {"num_sites": 4},
    }
    return parse_study({"study": {"name": name}, **BASE, "simulation": simulation, **sections}, "t")


STUDIES = {
    "server": study(
        "server",
        ("federated", "pooled"),
        federation={"min_sites": 1, "fraction": 0.5, "ema_decay": 0.5},
        privacy={
            **SITE,
            "site": {"expected_sites": 4, "max_update_norm": 0.3, "adaptive_quantile": 0.5,
                     "count_noise_multiplier": 4.0, "max_epsilon": 7.0},
        },
    ),
    "together": study(
        "together",
        privacy={**SITE, "site": {"expected_sites": 4, "max_update_norm": 0.3}},
        secure_aggregation=ALL_SITES,
    ),
    "masked": study("masked", privacy={"unit": "none"}, secure_aggregation={"enabled": True}),
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One finished run of each study; for tests that only read."""
    folder = tmp_path_factory.mktemp("privacy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDFED_CACHE", str(folder / "cache"))
        for name, one in STUDIES.items():
            start_study(one, folder / name, None, Options(workers=1))
            run_study(folder / name, Options(workers=1))
    return {name: folder / name for name in STUDIES}


def test_noise_of_the_server_is_told_from_noise_of_sites(runs: dict[str, Path]) -> None:
    run = load_run(runs["server"])
    text, facts = " ".join(privacy_statement(run)), dict(privacy_facts(run))
    spent = epsilon([GaussianEvent(2.0, 0.5, 2)], 1e-3)
    assert "Unit of privacy: site. One ε covers a whole site" in text
    assert f"it has come to {spent:.2f} at δ = 1e-3" in text
    assert "The server adds the noise" in text
    assert "the draw of each round's sites being secret" in text
    assert "this simulation is not private itself" in text
    for wrong in ("one image", "without noise", "Secure aggregation", "None"):
        assert wrong not in text
    assert facts["Noise is added by"].startswith("the server")
    assert "2 times the bound is charged" in facts["Noise multiplier"]
    assert facts["Bound on an update"].startswith("adaptive, from 0.3 ")
    last = ArmFolder(runs["server"] / "arms" / "federated").read_rounds()[-1]
    assert last.update_bound is not None
    assert last.update_bound != 0.3
    assert facts["Bound on an update"].endswith(f"{last.update_bound:.4g} in round 2")
    assert facts["Sampling"] == "each round, each site is drawn alone with probability 0.5"
    assert facts["Divisor of the sum"].startswith("4 sites expected")
    assert facts["Budget"] == "ε = 7"
    assert privacy_tile(run).note == "per site, noise of the server, seeded noise"
    first = epsilon([GaussianEvent(2.0, 0.5, 1)], 1e-3)
    assert curves(run) == {"any site": [(1, pytest.approx(first)), (2, pytest.approx(spent))]}


def test_baselines_of_site_level_privacy_are_said_to_have_none(runs: dict[str, Path]) -> None:
    run = load_run(runs["server"])
    (note,) = baseline_notes(run)
    assert note.startswith("Pooled: Without differential privacy")
    assert "Trained on all data in one place, without privacy: " in headline(run).sentence
    (check,) = ledger_checks(run, run.arms["pooled"])
    assert (check.verdict, check.recomputed) == ("without privacy", None)


def test_ledgers_of_server_and_sites_are_recomputed(runs: dict[str, Path]) -> None:
    for name in ("server", "together"):
        run = load_run(runs[name])
        checks = ledger_checks(run, run.federated)
        assert checks[0].site == SERVER
        assert all(check.agrees for check in checks)
        assert headline(run).notices == ()
    assert "vouches only for its taking part" in ledger_introduction(load_run(runs["server"]))


def test_a_server_ledger_that_holds_less_is_found(runs: dict[str, Path]) -> None:
    run = load_run(runs["server"])
    assert run.federated is not None
    assert run.federated.server_ledger is not None
    facts = replace(run.federated.server_ledger, spends=run.federated.server_ledger.spends[:1])
    arm = replace(run.federated, server_ledger=facts)
    check = ledger_checks(run, arm)[0]
    assert check.site == SERVER
    assert "the ledger holds less" in check.verdict
    less = replace(run, arms={**run.arms, "federated": arm})
    assert any("ε from the ledger does not agree" in line for line in headline(less).notices)


def test_noise_of_all_sites_is_said_to_hold_against_the_server(runs: dict[str, Path]) -> None:
    run = load_run(runs["together"])
    text, facts = " ".join(privacy_statement(run)), dict(privacy_facts(run))
    spent = epsilon([GaussianEvent(2.0, 1.0, 2, mechanism="discrete_gaussian")], 1e-3)
    assert f"it has come to {spent:.2f} at δ = 1e-3" in text
    assert "All sites together add the noise" in text
    assert "It counts on 75\u202f% of the sites" in text
    # 0.9 of 4 sites, rounded up.
    assert "the sum of the updates of at least 4 of 4 sites" in text
    assert "no site's update alone" in text
    assert "The server adds the noise" not in text
    assert facts["Noise is added by"].startswith("all sites together")
    assert facts["Bound on an update"] == "0.3 (L2 norm of the whole update), fixed"
    assert facts["Sampling"] == "every site is asked in every round"
    assert budget(run) == 90.0
    assert privacy_tile(run).note == "per site, noise of all sites, seeded noise"


def test_masks_without_noise_are_no_privacy(runs: dict[str, Path], read_page: Any) -> None:
    run = load_run(runs["masked"])
    text = " ".join(privacy_statement(run))
    assert "No differential privacy: no noise is in the sums" in text
    # Two thirds of 4 sites, rounded up.
    assert "the sum of the updates of at least 3 of 4 sites" in text
    assert headline(run).notices == ()
    assert privacy_tile(run).note == "no differential privacy; secure aggregation"
    page = read_page(write_report(runs["masked"]))
    assert page.rows["privacy"][0] == ["Ledger of", "Entries", "Verdict"]
    assert page.row("privacy", "site-1") == ["site-1", "2", "without privacy"]
    assert "under masks" in page.text


def test_page_of_site_level_privacy(runs: dict[str, Path], read_page: Any) -> None:
    page = read_page(write_report(runs["server"]))
    first, second = ArmFolder(runs["server"] / "arms" / "federated").read_rounds()
    assert page.row("privacy", "1") == ["1", f"{first.site_epsilon:.4f}", "0.3000"]
    assert page.row("privacy", "Server")[3:] == [*[f"{second.site_epsilon:.4f}"] * 2, "agrees"]
    assert "What is published is the exponential moving average" in page.text
    assert second.average_sha256 in page.text
    assert "DP-SGD" not in page.text
    privacy = page.rows["privacy"]
    assert not {"inf", "nan", "None"} & {cell for row in privacy for cell in row}
    assert (runs["server"] / "figures" / "epsilon.svg").exists()


def test_compare_states_unit_noise_and_masks(runs: dict[str, Path], tmp_path: Path) -> None:
    comparison = compare_runs([runs["server"], runs["together"], runs["masked"]], tmp_path)
    privacy = comparison.columns.index("Privacy")
    rounds = (
        GaussianEvent(2.0, 0.5, 2),
        GaussianEvent(2.0, 1.0, 2, mechanism="discrete_gaussian"),
    )
    spent = [epsilon([event], 1e-3) for event in rounds]
    assert [row[privacy : privacy + 2] for row in comparison.rows] == [
        ("site, seeded noise", f"{spent[0]:.2f} @ 1e-3"),
        ("site, seeded noise, secure aggregation", f"{spent[1]:.2f} @ 1e-3"),
        ("none, secure aggregation", ABSENT),
    ]
    assert "Pooled: Without differential privacy" in comparison.html.read_text()


def test_automatic_clipping_is_shown(make_run: MakeRun) -> None:
    run = load_run(make_run(arms=("federated",)))
    facts = dict(privacy_facts(run))
    assert facts["Clipping"] == "flat: gradients longer than 1 are cut to it (clipping norm 1)"
    privacy = run.study.privacy.model_copy(update={"clipping": "automatic"})
    changed = replace(run, study=run.study.model_copy(update={"privacy": privacy}))
    assert dict(privacy_facts(changed))["Clipping"].startswith("automatic (AUTO-S)")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({}, "all weights"),
        ({"freeze": "backbone"}, "the last layer; the backbone is frozen"),
        ({"freeze": "weights"}, "(BitFiT)"),
        ({"freeze": ["features.*"]}, "all but what is named features.*"),
        ({"low_rank": 2}, "the last layer; beside each frozen convolution and linear layer a "
                          "product of rank 2 (LoRA)"),
    ],
)  # fmt: skip
def test_what_trains_is_shown(make_run: MakeRun, model: dict[str, Any], expected: str) -> None:
    run = load_run(make_run(arms=(), model={**model, "weight_standardisation": True}))
    rows = dict(model_rows(run))
    assert rows["What trains"].endswith(expected)
    assert "weight standardisation" in rows["Network"]


def test_report_without_figures_that_a_site_keeps_back(make_run: MakeRun, read_page: Any) -> None:
    folder = make_run(arms=("federated",))
    path = folder / "arms" / "federated" / "final_sums.json"
    [group] = json.loads(path.read_text())["groups"]
    kept = {n: own for n, own in group["sums"].items() if n not in ("scores", "calibration")}
    others = {"sites": ["site-1", "site-3"], "sums": group["sums"]}
    write_json(path, {"groups": [{"sites": ["site-2"], "sums": kept}, others]})
    page = read_page(write_report(folder))
    assert (
        "Kept a part of their figures back, and are left out of what follows: site-2" in page.text
    )
    # The images of the two others alone.
    classes = [row for row in page.rows["model"] if row[0] in ("normal", "nodule", "effusion")]
    assert [int(row[1]) for row in classes] == [
        sum(others["sums"]["confusion"][i][1]) for i in range(3)
    ]
