"""The gate: a no writes nothing, a yes is written first, the budget is never passed."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import BaseModel, ValidationError

from medfed.client.policy import (
    charge,
    check_participants,
    check_study,
    spend_of_round,
)
from medfed.client.site import PolicySection, SiteConfig
from medfed.common.accounting import GaussianEvent, epsilon
from medfed.common.errors import RefusalReason, SiteRefusal
from medfed.common.ledger import Ledger, Spend, chain
from medfed.common.study import StudyConfig
from medfed.common.study_file import load_study

DELTA = 1e-4
STUDIES = Path(__file__).parents[2] / "studies"


def make_study(**privacy: object) -> StudyConfig:
    return study_of(privacy=privacy)


def study_of(**sections: Any) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "study": {"name": "policy"},
            "task": {"classes": ["a", "b"]},
            "training": {"local_steps": 5},
            **sections,
        }
    )


PER_SITE: dict[str, Any] = {"unit": "site", "site": {"expected_sites": 3.0}}


def make_site(folder: Path, **policy: object) -> SiteConfig:
    return SiteConfig.model_validate(
        {
            "name": "one",
            "data": {"stores": ["store"]},
            "policy": {"target_delta": DELTA, **policy},
            "folder": folder,
        }
    )


def make_spend(site: SiteConfig, round_number: int = 1, /, **privacy: object) -> Spend:
    return spend_of_round(
        make_study(**privacy),
        site.policy,
        run="run",
        round_number=round_number,
        release=f"release of round {round_number}",
    )


def cost_of(site: SiteConfig, spend: Spend) -> float:
    """Charge a private release; return epsilon after it. The head is that of the ledger."""
    charged = charge(site, spend)
    assert charged.head == Ledger(site.state_folder).entries()[-1].hash
    assert charged.epsilon is not None
    return charged.epsilon


def spends_of(site: SiteConfig) -> list[Spend]:
    return [entry.spend for entry in Ledger(site.state_folder).entries()]


def assert_refused(
    site: SiteConfig, spend: Spend, reason: RefusalReason, fragment: str | None = None
) -> None:
    """The refusal has its reason, and the state folder is as it was, byte for byte."""
    before = {path: path.read_bytes() for path in site.state_folder.glob("*") if path.is_file()}
    with pytest.raises(SiteRefusal, match=fragment) as refusal:
        charge(site, spend)
    assert refusal.value.reason is reason
    after = {path: path.read_bytes() for path in site.state_folder.glob("*") if path.is_file()}
    assert after == before


UNITS = ("none", "site", "record", "patient")


@pytest.mark.parametrize("asked", UNITS)
@pytest.mark.parametrize("required", UNITS)
def test_policy_refuses_a_weaker_unit(asked: str, required: str) -> None:
    policy = PolicySection.model_validate({"unit": required})
    study = make_study(**(PER_SITE if asked == "site" else {"unit": asked}))
    if UNITS.index(asked) >= UNITS.index(required):
        check_study(study, policy)
    else:
        assert_study_refused(study, policy, required)


def assert_study_refused(study: StudyConfig, policy: PolicySection, fragment: str) -> None:
    with pytest.raises(SiteRefusal, match=fragment) as refusal:
        check_study(study, policy)
    assert refusal.value.reason is RefusalReason.POLICY


# For each key: a policy, what a study asks too much, what it may ask at most, and what is said.
REPORT = {"type": "report", "report": {"words_noise_multiplier": 0.5, "vocabulary": "w.txt"}}
LIMITS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    "unit": ({"unit": "record"}, {"privacy": PER_SITE}, {"privacy": {"unit": "record"}}, "record"),
    "max_images_per_patient": (
        {"max_images_per_patient": 3},
        {"privacy": {"images_per_patient": 4}},
        {"privacy": {"images_per_patient": 3}},
        "up to 4 images",
    ),
    "min_noise_multiplier": (
        {"min_noise_multiplier": 0.9},
        {"privacy": {"noise_multiplier": 0.8}},
        {"privacy": {"noise_multiplier": 0.9}},
        "min_noise_multiplier is 0.9",
    ),
    "min_noise_multiplier of words": (
        {"min_noise_multiplier": 0.9},
        {"task": REPORT, "model": {"name": "report_lstm"}},
        {
            "task": {**REPORT, "report": {**REPORT["report"], "words_noise_multiplier": 0.9}},  # type: ignore[dict-item]
            "model": {"name": "report_lstm"},
        },
        "noise_multiplier is 0.5",
    ),
    "tasks": (
        {"tasks": ["classification", "report"]},
        {"task": {"type": "segmentation", "classes": ["a"]}, "model": {"name": "unet"}},
        {},
        "segmentation",
    ),
    "models": ({"models": ["cnn", "vgg16"]}, {"model": {"name": "resnet18"}}, {}, "resnet18"),
    "models of encoders": (
        {"models": ["report_lstm", "cnn"]},
        {"task": REPORT, "model": {"name": "report_lstm", "encoder": "vgg16"}},
        {"task": REPORT, "model": {"name": "report_lstm"}},
        "vgg16",
    ),
    "min_noise_multiplier of statistics": (
        {"min_noise_multiplier": 1.0},
        {"statistics": {"collect": True, "noise_multiplier": 0.9}},
        {"statistics": {"collect": True, "noise_multiplier": 1.0}},
        "noise_multiplier is 0.9",
    ),
    "allow_activations": (
        {"allow_activations": False, "unit": "none"},
        {"privacy": {"unit": "none"}, "federation": {"algorithm": "split"}},
        {"privacy": {"unit": "none"}},
        "activations of every training image",
    ),
    "require_secure_aggregation": (
        {"require_secure_aggregation": True},
        {},
        {"secure_aggregation": {"enabled": True}},
        "secure aggregation",
    ),
    "max_steps_per_round": (
        {"max_steps_per_round": 9},
        {"training": {"local_steps": 10}},
        {"training": {"local_steps": 9}},
        "10 steps",
    ),
    "max_epochs_per_round": (
        {"max_epochs_per_round": 2, "unit": "none"},
        {"training": {"local_epochs": 3}, "privacy": {"unit": "none"}},
        {"training": {"local_epochs": 2}, "privacy": {"unit": "none"}},
        "3 passes",
    ),
    # 128 images of 64 x 64 in evaluation; 16 patients x 4 images, twice each; a batch of 200.
    "max_megapixels": (
        {"max_megapixels": 128 * 64 * 64 / 1e6},
        {"data": {"channels": 2}},
        {},
        "1.04858 million pixels",
    ),
    "max_megapixels of patients": (
        {"max_megapixels": 128 * 64 * 64 / 1e6},
        {"augmentation": {"zoom": 0.1, "multiplicity": 3}, "privacy": {"chunk": 16}},
        {"augmentation": {"zoom": 0.1, "multiplicity": 2}, "privacy": {"chunk": 16}},
        "million pixels",
    ),
    "max_megapixels of batches": (
        {"max_megapixels": 128 * 64 * 64 / 1e6, "unit": "none"},
        {"training": {"local_steps": 1, "batch_size": 129}, "privacy": {"unit": "none"}},
        {"training": {"local_steps": 1, "batch_size": 128}, "privacy": {"unit": "none"}},
        "million pixels",
    ),
    "max_megapixels of guesses": (
        {"max_megapixels": 128 * 64 * 64 / 1e6, "unit": "none"},
        {
            "training": {"local_steps": 1, "batch_size": 64},
            "semi_supervised": {"method": "mean_teacher", "batch_size": 65},
            "privacy": {"unit": "none"},
        },
        {
            "training": {"local_steps": 1, "batch_size": 64},
            "semi_supervised": {"method": "mean_teacher"},
            "privacy": {"unit": "none"},
        },
        "million pixels",
    ),
    # The small network at 64 x 64 (64 channels of 14 x 14 before Dense 128), with 3 outputs.
    "max_parameters": (
        {"max_parameters": 320 + 18_496 + (64 * 14 * 14 + 1) * 128 + 3 * 129},
        {"task": {"classes": ["a", "b", "c"]}},
        {},
        "numbers",
    ),
}


@pytest.mark.parametrize("key", LIMITS)
def test_policy_refuses_a_study_that_asks_more_than_one_key_allows(key: str) -> None:
    policy, too_much, most, fragment = LIMITS[key]
    assert_study_refused(study_of(**too_much), PolicySection.model_validate(policy), fragment)
    check_study(study_of(**most), PolicySection.model_validate(policy))
    # It is that key that refuses.
    check_study(study_of(**too_much), PolicySection(unit="none", allow_activations=True))


def test_every_key_of_the_gate_is_tested() -> None:
    elsewhere = {
        "max_epsilon", "target_delta", "allow_seeded_noise",  # charge, below
        "min_participants",  # check_participants, below
        "release_evaluation", "release_metrics", "min_patients_per_count",  # test_evaluation
        "release_words", "min_patients_per_word",  # test_words
        "release_statistics", "min_statistics_count",  # test_statistics
        "allow_plugins",  # test_plugins
    }  # fmt: skip
    tested = {key.split(" ")[0] for key in LIMITS}
    assert tested | elsewhere == set(PolicySection.model_fields)


def leaves(section: BaseModel, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name), value


def others_than(value: Any) -> list[Any]:
    """Other values to try; those that a study cannot have are skipped by the caller."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, value * 2, value / 2, 1, 0.5]
    if value is None:
        return [1, 0.5]
    if isinstance(value, tuple | list):
        return [(), ("a", "b"), ("a", "b", "c", "d")]
    if isinstance(value, dict):
        return [{}]
    return ["none", "x", "patient", "record", "site", "cnn", "unet", "classification", "batch"]


