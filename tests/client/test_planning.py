"""A plan says what the gate will do, round by round, and changes nothing."""

import math
from pathlib import Path

import pytest

from medfed.client import policy
from medfed.client.planning import plan_study
from medfed.client.site import SiteConfig
from medfed.common.accounting import GaussianEvent, epsilon
from medfed.common.errors import RefusalReason, SiteRefusal
from medfed.common.ledger import Ledger, Spend
from medfed.common.study import StudyConfig

DELTA = 1e-4


def make_study(rounds: int = 6, *, words: bool = False, **privacy: object) -> StudyConfig:
    task: dict[str, object] = {"classes": ["a", "b"]}
    model: dict[str, object] = {}
    if words:
        task = {"type": "report", "report": {"words_noise_multiplier": 4.0, "words_delta": 1e-6}}
        model = {"name": "report_lstm"}
    return StudyConfig.model_validate(
        {
            "study": {"name": "planned"},
            "task": task,
            "model": model,
            "training": {"local_steps": 5, "rounds": rounds},
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


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def charged(site: SiteConfig, spend: Spend) -> bool:
    try:
        policy.charge(site, spend)
    except SiteRefusal as refusal:
        if refusal.reason is not RefusalReason.BUDGET:
            raise
        return False
    return True


def run_until_refused(study: StudyConfig, site: SiteConfig) -> int | None:
    """Charge as a run does; return the round that is refused, 0 for words."""
    if study.task.type == "report":
        words = policy.spend_of_words(study, site.policy, run="run", release="words")
        if not charged(site, words):
            return 0
    for number in range(1, study.training.rounds + 1):
        spend = policy.spend_of_round(
            study, site.policy, run="run", round_number=number, release=f"release {number}"
        )
        if not charged(site, spend):
            return number
    return None


def test_plan_of_a_first_study_makes_no_ledger_and_no_key(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    plan = plan_study(make_study(), site)
    assert list(tmp_path.iterdir()) == []
    assert (plan.entries, plan.spent, plan.stops_at, plan.refusal) == (0, 0.0, None, None)
    assert plan.alone == plan.after == epsilon([GaussianEvent(1.0, 0.1, 30)], DELTA)
    assert plan.left == 8.0 - plan.after
    assert plan.affordable_rounds == plan.rounds == 6


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("budget", [0.5, 2.0, 2.6, 3.0, 50.0])
def test_plan_says_where_the_gate_will_stop_the_study(
    tmp_path: Path, budget: float, words: bool
) -> None:
    site = make_site(tmp_path, max_epsilon=budget)
    earlier = make_study(2, noise_multiplier=2.0)
    stopped_earlier = run_until_refused(earlier, site)
    study = make_study(words=words)
    before = files(tmp_path)
    plan = plan_study(study, site)
    assert files(tmp_path) == before
    # Now do it.
    stopped = run_until_refused(study, site)
    assert plan.stops_at == stopped
    assert plan.affordable_rounds == (6 if stopped is None else max(0, stopped - 1))
    spent = epsilon(
        [entry.spend.event for entry in Ledger(site.state_folder).entries() if entry.spend.event],
        DELTA,
    )
    assert plan.left == pytest.approx(budget - spent, abs=1e-9)
    assert plan.entries == (2 if stopped_earlier is None else stopped_earlier - 1)


def test_plan_charges_statistics_before_the_rounds(tmp_path: Path) -> None:
    asks = {"statistics": {"collect": True, "noise_multiplier": 2.0}}
    study = StudyConfig.model_validate({**make_study().model_dump(), **asks})
    plan = plan_study(study, make_site(tmp_path))
    one, rounds = GaussianEvent(2.0, 1.0, 1), GaussianEvent(1.0, 0.1, 30)
    assert plan.after == epsilon([one, rounds], DELTA)
    # Not even these fit; then these and not the first round.
    assert plan_study(study, make_site(tmp_path / "a", max_epsilon=0.5)).stops_at == 0
    just = epsilon([one], DELTA)
    assert plan_study(study, make_site(tmp_path / "b", max_epsilon=just)).stops_at == 1


def test_plan_composes_with_what_the_ledger_holds(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    run_until_refused(make_study(3), site)
    plan = plan_study(make_study(6), site)
    assert plan.spent == epsilon([GaussianEvent(1.0, 0.1, 15)], DELTA)
    assert plan.after == epsilon([GaussianEvent(1.0, 0.1, 45)], DELTA)
    assert plan.after < plan.spent + plan.alone


def test_plan_charges_words_with_their_part_of_delta(tmp_path: Path) -> None:
    plan = plan_study(make_study(words=True), make_site(tmp_path))
    events = [GaussianEvent(4.0, 1.0, 1, 1e-6), GaussianEvent(1.0, 0.1, 30)]
    assert plan.alone == epsilon(events, DELTA)
    assert plan.alone > epsilon(events[1:], DELTA)


@pytest.mark.parametrize(
    ("allowed", "asked", "word"),
    [
        ({"unit": "patient"}, {"unit": "record"}, "privacy.unit"),
        ({"max_images_per_patient": 2}, {"images_per_patient": 4}, "images"),
        ({"min_noise_multiplier": 1.5}, {"noise_multiplier": 1.0}, "noise_multiplier"),
    ],
)
def test_plan_says_that_the_policy_would_refuse(
    tmp_path: Path, allowed: dict[str, object], asked: dict[str, object], word: str
) -> None:
    plan = plan_study(make_study(**asked), make_site(tmp_path, **allowed))
    assert plan.refusal is not None
    assert plan.refusal[0] is RefusalReason.POLICY
    assert word in plan.refusal[1]
    assert plan.alone > 0  # what it would cost is said all the same


def test_plan_says_that_words_may_not_leave(tmp_path: Path) -> None:
    plan = plan_study(make_study(words=True), make_site(tmp_path, release_words="never"))
    assert plan.refusal is not None
    assert "release_words" in plan.refusal[1]


def test_plan_says_that_the_ledger_has_another_unit(tmp_path: Path) -> None:
    site = make_site(tmp_path, unit="record")
    run_until_refused(make_study(1, unit="record"), site)
    plan = plan_study(make_study(unit="patient"), site)
    assert plan.refusal is not None
    assert plan.refusal[0] is RefusalReason.POLICY
    assert "record" in plan.refusal[1]


def test_plan_of_a_study_without_privacy_states_no_epsilon(tmp_path: Path) -> None:
    plan = plan_study(make_study(unit="none"), make_site(tmp_path, unit="none"))
    assert plan.refusal is None
    assert plan.noise == "none"
    assert plan.alone == plan.after == math.inf
    assert plan.affordable_rounds is plan.stops_at is None
    assert plan.left == 8.0


def test_plan_of_a_study_that_hides_sites_counts_a_release_a_round(tmp_path: Path) -> None:
    study = make_study(unit="site", noise_multiplier=3.0, site={"expected_sites": 4})
    plan = plan_study(study, make_site(tmp_path, unit="site"))
    assert plan.noise == "none"  # not this site's
    assert plan.alone == epsilon([GaussianEvent(3.0, 1.0, 6)], DELTA)


def test_plan_marks_seeded_noise(tmp_path: Path) -> None:
    assert plan_study(make_study(), make_site(tmp_path, allow_seeded_noise=True)).noise == "seeded"
    assert plan_study(make_study(), make_site(tmp_path)).noise == "secure"


@pytest.mark.parametrize("damage", ["edited", "removed"])
def test_plan_says_that_the_ledger_cannot_be_trusted(tmp_path: Path, damage: str) -> None:
    site = make_site(tmp_path)
    run_until_refused(make_study(2), site)
    ledger = site.state_folder / "ledger.jsonl"
    if damage == "edited":
        ledger.write_bytes(ledger.read_bytes().replace(b'"steps": 5', b'"steps": 1', 1))
    else:
        ledger.unlink()
    before = files(tmp_path)
    plan = plan_study(make_study(), site)
    assert files(tmp_path) == before
    assert plan.refusal is not None
    assert plan.refusal[0] is RefusalReason.LEDGER
