"""`medfed privacy`: the numbers, everything that defines them, and refusals with exit code 2."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from medfed.cli.privacy import privacy_app
from medfed.common.accounting import GaussianEvent, epsilon, renyi_epsilon

BASE = ["--noise-multiplier", "1.0", "--sample-rate", "0.03125", "--steps", "960"]
DELTA = ["--delta", "1e-4"]


def run(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(privacy_app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    table: dict[str, Any] = json.loads(result.stdout)
    return table


def test_epsilon_states_all_that_defines_it() -> None:
    table = run("epsilon", *BASE, *DELTA)
    assert table["epsilon"] == pytest.approx(5.400, abs=1e-3)
    assert table == {
        "epsilon": table["epsilon"],
        "delta": 1e-4,
        "unit": "patient",
        "neighbouring_relation": "add or remove one patient with all their images",
        "sampling": "patient",
        "images_per_patient": 4,
        "mechanism": "Poisson-sampled Gaussian",
        "noise_multiplier": 1.0,
        "sample_rate": 0.03125,
        "steps": 960,
        "accountant": "pld",
        "bound": "upper",
    }


def test_epsilon_of_a_patient_depends_on_images_only_when_images_are_drawn() -> None:
    def stated(sampling: str, images: str) -> float:
        table = run(
            "epsilon", *BASE, *DELTA, "--sampling", sampling, "--images-per-patient", images
        )
        assert table["unit"] == "patient"
        assert table["images_per_patient"] == int(images)
        return float(table["epsilon"])

    assert stated("patient", "1") == stated("patient", "8") == stated("record", "1")
    expected = epsilon([GaussianEvent(1.0, 1 / 32, 960, records_per_unit=3)], 1e-4)
    assert stated("record", "3") == expected > 2 * stated("record", "1")


def test_epsilon_says_whom_it_covers() -> None:
    for unit, covered in [
        ("record", "one image"),
        ("patient", "one patient with all their images"),
        ("site", "one site with all its patients"),
    ]:
        table = run("epsilon", *BASE, *DELTA, "--unit", unit)
        assert table["neighbouring_relation"] == f"add or remove {covered}"
        assert table["sampling"] == unit
        text = CliRunner().invoke(privacy_app, ["epsilon", *BASE, *DELTA, "--unit", unit]).stdout
        assert covered in text
        assert "5.4008" in text  # rounded up: 5.40076


def test_epsilon_by_other_accountants_lies_above() -> None:
    pld, prv, rdp = (
        run("epsilon", *BASE, *DELTA, "--accountant", name)["epsilon"]
        for name in ("pld", "prv", "rdp")
    )
    assert pld < prv < 1.01 * pld
    assert rdp == renyi_epsilon([GaussianEvent(1.0, 1 / 32, 960)], 1e-4)
    assert 1.05 * pld < rdp


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--unit", "record", "--sampling", "patient"], "twice"),
        (["--unit", "site", "--sampling", "record"], "follows the unit"),
        (["--unit", "site", "--images-per-patient", "4"], "images-per-patient"),
        (["--sampling", "record", "--accountant", "rdp"], "pld"),
        (["--sampling", "record", "--accountant", "prv"], "pld"),
        (["--sample-rate", "1", "--accountant", "prv"], "pld"),
        (["--sample-rate", "0.5", "--steps", "100000", "--accountant", "prv"], "memory"),
        (["--sample-rate", "0"], "sample_rate"),
        (["--noise-multiplier", "0"], "noise_multiplier"),
        (["--noise-multiplier", "nan"], "noise_multiplier"),
        (["--delta", "0"], "delta"),
        (["--delta", "1"], "delta"),
        (["--steps", "0"], "steps"),
    ],
)
def test_epsilon_refuses_what_makes_no_sense(arguments: list[str], why: str) -> None:
    result = CliRunner().invoke(privacy_app, ["epsilon", *BASE, *DELTA, *arguments])
    assert result.exit_code == 2
    assert why in result.output


def test_epsilon_asks_for_delta() -> None:
    result = CliRunner().invoke(privacy_app, ["epsilon", *BASE])
    assert result.exit_code == 2
    assert "--delta" in result.output


@pytest.mark.parametrize(
    ("accountant", "target"),
    [("pld", 0.7), ("pld", 8.0), ("rdp", 0.7), ("rdp", 8.0), ("prv", 0.7)],
)
def test_noise_is_the_smallest_that_keeps_within_epsilon(accountant: str, target: float) -> None:
    asked = ["--sample-rate", "0.03125", "--steps", "200", *DELTA, "--accountant", accountant]
    table = run("noise", "--epsilon", str(target), *asked)
    noise = table["noise_multiplier"]
    assert table["target_epsilon"] == target
    again = run("epsilon", "--noise-multiplier", str(noise), *asked)
    assert again["epsilon"] == table["epsilon"] <= target
    less = run("epsilon", "--noise-multiplier", f"{noise - 1e-4:.4f}", *asked)
    assert less["epsilon"] > target


def test_noise_for_a_patient_whose_images_are_drawn() -> None:
    asked = ["--epsilon", "4", "--sample-rate", "0.05", "--steps", "20", *DELTA]
    images = ["--sampling", "record", "--images-per-patient", "3"]
    assert (
        run("noise", *asked, *images)["noise_multiplier"] > run("noise", *asked)["noise_multiplier"]
    )


@pytest.mark.parametrize("target", ["0.001", "0", "-1", "nan"])
def test_noise_refuses_an_epsilon_out_of_reach(target: str) -> None:
    asked = ["--sample-rate", "1", "--steps", "100000", "--delta", "1e-6"]
    result = CliRunner().invoke(privacy_app, ["noise", "--epsilon", target, *asked])
    assert result.exit_code == 2
    assert "epsilon" in result.output


STUDY = """
[study]
name = "planned"
[task]
classes = ["a", "b"]
[training]
rounds = 6
local_steps = 5
"""
SITE = """
name = "{name}"
state = "state-{name}"
[data]
stores = ["store"]
[policy]
target_delta = 1e-4
max_epsilon = {budget}
"""


def test_plan_states_every_data_set_and_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(STUDY)
    for name, budget in (("ct", "8.0"), ("xray", "2.5")):
        (tmp_path / f"{name}.toml").write_text(SITE.format(name=name, budget=budget))
    before = sorted(tmp_path.iterdir())
    asked = ["plan", str(tmp_path / "study.toml")]
    for name in ("ct", "xray"):
        asked += ["--site", str(tmp_path / f"{name}.toml")]
    table = run(*asked)
    assert sorted(tmp_path.iterdir()) == before
    ct, xray = table["data_sets"]
    assert (ct["site"], ct["stops_at"], ct["affordable_rounds"]) == ("ct", None, 6)
    assert ct["alone"] == xray["alone"] == epsilon([GaussianEvent(1.0, 0.1, 30)], 1e-4)
    assert xray["stops_at"] == xray["affordable_rounds"] + 1
    text = CliRunner().invoke(privacy_app, asked).stdout
    assert "lasts for all 6 rounds" in " ".join(text.split())
    assert f"refuses round {xray['stops_at']} of 6" in " ".join(text.split())


def test_plan_states_a_refusal_and_no_epsilon_without_privacy(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(STUDY)
    (tmp_path / "site.toml").write_text(SITE.format(name="ct", budget="8.0"))
    asked = ["plan", str(tmp_path / "study.toml"), "--site", str(tmp_path / "site.toml")]
    asked += ["--set", "privacy.unit=none"]
    (plan,) = run(*asked)["data_sets"]
    assert plan["alone"] is None
    assert plan["refusal"]["reason"] == "policy"
    assert "privacy.unit" in plan["refusal"]["detail"]
    assert "would refuse at once" in CliRunner().invoke(privacy_app, asked).stdout
