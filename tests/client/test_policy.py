"""The gate: a no writes nothing, a yes is written first, the budget is never passed."""

from dataclasses import replace
from pathlib import Path

import pytest

from medfed.client.policy import charge, check_study, spend_of_round
from medfed.client.site import PolicySection, SiteConfig
from medfed.common.accounting import GaussianEvent, epsilon
from medfed.common.errors import RefusalReason, SiteRefusal
from medfed.common.ledger import Ledger, Spend
from medfed.common.study import StudyConfig

DELTA = 1e-4


def make_study(**privacy: object) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "study": {"name": "policy"},
            "task": {"classes": ["a", "b"]},
            "training": {"local_steps": 5},
            "privacy": privacy,
        }
    )


def make_site(folder: Path, **policy: object) -> SiteConfig:
    return SiteConfig.model_validate(
        {
            "name": "one",
            "data": {"stores": ["store"]},
            "policy": {"target_delta": DELTA, **policy},
            "folder": folder,
        }
    )


def make_spend(site: SiteConfig, round_number: int = 1, **privacy: object) -> Spend:
    return spend_of_round(
        make_study(**privacy),
        site.policy,
        run="run",
        round_number=round_number,
        release=f"release of round {round_number}",
    )


def spends_of(site: SiteConfig) -> list[Spend]:
    return [entry.spend for entry in Ledger(site.state_folder).entries()]