# What a study asks for is what the key is about: changing that may make it allowed.
ABOUT = {
    "unit": {"privacy.unit"},
    "max_images_per_patient": {"privacy.images_per_patient"},
    "min_noise_multiplier": {"privacy.noise_multiplier"},
    "tasks": {"task.type"},
    "models": {"model.name"},
    "allow_activations": {"federation.algorithm"},
    "require_secure_aggregation": {"secure_aggregation.enabled"},
    "max_steps_per_round": {"training.local_steps"},
    "max_epochs_per_round": {"training.local_epochs"},
    "max_megapixels": {"data.channels", "data.image_size", "evaluation.batch_size"},
    "max_parameters": {"task.classes", "data.image_size", "model.name"},
}


@pytest.mark.parametrize("key", ABOUT)
def test_nothing_else_in_a_study_loosens_the_policy(key: str) -> None:
    limits, too_much, _, _ = LIMITS[key]
    policy, study = PolicySection.model_validate(limits), study_of(**too_much)
    table = study.model_dump(mode="json")
    tried = 0
    for path, value in leaves(study):
        for other in others_than(value):
            changed = with_value(table, path, other)
            try:
                asked = StudyConfig.model_validate(changed)
            except ValidationError:
                continue  # no study at all
            tried += 1
            if ".".join(path) in ABOUT[key]:
                continue
            with pytest.raises(SiteRefusal):
                check_study(asked, policy)
    assert tried > 60
    # Nor is there a place in a study for a policy.
    for section in ({"policy": limits}, {"privacy": {"max_epsilon": 1e9}}):
        with pytest.raises(ValidationError):
            study_of(**section)


