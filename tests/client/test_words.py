"""From reports to named words: the policy's word, the ledger's charge, and what never leaves."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from medfed.client import words as words_module
from medfed.client.data.site_data import ImageSet
from medfed.client.data.store import Store
from medfed.client.policy import charge, spend_of_round
from medfed.client.site import PolicySection, SiteConfig
from medfed.client.words import release_words, reports_by_patient
from medfed.common.accounting import GaussianEvent, epsilon
from medfed.common.errors import RefusalReason, SiteRefusal
from medfed.common.ledger import Ledger, Spend
from medfed.common.study import StudyConfig

DELTA = 1e-5
WORDS_DELTA = 1e-6
NOISE = {"words_noise_multiplier": 2.0, "words_delta": WORDS_DELTA, "words_per_patient": 9}

REPORTS = {
    **{f"patient {n}": ("No effusion.", "Heart size normal; no nodule.") for n in range(200)},
    **{f"other {n}": ("Right effusion.", "Right effusion.", "") for n in range(4)},
    "famous": ("Seen by Dr Zyxwvut on 17/03, MRN 4711. Right effusion.",),
}
EVERYWHERE = {"effusion", "heart", "no", "nodule", "normal", "size"}
NEVER = {"zyxwvut", "4711", "mrn", "17", "03", "dr"}


def make_study(unit: str = "", task: object = None, **report: object) -> StudyConfig:
    """A study; without noise on the words it can have no privacy either."""
    covered = task or report.keys() & {"words_noise_multiplier", "vocabulary"}
    unit = unit or ("patient" if covered else "none")
    return StudyConfig.model_validate(
        {
            "study": {"name": "words", "seed": 4},
            "task": task or {"type": "report", "report": report},
            "model": {} if task else {"name": "report_lstm"},
            "training": {"local_steps": 2},
            "privacy": {"unit": unit, "site": {"expected_sites": 2.0 if unit == "site" else None}},
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


def name(
    site: SiteConfig,
    study: StudyConfig,
    reports: dict[str, tuple[str, ...]] = REPORTS,
    run: str = "run",
) -> tuple[set[str], float | None]:
    named = release_words(reports, study, site, run=run)
    assert list(named.words) == sorted(set(named.words))
    return set(named.words) - {"."}, named.epsilon


def spends_of(site: SiteConfig) -> list[Spend]:
    return [entry.spend for entry in Ledger(site.state_folder).entries()]


def assert_refused(site: SiteConfig, study: StudyConfig, reason: RefusalReason) -> None:
    """Refused for `reason`, and the ledger is as it was."""
    before = spends_of(site)
    with pytest.raises(SiteRefusal) as refusal:
        release_words(REPORTS, study, site, run="run")
    assert refusal.value.reason is reason
    assert spends_of(site) == before


# Policy


@pytest.mark.parametrize(
    ("allowed", "k", "asked", "named"),
    [
        ("never", 5, {}, None),
        ("never", 5, NOISE, None),
        ("dp", 5, {}, None),
        ("dp", 5, NOISE, EVERYWHERE),
        # Five patients have "right": too few to pass under noise.
        ("threshold", 5, {}, {*EVERYWHERE, "right"}),
        ("threshold", 5, NOISE, EVERYWHERE),
        # A study can ask for more patients a word, never for fewer, with noise and without.
        ("threshold", 5, {"min_patients": 6}, EVERYWHERE),
        ("threshold", 5, {"min_patients": 4}, None),
        ("dp", 5, {**NOISE, "min_patients": 4}, None),
        ("dp", 4, {**NOISE, "min_patients": 4}, EVERYWHERE),
    ],
)
def test_release_words_does_what_the_policy_allows(
    tmp_path: Path, allowed: str, k: int, asked: dict[str, object], named: set[str] | None
) -> None:
    site = make_site(tmp_path, release_words=allowed, min_patients_per_word=k)
    if named is None:
        assert_refused(site, make_study(**asked), RefusalReason.POLICY)
    else:
        assert name(site, make_study(**asked))[0] == named


def test_policy_lets_words_out_with_noise_only_unless_told_otherwise() -> None:
    assert PolicySection().release_words == "dp"
    assert PolicySection().min_patients_per_word == 5


def test_release_words_refuses_a_study_that_needs_none(tmp_path: Path) -> None:
    site = make_site(tmp_path, release_words="threshold")
    assert_refused(site, make_study(vocabulary="words.txt"), RefusalReason.STUDY)
    assert_refused(site, make_study(task={"classes": ["a", "b"]}), RefusalReason.STUDY)


# Without noise


def test_release_words_counts_a_patient_once_over_all_reports(tmp_path: Path) -> None:
    site = make_site(tmp_path, release_words="threshold", min_patients_per_word=2)
    reports = {"a": ("mass", "mass mass", "Mass. cyst"), "b": ("cyst",), "c": ("scar", "scar")}
    named = name(site, make_study(min_patients=2), reports)
    assert named == ({"cyst"}, None)


def test_release_words_without_noise_is_written_as_a_release_without_privacy(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path, release_words="threshold", unit="none")
    _, spent = name(site, make_study())
    assert spent is None
    [spend] = spends_of(site)
    assert (spend.kind, spend.unit, spend.noise, spend.event) == ("words", "none", "none", None)
    # No epsilon can be claimed for these patients any more.
    strict = make_site(tmp_path)
    assert_refused(strict, make_study(**NOISE), RefusalReason.POLICY)


def test_release_words_refuses_a_study_that_hides_sites(tmp_path: Path) -> None:
    # Words with noise hide a patient, not a hospital that alone has a word. No such study can be
    # written; the gate does not count on that.
    study = make_study(**NOISE)
    privacy = study.privacy.model_copy(update={"unit": "site"})
    study = study.model_copy(update={"privacy": privacy})
    assert_refused(make_site(tmp_path, unit="site"), study, RefusalReason.STUDY)


def test_release_words_takes_the_most_frequent_of_the_size_asked(tmp_path: Path) -> None:
    site = make_site(tmp_path, release_words="threshold")
    reports = {**{f"p{n}": ("heart",) for n in range(6)}, **{f"q{n}": ("cyst",) for n in range(5)}}
    assert name(site, make_study(vocabulary_size=2), reports)[0] == {"heart", "cyst"}
    assert name(site, make_study(vocabulary_size=1), reports)[0] == {"heart"}


def test_release_words_of_no_reports_are_none(tmp_path: Path) -> None:
    site = make_site(tmp_path, release_words="threshold")
    assert name(site, make_study(), {}) == (set(), None)
    assert name(site, make_study(), {f"p{n}": ("", "  ") for n in range(9)}) == (set(), None)
    covered = make_site(tmp_path / "covered")
    assert name(covered, make_study(**NOISE), {})[0] == set()


def test_release_words_never_names_what_no_vocabulary_takes(tmp_path: Path) -> None:
    site = make_site(tmp_path, release_words="threshold")
    # A pasted blob in every report, the longest word allowed, and one letter more.
    text = f"Heart. {'a' * 64} {'b' * 65} {'9' * 300}"
    named, _ = name(site, make_study(), {f"p{n}": (text,) for n in range(9)})
    assert named == {"heart", "a" * 64}


@pytest.mark.parametrize("asked", [{}, NOISE], ids=["threshold", "noise"])
def test_release_words_keeps_a_planted_name_at_home(
    tmp_path: Path, asked: dict[str, object]
) -> None:
    site = make_site(tmp_path, release_words="threshold")
    named, _ = name(site, make_study(**asked))
    assert named & NEVER == set()
    assert named >= EVERYWHERE


# With noise


def test_release_words_charges_one_gaussian_release_and_its_delta(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    study = make_study(**NOISE)
    _, spent = name(site, study)
    [spend] = spends_of(site)
    assert spend == Spend(
        release=spend.release,
        study=study.digest(),
        run="run",
        round_number=0,
        unit="patient",
        images_per_patient=0,
        noise_multiplier=2.0,
        sample_rate=1.0,
        steps=1,
        max_grad_norm=1.0,
        noise="secure",
        kind="words",
        extra_delta=WORDS_DELTA,
    )
    assert spent == epsilon([GaussianEvent(2.0, 1.0, 1)], DELTA - WORDS_DELTA)


def test_release_words_and_rounds_draw_on_one_budget(tmp_path: Path) -> None:
    study = make_study(**NOISE)
    trained = [GaussianEvent(1.0, 0.1, 2)]
    both = epsilon([*trained, GaussianEvent(2.0, 1.0, 1)], DELTA - WORDS_DELTA)
    site = make_site(tmp_path, max_epsilon=both)

    def train(number: int) -> float:
        spend = spend_of_round(
            study, site.policy, run="run", round_number=number, release=f"round {number}"
        )
        epsilon_after = charge(site, spend).epsilon
        assert epsilon_after is not None
        return epsilon_after

    _, spent = name(site, study)
    assert spent is not None
    assert spent < both
    # The delta that choosing words took is missing from the rounds too.
    assert train(1) == both
    with pytest.raises(SiteRefusal, match="of which choosing words takes 1e-06") as refusal:
        train(2)
    assert refusal.value.reason is RefusalReason.BUDGET
    assert_refused(site, study, RefusalReason.BUDGET)


def test_release_words_refuses_when_no_delta_is_left(tmp_path: Path) -> None:
    site = make_site(tmp_path, max_epsilon=1e6)
    assert_refused(site, make_study(**{**NOISE, "words_delta": DELTA}), RefusalReason.BUDGET)
    assert_refused(site, make_study(**{**NOISE, "words_delta": 0.5}), RefusalReason.BUDGET)
    # It adds up over studies, each of which would fit.
    most = make_study(**{**NOISE, "words_delta": 0.6 * DELTA})
    name(site, most)
    assert_refused(site, most, RefusalReason.BUDGET)


def test_release_words_charges_before_it_chooses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(tmp_path)

    def crash(*_: object, **__: object) -> tuple[str, ...]:
        raise RuntimeError("power cut")

    monkeypatch.setattr(words_module, "noisy_words", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        name(site, make_study(**NOISE))
    assert [spend.kind for spend in spends_of(site)] == ["words"]


def test_release_words_charges_a_seeded_release_once_and_names_the_same(tmp_path: Path) -> None:
    site = make_site(tmp_path, allow_seeded_noise=True)
    # Sigma so large that the words differ from draw to draw.
    study = make_study(**{**NOISE, "words_noise_multiplier": 16.0})
    first = name(site, study)
    assert name(site, study) == first
    assert [spend.noise for spend in spends_of(site)] == ["seeded"]
    # Another run is another release for the ledger.
    name(site, study, run="another run")
    assert len(spends_of(site)) == 2
    # Another site or seed has other noise.
    others = {
        frozenset(name(site.model_copy(update={"name": other}), study, run=other)[0])
        for other in ("two", "three", "four", "five")
    }
    assert len(others) > 1


def test_release_words_charges_secure_noise_every_time_and_draws_anew(tmp_path: Path) -> None:
    site = make_site(tmp_path, max_epsilon=1e6)
    study = make_study(**{**NOISE, "words_noise_multiplier": 16.0, "words_delta": 1e-7})
    drawn = {frozenset(name(site, study)[0]) for _ in range(12)}
    assert len(spends_of(site)) == 12
    # Six words of weight 200 / sqrt(6) against a threshold of about 92: half of them pass.
    assert len(drawn) > 1


def test_release_words_per_record_states_the_noise_of_a_patients_changed_words(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path, unit="record", max_epsilon=1e6)
    study = make_study("record", **NOISE)
    _, spent = name(site, study)
    [spend] = spends_of(site)
    assert spend.unit == "record"
    assert spend.noise_multiplier == pytest.approx(2.0 / np.sqrt(2))
    # Replacing a unit vector by an orthogonal one, Balle and Wang 2018, theorem 8: mu = sqrt(2)/2.
    assert spent is not None
    mu = np.sqrt(2) / 2.0
    exact = norm.cdf(mu / 2 - spent / mu) - np.exp(spent) * norm.cdf(-mu / 2 - spent / mu)
    assert exact == pytest.approx(DELTA - WORDS_DELTA, rel=1e-2)
    # Rounds per record, and more words, go on from there.
    charge(site, spend_of_round(study, site.policy, run="r", round_number=1, release="x"))
    name(site, study)


def test_release_words_of_a_study_without_training_privacy_counts_patients(tmp_path: Path) -> None:
    site = make_site(tmp_path, unit="none")
    name(site, make_study("none", **NOISE))
    assert [spend.unit for spend in spends_of(site)] == ["patient"]


# Where the reports come from


def make_store(patients: tuple[str, ...], reports: tuple[str, ...]) -> Store:
    size = len(patients)
    return Store(
        folder=Path(),
        key="",
        classes=(),
        mode="multiclass",
        images_NCHW=np.zeros((size, 1, 4, 4), np.uint8),
        masks_NHW=None,
        labels=np.zeros((size, 0), np.uint8),
        patients=patients,
        splits=("",) * size,
        columns={},
        reports=reports,
        record_ids=patients,
        num_quarantined=0,
        task="report",
    )


def test_reports_by_patient_joins_stores_and_leaves_the_other_side_out() -> None:
    one = make_store(("b", "a", "b", "held out"), ("x", "y", "x", "secret"))
    two = make_store(("a", "b", "c"), ("z", "x y", ""))
    places = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    stores, rows = np.array(places).T
    data = ImageSet((one, two), stores, rows)
    found = reports_by_patient(data)
    assert found == {"a": ("y", "z"), "b": ("x", "x y"), "c": ("",)}
    assert list(found) == ["a", "b", "c"]


def test_spend_of_words_is_that_of_another_study_if_any_wish_differs(tmp_path: Path) -> None:
    site = make_site(tmp_path, allow_seeded_noise=True, max_epsilon=1e6, target_delta=1e-3)
    for change in ({}, {"vocabulary_size": 7}, {"words_per_patient": 8}, {"min_patients": 9}):
        name(site, make_study(**{**NOISE, **change}))
    spends = spends_of(site)
    assert len(spends) == 4
    assert len({spend.release for spend in spends}) == 4
    assert replace(spends[0], release="", study="") == replace(spends[1], release="", study="")
