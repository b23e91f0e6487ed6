"""What a site says of its training data: counted right, kept small, charged once, said again."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from patients import SIDE, Image, crowd, images_of, site_of, study_of

from medfed.client import answers as answers_module
from medfed.client import counting, groundwork, statistics
from medfed.client.app import _PACK
from medfed.client.counting import STATISTICS_FOLDER, count, count_once
from medfed.client.data.site_data import SiteData, harmonised
from medfed.client.policy import charge, spend_of_round
from medfed.client.releases import list_quantities
from medfed.client.statistics import (
    harmonised_data,
    harmonising_tables,
    release_statistics,
    would_say,
)
from medfed.common.accounting import GaussianEvent, epsilon
from medfed.common.errors import RefusalReason, SiteRefusal, StudyError
from medfed.common.ledger import Ledger, Spend
from medfed.common.messages import StatisticsReply, StatisticsRequest, pack_statistics_reply
from medfed.common.statistics import quantities, sensitivity

NOISE = {"noise_multiplier": 2.0}


def spends_of(site: Any) -> list[Spend]:
    return [entry.spend for entry in Ledger(site.state_folder).entries()]


def assert_refused(site: Any, study: Any, reason: RefusalReason) -> None:
    before = spends_of(site)
    with pytest.raises(SiteRefusal) as refusal:
        release_statistics(images_of(crowd(30), study), study, site, run="run")
    assert refusal.value.reason is reason
    assert spends_of(site) == before


# Counting


def test_count_counts_each_patient_once() -> None:
    study = study_of()
    images = [
        Image("a", (0,), 0),
        Image("a", (1,), 255),
        Image("a", (1,), 255),
        Image("b", (1,), 64),
    ]
    counted = count(images_of(images, study), study)
    assert counted.exact["patients"].tolist() == [2]
    assert counted.exact["images"].tolist() == [4]
    assert counted.exact["images_per_patient"].tolist() == [1, 0, 1, 0, 0, 0]
    assert counted.exact["classes"].tolist() == [1, 2, 0]
    # The mean over a patient's images, of 8 bins of 32 grey levels.
    expected = np.zeros((1, 8))
    expected[0, [0, 7, 2]] = 1 / 3, 2 / 3, 1
    np.testing.assert_allclose(counted.exact["intensities"], expected, rtol=1e-15)
    assert counted.holders.tolist() == [[1, 0, 1, 0, 0, 0, 0, 1]]
    assert "sizes" not in counted.exact


def test_count_leaves_padding_and_missing_views_out() -> None:
    study = study_of(
        task={"type": "segmentation", "classes": ["lesion"]},
        model={"name": "unet"},
        data={"fit": "patch"},
    )
    images = [Image("a", (), 255, (10, 300)), Image("a", (0,), 255, (16, 40)), Image("b", (), 255)]
    counted = count(images_of(images, study), study)
    assert counted.exact["intensities"].tolist() == [[0, 0, 0, 0, 0, 0, 0, 2]]
    # By the longest side of a patient's largest image: 300 and 16.
    assert counted.exact["sizes"].tolist() == [1, 0, 0, 1, 0, 0, 0, 0]
    assert not counted.one_class

    study = study_of(data={"views": ["frontal", "lateral"]})
    images = [Image("a", (0,), 255), Image("b", (0,), 255)]
    present = np.array([[1, 0], [1, 1]], np.uint8)
    data = images_of(images, study, views=("frontal", "lateral"), present=present)
    assert count(data, study).exact["intensities"].sum(axis=1).tolist() == [2, 1]


def test_count_reads_in_blocks_to_the_same_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of()
    rng = np.random.default_rng(0)
    images = [
        Image(f"p{n % 5}", (n % 3,), rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8))
        for n in range(40)
    ]
    data = images_of(images, study)
    whole = count(data, study)
    asked: list[int] = []
    read = type(data).images_NCHW

    def noted(self: Any, chosen: Any) -> Any:
        asked.append(len(chosen))
        return read(self, chosen)

    monkeypatch.setattr(type(data), "images_NCHW", noted)
    monkeypatch.setattr(counting, "_BLOCK_BYTES", 3 * SIDE * SIDE)
    blocked = count(data, study)
    assert max(asked) == 3
    assert all(np.array_equal(whole.exact[q], blocked.exact[q]) for q in whole.exact)


def test_count_once_reads_the_pixels_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of()
    data = images_of(crowd(20), study)
    first = count_once(data, study, tmp_path)
    [kept] = (tmp_path / STATISTICS_FOLDER).iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    with monkeypatch.context() as patch:
        patch.setattr(counting, "count", None)  # whoever calls it fails
        again = count_once(data, study, tmp_path)
        assert all(np.array_equal(first.exact[name], again.exact[name]) for name in first.exact)
        other = images_of(crowd(20), study, key="another store")
        for changed, asks in ((other, study), (data, study_of(statistics={"bins": 16}))):
            with pytest.raises(TypeError):
                count_once(changed, asks, tmp_path)
    kept.write_text("torn")
    assert count_once(data, study, tmp_path).exact["patients"].tolist() == [20]


@pytest.mark.parametrize("seed", range(20))
def test_one_patient_moves_the_bounded_sums_by_no_more_than_is_charged(seed: int) -> None:
    rng = np.random.default_rng(seed)
    fit = "patch" if seed % 2 else "resize"
    task = {"mode": "multilabel"}
    if fit == "patch":
        task = {"type": "segmentation", "mode": "multilabel"}
    study = study_of(
        statistics={**NOISE, "classes_per_patient": 2},
        task=task,
        model={"name": "unet"} if fit == "patch" else {},
        data={"channels": 3, "fit": fit},
        privacy={"images_per_patient": 2},
    )

    def images(patient: str) -> list[Image]:
        return [
            Image(
                patient,
                tuple(np.flatnonzero(rng.random(3) < 0.8)),
                int(rng.integers(256)) if rng.random() < 0.5 else rng.integers(0, 9, 16, np.uint8),
            )
            for _ in range(int(rng.integers(1, 9)))
        ]

    others = [image for n in range(6) for image in images(f"p{n}")]
    one, changed = images("x"), images("x")

    def vector(chosen: list[Image]) -> Any:
        sums = count(images_of(chosen, study), study).bounded
        return np.concatenate([(sums[q.name] / q.bound).ravel() for q in quantities(study)])

    without, with_one, with_other = (vector(others + more) for more in ([], one, changed))
    assert np.linalg.norm(with_one - without) <= sensitivity(study) * (1 + 1e-12)
    # A record more or less at most replaces what a patient adds.
    assert np.linalg.norm(with_one - with_other) <= np.sqrt(2) * sensitivity(study) * (1 + 1e-12)


def test_the_bound_is_reached() -> None:
    # One image in one class, all of one grey level: every quantity is at its bound.
    study = study_of(statistics={**NOISE, "classes_per_patient": 1}, privacy={
        "images_per_patient": 1})  # fmt: skip
    sums = count(images_of(crowd(1), study), study).bounded
    moved = np.concatenate([(sums[q.name] / q.bound).ravel() for q in quantities(study)])
    assert np.linalg.norm(moved) == pytest.approx(sensitivity(study), rel=1e-12)


# Policy


@pytest.mark.parametrize(
    ("allowed", "asked", "reason"),
    [
        ("never", {}, RefusalReason.POLICY),
        ("never", NOISE, RefusalReason.POLICY),
        ("dp", {}, RefusalReason.POLICY),
        ("dp", NOISE, None),
        ("suppressed", {}, None),
        ("suppressed", NOISE, None),
    ],
)
def test_release_statistics_does_what_the_policy_allows(
    tmp_path: Path, allowed: str, asked: dict[str, object], reason: RefusalReason | None
) -> None:
    site, study = site_of(tmp_path, release_statistics=allowed), study_of(statistics=asked)
    if reason is not None:
        assert_refused(site, study, reason)
    else:
        said = release_statistics(images_of(crowd(30), study), study, site, run="run")
        assert said.values["patients"].shape == (1,)


def test_policy_lets_statistics_out_with_noise_only_unless_told_otherwise(tmp_path: Path) -> None:
    policy = site_of(tmp_path).policy
    assert (policy.release_statistics, policy.min_statistics_count) == ("dp", 10)


def test_release_statistics_refuses_studies_that_cannot_be_written(tmp_path: Path) -> None:
    # No such study passes validation; the gate does not count on that.
    site = site_of(tmp_path, release_statistics="suppressed", unit="none")
    study = study_of(statistics=NOISE)
    quiet = study.statistics.model_copy(update={"noise_multiplier": None})
    assert_refused(site, study.model_copy(update={"statistics": quiet}), RefusalReason.POLICY)
    hidden = study.privacy.model_copy(update={"unit": "site"})
    assert_refused(site, study.model_copy(update={"privacy": hidden}), RefusalReason.STUDY)
    off = study.statistics.model_copy(update={"collect": False})
    assert_refused(site, study.model_copy(update={"statistics": off}), RefusalReason.STUDY)


@pytest.mark.parametrize(("own", "asked", "used"), [(10, 5, 10), (5, 10, 10), (31, 1, 31)])
def test_the_larger_of_both_minima_counts(tmp_path: Path, own: int, asked: int, used: int) -> None:
    site = site_of(tmp_path, release_statistics="suppressed", min_statistics_count=own)
    study = study_of(statistics={"min_count": asked})
    said = release_statistics(images_of(crowd(30), study), study, site, run="run")
    assert said.min_count == used
    assert np.isnan(said.values["patients"]).all() == (used > 30)


# Charging


def test_release_statistics_charges_one_gaussian_release(tmp_path: Path) -> None:
    site, study = site_of(tmp_path), study_of(statistics=NOISE)
    said = release_statistics(images_of(crowd(30), study), study, site, run="run")
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
        max_grad_norm=np.sqrt(5),
        noise="secure",
        kind="statistics",
    )
    assert said.epsilon == epsilon([GaussianEvent(2.0, 1.0, 1)], 1e-5)
    assert said.head == Ledger(site.state_folder).entries()[-1].hash
    assert not any(np.isnan(array).any() for array in said.values.values())


def test_statistics_and_rounds_draw_on_one_budget(tmp_path: Path) -> None:
    study = study_of(statistics=NOISE)
    both = epsilon([GaussianEvent(1.0, 0.1, 1), GaussianEvent(2.0, 1.0, 1)], 1e-5)
    site = site_of(tmp_path, max_epsilon=both)
    data = images_of(crowd(30), study)
    release_statistics(data, study, site, run="run")
    round_1 = spend_of_round(study, site.policy, run="run", round_number=1, release="x")
    assert charge(site, round_1).epsilon == both
    # Nothing is left for another run's.
    with pytest.raises(SiteRefusal, match="Statistics of the training data would") as refusal:
        release_statistics(data, study, site, run="another")
    assert refusal.value.reason is RefusalReason.BUDGET


def test_statistics_without_noise_are_written_as_a_release_without_privacy(tmp_path: Path) -> None:
    site = site_of(tmp_path, release_statistics="suppressed", unit="none")
    said = release_statistics(images_of(crowd(30), study_of()), study_of(), site, run="run")
    assert (said.epsilon, said.noise) == (None, "none")
    [spend] = spends_of(site)
    assert (spend.kind, spend.unit, spend.steps, spend.event) == ("statistics", "none", 1, None)
    # No epsilon can be claimed for these patients any more.
    assert_refused(site_of(tmp_path), study_of(statistics=NOISE), RefusalReason.POLICY)


def test_statistics_per_record_state_the_noise_of_a_patients_changed_part(tmp_path: Path) -> None:
    site = site_of(tmp_path, unit="record")
    study = study_of(statistics=NOISE, privacy={"unit": "record"})
    release_statistics(images_of(crowd(30), study), study, site, run="run")
    [spend] = spends_of(site)
    assert spend.unit == "record"
    assert spend.noise_multiplier == pytest.approx(2.0 / np.sqrt(2))


@pytest.mark.parametrize("seeded", [False, True])
def test_asked_again_a_site_says_the_same_and_is_charged_once(tmp_path: Path, seeded: bool) -> None:
    site, study = site_of(tmp_path, allow_seeded_noise=seeded), study_of(statistics=NOISE)
    data = images_of(crowd(30), study)
    first = release_statistics(data, study, site, run="run")
    again = release_statistics(data, study, site, run="run")
    # Whatever becomes of the data: another look at them would be another release.
    later = release_statistics(images_of(crowd(3), study, key="new"), study, site, run="run")
    for said in (again, later):
        assert all(np.array_equal(first.values[n], said.values[n]) for n in first.values)
        assert (said.epsilon, said.head, said.noise) == (first.epsilon, first.head, first.noise)
    assert len(spends_of(site)) == 1
    other = release_statistics(data, study, site, run="another run")
    assert len(spends_of(site)) == 2
    assert np.array_equal(other.values["patients"], first.values["patients"]) == seeded


def test_a_crash_after_the_charge_only_counts_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, study = site_of(tmp_path), study_of(statistics=NOISE)
    data = images_of(crowd(30), study)

    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(statistics, "count_once", crash)
        with pytest.raises(RuntimeError):
            release_statistics(data, study, site, run="run")
    assert spends_of(site) == []  # counted before it is charged
    with monkeypatch.context() as patch:
        patch.setattr(statistics, "_keep", crash)
        with pytest.raises(RuntimeError):
            release_statistics(data, study, site, run="run")
    assert len(spends_of(site)) == 1
    release_statistics(data, study, site, run="run")
    assert len(spends_of(site)) == 2


def test_a_changed_answer_is_not_said_again(tmp_path: Path) -> None:
    site, study = site_of(tmp_path), study_of(statistics=NOISE)
    data = images_of(crowd(30), study)
    release_statistics(data, study, site, run="run")
    [path] = (site.state_folder / STATISTICS_FOLDER).glob("answer-*.json")
    assert path.stat().st_mode & 0o777 == 0o600
    table = json.loads(path.read_text())
    path.write_text(json.dumps({**table, "said": table["said"].replace("secure", "seeded")}))
    assert release_statistics(data, study, site, run="run").noise == "secure"
    assert len(spends_of(site)) == 2


# What leaves


@pytest.mark.parametrize("asked", [{}, NOISE], ids=["suppressed", "noise"])
def test_every_number_that_leaves_is_listed_with_its_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, object]
) -> None:
    site, study = site_of(tmp_path, release_statistics="suppressed"), study_of(statistics=asked)
    data = images_of([*crowd(30), *crowd(3, (1,))], study)
    sides = type("Sides", (), {"train": data})
    monkeypatch.setattr(groundwork, "site_data", lambda site, study: sides)
    answer = answers_module.describe_data(StatisticsRequest(study=study, run="run"), site)
    content = _PACK[type(answer.reply)](answer.reply)
    costs = {q.name: q for q in list_quantities(content, answer.costs)}
    protections = {costs[quantity.name].protection for quantity in quantities(study)}
    assert protections == ({"dp"} if asked else {"none"})
    paid = f"epsilon {epsilon([GaussianEvent(2.0, 1.0, 1)], 1e-5):.3f} of 8"
    assert (paid in costs["classes"].cost) == bool(asked)
    assert set(answer.withheld) == (set() if asked else {"classes"})


def test_would_say_charges_and_keeps_nothing(tmp_path: Path) -> None:
    site, study = site_of(tmp_path, release_statistics="suppressed"), study_of()
    data = images_of([*crowd(30), *crowd(12, (1,))], study)
    shown = would_say(data, study, site)
    assert shown["patients"].tolist() == [42]
    assert spends_of(site) == []
    assert not list((site.state_folder / STATISTICS_FOLDER).glob("answer-*"))
    said = release_statistics(data, study, site, run="run")
    assert all(np.array_equal(shown[n], said.values[n], equal_nan=True) for n in shown)


def test_no_patient_of_a_planted_name_is_in_what_leaves_or_is_kept(tmp_path: Path) -> None:
    site = site_of(tmp_path, release_statistics="suppressed")
    study = study_of()
    images = [*crowd(30), Image("Zyxwvut^Ada", (2,), 7), Image("Zyxwvut^Ada", (1,), 7)]
    said = release_statistics(images_of(images, study), study, site, run="run")
    # She alone has a nodule and an effusion, and the darkest grey levels.
    assert np.isnan(said.values["classes"]).tolist() == [True, True, True]
    assert said.values["intensities"].tolist() == [[0, 0, 0, 1, 0, 0, 0, 0]]
    reply = StatisticsReply(
        site="one", values={**said.values}, min_count=said.min_count, noise=said.noise
    )
    content = pack_statistics_reply(reply)
    sent = str(dict(content["medfed"])).encode() + content["arrays"]["safetensors"].data
    kept = [path.read_bytes() for path in (site.state_folder / STATISTICS_FOLDER).iterdir()]
    for text in (sent, *kept):
        assert b"Zyxwvut" not in text
        assert str(tmp_path).encode() not in text


def test_a_site_that_was_not_asked_pays_when_it_needs_a_table(tmp_path: Path) -> None:
    # It joined after the first round: the reference comes with the model.
    study = study_of(statistics=NOISE, data={"harmonise": "histogram"})
    site, images = site_of(tmp_path), images_of(crowd(300, level=60), study)
    reference = tuple(np.linspace(128.0, 256.0, 257).tolist())
    data = SiteData(images, images)
    for _ in range(2):
        seen = harmonised_data(data, study, site, run="run", reference=reference)
    assert [spend.kind for spend in spends_of(site)] == ["statistics"]
    pixels = seen.test.images_NCHW(np.arange(3))
    assert pixels.min() == pixels.max() > 128
    assert images.images_NCHW(np.arange(3)).max() == 60
    plain = study_of(statistics=NOISE)
    assert harmonised_data(data, plain, site, run="run", reference=()) is data


def test_padding_stays_black_when_grey_levels_are_mapped() -> None:
    study = study_of(
        task={"type": "segmentation", "classes": ["lesion"]},
        model={"name": "unet"},
        data={"fit": "patch"},
    )
    images = images_of([Image("a", (), 10, (8, 16)), Image("b", (), 0, (16, 4))], study)
    table = np.minimum(np.arange(256) + 50, 255).astype(np.uint8)
    mapped = harmonised(SiteData(images, images), table.tobytes()).train
    first, second = mapped.images_NCHW(np.array([0, 1]))
    assert (first[:, :8, :16] == 60).all()
    assert (first[:, 8:] == 0).all()
    assert (second[:, :, :4] == 50).all()
    assert (second[:, :, 4:] == 0).all()


# Harmonising


def test_tables_come_from_what_was_said_and_fit_the_study(tmp_path: Path) -> None:
    study = study_of(statistics=NOISE, data={"harmonise": "histogram"})
    site = site_of(tmp_path)
    said = release_statistics(images_of(crowd(300), study), study, site, run="run")
    reference = tuple(np.linspace(0.0, 256.0, 257).tolist())
    table = np.frombuffer(harmonising_tables(said, study, reference), np.uint8)
    assert table.shape == (256,)
    assert (np.diff(table.astype(int)) >= 0).all()
    for wrong in ((), reference[:-1], (*reference[1:], 0.0), (*reference[:-1], np.nan)):
        with pytest.raises(StudyError, match="no reference that fits"):
            harmonising_tables(said, study, wrong)


def test_grey_levels_stay_where_no_histogram_was_said(tmp_path: Path) -> None:
    study = study_of(data={"harmonise": "histogram"})
    site = site_of(tmp_path, release_statistics="suppressed")
    said = release_statistics(images_of(crowd(9), study), study, site, run="run")
    table = harmonising_tables(said, study, tuple(np.linspace(0.0, 200.0, 257).tolist()))
    assert table == bytes(range(256))