def with_value(table: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    name, *rest = path
    inner = with_value(table[name], tuple(rest), value) if rest else value
    return {**table, name: inner}


def test_policy_refuses_a_round_of_too_few_participants() -> None:
    policy = PolicySection(min_participants=3)
    check_participants(3, policy)
    check_participants(1, PolicySection())
    with pytest.raises(SiteRefusal, match="2 participants") as refusal:
        check_participants(2, policy)
    assert refusal.value.reason is RefusalReason.POLICY


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_ready_made_studies_are_within_the_default_bounds(path: Path) -> None:
    # What a hospital decides by conviction is set here; what guards its machine is not.
    check_study(load_study(path), PolicySection(unit="none", max_images_per_patient=64))


def test_policy_takes_no_memory_for_a_network_that_is_too_large() -> None:
    # 10**11 numbers and more would be terabytes.
    study = study_of(
        task={"type": "segmentation", "classes": ["a"]},
        model={"name": "unet", "widths": [200_000, 400_000]},
    )
    assert_study_refused(study, PolicySection(), "max_parameters")


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
        assert cost_of(site, make_spend(site, number)) == after(number)
    assert len(spends_of(site)) == 3
    assert_refused(site, make_spend(site, 4), RefusalReason.BUDGET)
    # Another study, run or retry draws on the same budget.
    assert_refused(
        site, replace(make_spend(site, 1), run="other", study="0" * 64), RefusalReason.BUDGET
    )
    # A refusal is not for ever: a cheaper round may still fit a larger budget.
    larger = make_site(tmp_path, max_epsilon=after(4))
    assert cost_of(larger, make_spend(larger, 4)) == after(4)


def test_charge_refuses_a_first_round_that_is_too_dear_and_writes_nothing(tmp_path: Path) -> None:
    site = make_site(tmp_path, max_epsilon=0.5)
    with pytest.raises(SiteRefusal) as refusal:
        charge(site, make_spend(site))
    assert refusal.value.reason is RefusalReason.BUDGET
    assert not (site.state_folder / "ledger.jsonl").exists()


def test_charge_composes_studies_of_different_noise(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    charge(site, make_spend(site, 1, noise_multiplier=1.0))
    both = cost_of(site, make_spend(site, 2, noise_multiplier=2.0, sample_rate=0.2))
    assert both == epsilon([GaussianEvent(1.0, 0.1, 5), GaussianEvent(2.0, 0.2, 5)], DELTA)


def test_charge_counts_a_seeded_release_once(tmp_path: Path) -> None:
    site = make_site(tmp_path, allow_seeded_noise=True)
    first = cost_of(site, make_spend(site))
    assert cost_of(site, make_spend(site)) == first
    assert len(spends_of(site)) == 1
    # The same name with anything else different is another release.
    again = cost_of(site, replace(make_spend(site), release="from other weights"))
    assert again > first
    assert len(spends_of(site)) == 2


def test_charge_answers_a_seeded_release_again_when_the_budget_is_spent(tmp_path: Path) -> None:
    once = epsilon([GaussianEvent(1.0, 0.1, 5)], DELTA)
    site = make_site(tmp_path, allow_seeded_noise=True, max_epsilon=once)
    assert cost_of(site, make_spend(site)) == once
    assert cost_of(site, make_spend(site)) == once
    assert_refused(site, make_spend(site, 2), RefusalReason.BUDGET)


def test_charge_counts_a_secure_release_every_time(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    first = cost_of(site, make_spend(site))
    assert cost_of(site, make_spend(site)) > first
    assert len(spends_of(site)) == 2


def test_charge_does_not_take_a_secure_release_for_a_seeded_one(tmp_path: Path) -> None:
    secure = make_site(tmp_path)
    charge(secure, make_spend(secure))
    seeded = make_site(tmp_path, allow_seeded_noise=True)
    charge(seeded, make_spend(seeded))
    charge(secure, make_spend(secure))
    assert [spend.noise for spend in spends_of(secure)] == ["secure", "seeded", "secure"]


PRIVATE: dict[str, dict[str, Any]] = {
    "patient": {"unit": "patient"},
    "record": {"unit": "record"},
    "site": PER_SITE,
}


@pytest.mark.parametrize("asked", PRIVATE)
@pytest.mark.parametrize("held", PRIVATE)
def test_charge_mixes_no_units(tmp_path: Path, held: str, asked: str) -> None:
    site = make_site(tmp_path, unit="site", max_epsilon=1000.0)
    charge(site, make_spend(site, 1, **PRIVATE[held]))
    spend = make_spend(site, 2, **PRIVATE[asked])
    if held != asked:
        # A record's epsilon from rounds per patient would be too small: removing one record moves
        # a patient's clipped gradient by up to twice its bound.
        assert_refused(site, spend, RefusalReason.POLICY, f"per {held}.*state folder")
    else:
        charge(site, spend)


def test_release_without_privacy_is_written_and_ends_every_epsilon(tmp_path: Path) -> None:
    site = make_site(tmp_path, unit="none")
    charged = charge(site, make_spend(site, 1, unit="none"))
    assert charged.epsilon is None
    [entry] = Ledger(site.state_folder).entries()
    assert charged.head == entry.hash
    spend = entry.spend
    assert (spend.unit, spend.noise, spend.kind, spend.steps) == ("none", "none", "training", 5)
    assert spend.event is None
    for unit in ("patient", "record", "site"):
        strict = make_site(tmp_path, unit=unit, max_epsilon=1000.0)
        private = make_spend(strict, 2, **PRIVATE[unit])
        assert_refused(strict, private, RefusalReason.POLICY, "releases without privacy")


def test_epsilon_beside_releases_without_privacy_counts_the_private_ones_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site(tmp_path, unit="none")
    charge(site, make_spend(site, 1, unit="none"))
    with caplog.at_level(logging.WARNING):
        cost = cost_of(site, make_spend(site, 2))
    assert cost == epsilon([GaussianEvent(1.0, 0.1, 5)], DELTA)
    assert "counts the private ones alone" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        charge(site, make_spend(site, 3, unit="none"))
    assert "no longer bounds" in caplog.text


def test_release_without_privacy_counts_every_time_but_in_a_simulation(tmp_path: Path) -> None:
    site = make_site(tmp_path, unit="none")
    for _ in range(2):
        charge(site, make_spend(site, 1, unit="none"))
    assert len(spends_of(site)) == 2
    simulated = make_site(tmp_path, unit="none", allow_seeded_noise=True)
    charge(simulated, make_spend(simulated, 1, unit="none"))
    assert len(spends_of(site)) == 2


def test_site_level_spend_vouches_for_taking_part_only(tmp_path: Path) -> None:
    site = make_site(tmp_path, unit="site", max_epsilon=1000.0)
    study = study_of(privacy={**PER_SITE, "noise_multiplier": 1.5}, federation={"fraction": 0.25})
    spend = spend_of_round(study, site.policy, run="run", round_number=2, release="r")
    # The server adds the noise; a site that is asked knows that it was drawn.
    assert (spend.unit, spend.noise, spend.mechanism) == ("site", "none", "gaussian")
    assert (spend.noise_multiplier, spend.sample_rate, spend.steps) == (1.5, 1.0, 1)
    assert cost_of(site, spend) == epsilon([GaussianEvent(1.5, 1.0, 1)], DELTA)


@pytest.mark.parametrize("seeded", [False, True])
def test_distributed_spend_is_a_discrete_gaussian_of_this_sites_own(
    tmp_path: Path, seeded: bool
) -> None:
    site = make_site(tmp_path, unit="site", max_epsilon=1000.0, allow_seeded_noise=seeded)
    secure = {"enabled": True, "distributed_noise": "discrete_gaussian"}
    study = study_of(privacy={**PER_SITE, "noise_multiplier": 2.0}, secure_aggregation=secure)
    about: dict[str, Any] = {"run": "run", "round_number": 1, "release": "r"}
    spend = spend_of_round(study, site.policy, **about)
    assert (spend.unit, spend.mechanism) == ("site", "discrete_gaussian")
    assert spend.noise == ("seeded" if seeded else "secure")
    assert (spend.noise_multiplier, spend.sample_rate, spend.steps) == (2.0, 1.0, 1)
    event = GaussianEvent(2.0, 1.0, 1, mechanism="discrete_gaussian")
    assert cost_of(site, spend) == epsilon([event], DELTA)


def test_decision_reads_only_what_was_not_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What keeps decisions on a long ledger short; scripts/bench/ledger.py has the figures."""
    site = make_site(tmp_path, max_epsilon=1e6)
    for number in range(1, 21):
        charge(site, make_spend(site, number))
    checked: list[int] = []
    read_line = chain._read_line

    def counted(line: bytes, link: chain.Link, public_key: Ed25519PublicKey) -> chain.Entry:
        checked.append(len(line))
        return read_line(line, link, public_key)

    monkeypatch.setattr(chain, "_read_line", counted)
    charge(site, make_spend(site, 21))
    assert len(checked) <= 1
    (site.state_folder / "ledger.seal").unlink()
    charge(site, make_spend(site, 22))
    assert len(checked) >= 21


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