def assert_refused(site: SiteConfig, spend: Spend, reason: RefusalReason) -> None:
    """The refusal has its reason, and the state folder is as it was, byte for byte."""
    before = {path: path.read_bytes() for path in site.state_folder.glob("*") if path.is_file()}
    with pytest.raises(SiteRefusal) as refusal:
        charge(site, spend)
    assert refusal.value.reason is reason
    after = {path: path.read_bytes() for path in site.state_folder.glob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize(
    ("asked", "required", "allowed"),
    [
        ("patient", "patient", True),
        ("patient", "record", True),
        ("patient", "none", True),
        ("record", "patient", False),
        ("record", "record", True),
        ("record", "none", True),
        ("none", "patient", False),
        ("none", "record", False),
        ("none", "none", True),
    ],
)
def test_policy_refuses_a_weaker_unit(asked: str, required: str, allowed: bool) -> None:
    policy = PolicySection.model_validate({"unit": required})
    if allowed:
        check_study(make_study(unit=asked), policy)
        return
    with pytest.raises(SiteRefusal) as refusal:
        check_study(make_study(unit=asked), policy)
    assert refusal.value.reason is RefusalReason.POLICY


def test_policy_refuses_more_images_of_a_patient_than_allowed() -> None:
    policy = PolicySection(max_images_per_patient=3)
    check_study(make_study(images_per_patient=3), policy)
    with pytest.raises(SiteRefusal) as refusal:
        check_study(make_study(images_per_patient=4), policy)
    assert refusal.value.reason is RefusalReason.POLICY


def test_spend_states_the_round_as_the_study_has_it(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    privacy = {
        "noise_multiplier": 1.3,
        "sample_rate": 0.2,
        "max_grad_norm": 0.7,
        "images_per_patient": 2,
    }
    assert make_spend(site, 3, **privacy) == Spend(
        release="release of round 3",
        study=make_study(**privacy).digest(),
        run="run",
        round_number=3,
        unit="patient",
        steps=5,
        noise="secure",
        **privacy,  # type: ignore[arg-type]
    )
    seeded = make_site(tmp_path, allow_seeded_noise=True)
    assert make_spend(seeded).noise == "seeded"


def test_charge_states_epsilon_after_the_round_and_stops_at_the_budget(tmp_path: Path) -> None:
    def after(rounds: int) -> float:
        return epsilon([GaussianEvent(1.0, 0.1, 5 * rounds)], DELTA)

    # Exactly the budget is within it.
    site = make_site(tmp_path, max_epsilon=after(3))
    for number in (1, 2, 3):
        assert charge(site, make_spend(site, number)) == after(number)
    assert len(spends_of(site)) == 3
    assert_refused(site, make_spend(site, 4), RefusalReason.BUDGET)
    # Another study, run or retry draws on the same budget.
    assert_refused(
        site, replace(make_spend(site, 1), run="other", study="0" * 64), RefusalReason.BUDGET
    )
    # A refusal is not for ever: a cheaper round may still fit a larger budget.
    larger = make_site(tmp_path, max_epsilon=after(4))
    assert charge(larger, make_spend(larger, 4)) == after(4)


def test_charge_refuses_a_first_round_that_is_too_dear_and_writes_nothing(tmp_path: Path) -> None:
    site = make_site(tmp_path, max_epsilon=0.5)
    with pytest.raises(SiteRefusal) as refusal:
        charge(site, make_spend(site))
    assert refusal.value.reason is RefusalReason.BUDGET
    assert not (site.state_folder / "ledger.jsonl").exists()


def test_charge_composes_studies_of_different_noise(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    charge(site, make_spend(site, 1, noise_multiplier=1.0))
    both = charge(site, make_spend(site, 2, noise_multiplier=2.0, sample_rate=0.2))
    assert both == epsilon([GaussianEvent(1.0, 0.1, 5), GaussianEvent(2.0, 0.2, 5)], DELTA)


def test_charge_counts_a_seeded_release_once(tmp_path: Path) -> None:
    site = make_site(tmp_path, allow_seeded_noise=True)
    first = charge(site, make_spend(site))
    assert charge(site, make_spend(site)) == first
    assert len(spends_of(site)) == 1
    # The same name with anything else different is another release.
    again = charge(site, replace(make_spend(site), release="from other weights"))
    assert again > first
    assert len(spends_of(site)) == 2


def test_charge_answers_a_seeded_release_again_when_the_budget_is_spent(tmp_path: Path) -> None:
    once = epsilon([GaussianEvent(1.0, 0.1, 5)], DELTA)
    site = make_site(tmp_path, allow_seeded_noise=True, max_epsilon=once)
    assert charge(site, make_spend(site)) == once
    assert charge(site, make_spend(site)) == once
    assert_refused(site, make_spend(site, 2), RefusalReason.BUDGET)


def test_charge_counts_a_secure_release_every_time(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    first = charge(site, make_spend(site))
    assert charge(site, make_spend(site)) > first
    assert len(spends_of(site)) == 2


def test_charge_does_not_take_a_secure_release_for_a_seeded_one(tmp_path: Path) -> None:
    secure = make_site(tmp_path)
    charge(secure, make_spend(secure))
    seeded = make_site(tmp_path, allow_seeded_noise=True)
    charge(seeded, make_spend(seeded))
    charge(secure, make_spend(secure))
    assert [spend.noise for spend in spends_of(secure)] == ["secure", "seeded", "secure"]


def test_charge_refuses_to_state_a_patients_epsilon_from_spending_per_record(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path, unit="record")
    charge(site, make_spend(site, 1, unit="record"))
    assert_refused(site, make_spend(site, 2, unit="patient"), RefusalReason.POLICY)
    charge(site, make_spend(site, 2, unit="record"))


def test_charge_counts_spending_per_patient_in_a_records_epsilon(tmp_path: Path) -> None:
    site = make_site(tmp_path, unit="record")
    charge(site, make_spend(site, 1, unit="patient"))
    assert charge(site, make_spend(site, 2, unit="record")) == epsilon(
        [GaussianEvent(1.0, 0.1, 10)], DELTA
    )


@pytest.mark.parametrize("damage", ["edited", "key lost"])
def test_charge_refuses_when_the_ledger_cannot_be_trusted(tmp_path: Path, damage: str) -> None:
    site = make_site(tmp_path)
    charge(site, make_spend(site, 1))
    ledger = site.state_folder / "ledger.jsonl"
    if damage == "edited":
        ledger.write_bytes(ledger.read_bytes().replace(b'"steps": 5', b'"steps": 1'))
    else:
        (site.state_folder / "ledger.key").unlink()
    assert_refused(site, make_spend(site, 2), RefusalReason.LEDGER)


def test_charge_is_on_disk_before_it_returns(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    charge(site, make_spend(site))
    # Read by another object, as a process started after a crash would.
    assert spends_of(make_site(tmp_path)) == [make_spend(site)]
