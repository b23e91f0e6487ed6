"""What leaves a site through the real ClientApp when training is private, and what stays.

Run on the LocalGrid: every message goes through Flower's bytes.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from flwr.app import ConfigRecord, Message, RecordDict

from medfed.client import releases
from medfed.client.app import app
from medfed.client.data.prepare import prepare_store
from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.client.releases import Release, read_releases
from medfed.common import messages
from medfed.common.accounting import GaussianEvent, epsilon
from medfed.common.errors import RefusalReason
from medfed.common.ledger import Ledger, ServerKey
from medfed.common.ledger.countersigning import read_countersignatures
from medfed.common.messages import EvaluateReply, Refusal, TrainReply, pack_arrays, unpack_reply
from medfed.common.models import build_model, frozen_state_digest, trained_state
from medfed.common.state_dicts import StateDict, read_state
from medfed.common.study import SecureAggregationSection, StudyConfig, TrainingSection
from medfed.simulations.grids.local import LocalGrid

STEPS = 3


def make_study(unit: str = "patient", **privacy: object) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "study": {"name": "release"},
            "task": {"classes": ["a", "b"]},
            "data": {"image_size": 16},
            "training": {"local_steps": STEPS, "batch_size": 4},
            "privacy": {"unit": unit, "sample_rate": 0.5, "expected_batch_size": 4.0, **privacy},
        }
    )


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve patients of two images each, one in four of them held out."""
    records = tuple(
        SourceRecord(
            record_id=f"image {n:02d}",
            patient_id=f"patient {n // 2:02d}",
            labels=("a" if n // 2 % 2 else "b",),
            source=f"image {n:02d}",
            read_image=lambda n=n: picture(n),
            split="test" if n // 2 % 4 == 0 else "train",
        )
        for n in range(24)
    )
    dataset = SourceDataset(
        name="random", licence="", citation="", classes=("a", "b"), records=records, digest="0" * 64
    )
    study = make_study()
    folder = tmp_path_factory.mktemp("store")
    return prepare_store(
        dataset, study.task, study.data, parent=folder, pseudonym_key=b"key"
    ).folder


class Site:
    """One site behind a grid."""

    def __init__(self, folder: Path, store: Path, **policy: object) -> None:
        self.folder = folder
        table = {
            "name": "one",
            "data": {"stores": [str(store)]},
            "policy": {"max_epsilon": 1000.0, "min_patients_per_count": 1, **policy},
        }
        (folder / "site.toml").write_text(tomli_w.dumps(table))

    def ask(
        self,
        study: StudyConfig,
        kind: str = messages.TRAIN,
        round_number: int = 1,
        weights: StateDict | None = None,
        frozen: str | None = None,
        num_participants: int = 1,
        countersignature: str = "",
    ) -> RecordDict:
        """Return the content of the site's reply to `weights`, or to the study's initial ones."""
        arrays = pack_arrays(read_state(build_model(study, 2)) if weights is None else weights)
        frozen = frozen or frozen_state_digest(build_model(study, 2))
        content = messages.pack_model(
            study,
            "run",
            round_number,
            arrays,
            frozen_sha256=frozen,
            num_participants=num_participants,
        )(countersignature)
        with LocalGrid(app, {7: self.folder / "site.toml"}) as grid:
            [reply] = grid.send_and_receive([Message(content, 7, kind)], timeout=60)
        assert not reply.has_error(), reply.error
        return reply.content

    def train(self, study: StudyConfig, round_number: int = 1) -> TrainReply:
        reply = unpack_reply(self.ask(study, round_number=round_number))
        assert isinstance(reply, TrainReply), reply
        return reply

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.folder / "state")

    @property
    def releases(self) -> tuple[Release, ...]:
        listed, torn = read_releases(self.folder / "state")
        assert not torn
        return listed


def values_of(content: RecordDict) -> ConfigRecord:
    record = content["medfed"]
    assert isinstance(record, ConfigRecord)
    return record


def bits(reply: TrainReply) -> bytes:
    return b"".join(array.tobytes() for array in reply.update.values())


def test_private_reply_holds_the_update_and_public_facts_only(tmp_path: Path, store: Path) -> None:
    study = make_study()
    content = Site(tmp_path, store).ask(study)
    assert set(content) == {"medfed", "arrays"}
    # No num_examples, no loss, no metric: each of them would be a release that nothing paid for.
    public = {"version", "kind", "site", "epsilon", "noise", "ledger_head"}
    assert set(values_of(content)) == public
    reply = unpack_reply(content)
    assert isinstance(reply, TrainReply)
    assert (reply.num_examples, reply.loss) == (None, None)
    assert list(reply.update) == list(read_state(build_model(study, 2)))


def test_reply_without_privacy_holds_count_and_loss(tmp_path: Path, store: Path) -> None:
    site = Site(tmp_path, store, unit="none")
    reply = site.train(make_study(unit="none"))
    assert reply.num_examples == 18
    assert reply.loss is not None
    assert (reply.epsilon, reply.noise) == (None, "none")
    [entry] = site.ledger.entries()
    assert (entry.spend.unit, entry.spend.noise, entry.hash) == ("none", "none", reply.ledger_head)


PER_SITE = {"site": {"expected_sites": 3.0}}


@pytest.mark.parametrize("length", [{"local_steps": STEPS}, {"local_epochs": 1}])
def test_site_level_reply_is_exact_and_holds_no_count_or_loss(
    tmp_path: Path, store: Path, length: dict[str, int]
) -> None:
    study = make_study("site", **PER_SITE).model_copy(
        update={"training": TrainingSection.model_validate({"batch_size": 4, **length})}
    )
    site = Site(tmp_path, store, unit="site")
    reply = site.train(study)
    assert (reply.num_examples, reply.loss, reply.noise) == (None, None, "none")
    assert reply.epsilon == epsilon([GaussianEvent(1.0, 1.0, 1)], 1e-5)
    [entry] = site.ledger.entries()
    assert (entry.spend.unit, entry.spend.noise) == ("site", "none")
    # Trained without noise: the same update as without privacy.
    plain = study.model_copy(update={"privacy": make_study("none").privacy})
    (tmp_path / "plain").mkdir()
    exact = Site(tmp_path / "plain", store, unit="none").train(plain)
    assert bits(reply) == bits(exact)


def test_study_with_secure_aggregation_gets_no_plain_update(tmp_path: Path, store: Path) -> None:
    secure = SecureAggregationSection(enabled=True)
    study = make_study().model_copy(update={"secure_aggregation": secure})
    site = Site(tmp_path, store)
    assert_refused(site.ask(study), RefusalReason.INTERNAL)
    assert site.ledger.entries() == ()


def test_private_round_is_charged_as_it_ran(tmp_path: Path, store: Path) -> None:
    site = Site(tmp_path, store)
    study = make_study(noise_multiplier=2.0)
    for round_number in (1, 2):
        reply = site.train(study, round_number)
        assert reply.epsilon == epsilon([GaussianEvent(2.0, 0.5, STEPS * round_number)], 1e-5)
        assert reply.ledger_head == site.ledger.entries()[-1].hash
    spends = [entry.spend for entry in site.ledger.entries()]
    assert [spend.round_number for spend in spends] == [1, 2]
    assert {spend.study for spend in spends} == {study.digest()}
    assert {spend.noise for spend in spends} == {"secure"}


def test_noise_is_secure_unless_the_policy_allows_seeded(tmp_path: Path, store: Path) -> None:
    site = Site(tmp_path, store)
    first = site.train(make_study())
    shutil.rmtree(tmp_path / "state" / "replies")  # or the first would be sent again
    second = site.train(make_study())
    assert {first.noise, second.noise} == {"secure"}
    assert bits(first) != bits(second)
    assert len(site.ledger.entries()) == 2


def test_seeded_noise_repeats_a_release_and_charges_it_once(tmp_path: Path, store: Path) -> None:
    site = Site(tmp_path, store, allow_seeded_noise=True)
    first, second = site.train(make_study()), site.train(make_study())
    assert {first.noise, second.noise} == {"seeded"}
    assert bits(first) == bits(second)
    assert first.epsilon == second.epsilon
    assert len(site.ledger.entries()) == 1
    assert bits(site.train(make_study(), round_number=2)) != bits(first)
    assert len(site.ledger.entries()) == 2


def assert_refused(content: RecordDict, reason: RefusalReason) -> None:
    assert unpack_reply(content) == Refusal(site="one", reason=reason)
    assert set(content) == {"medfed"}
    assert set(values_of(content)) == {"version", "kind", "site", "reason"}


def test_site_refuses_when_the_budget_is_spent(tmp_path: Path, store: Path) -> None:
    once = epsilon([GaussianEvent(1.0, 0.5, STEPS)], 1e-5)
    site = Site(tmp_path, store, max_epsilon=once)
    assert site.train(make_study()).epsilon == once
    before = site.ledger.path.read_bytes()
    assert_refused(site.ask(make_study(), round_number=2), RefusalReason.BUDGET)
    assert site.ledger.path.read_bytes() == before


@pytest.mark.parametrize(
    "study",
    [make_study(unit="none"), make_study(unit="record"), make_study(images_per_patient=9)],
    ids=["no privacy", "record", "too many images"],
)
def test_site_refuses_a_study_against_its_policy(
    tmp_path: Path, store: Path, study: StudyConfig
) -> None:
    site = Site(tmp_path, store)
    for kind in (messages.TRAIN, messages.EVALUATE):
        assert_refused(site.ask(study, kind), RefusalReason.POLICY)
    # Nothing but the list of what left: two refusals.
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["releases.jsonl"]


def test_site_refuses_a_round_of_too_few_participants(tmp_path: Path, store: Path) -> None:
    site = Site(tmp_path, store, min_participants=3)
    assert_refused(site.ask(make_study(), num_participants=2), RefusalReason.POLICY)
    assert site.ledger.entries() == ()
    assert isinstance(unpack_reply(site.ask(make_study(), num_participants=3)), TrainReply)


def test_site_keeps_the_countersignatures_of_its_ledger(tmp_path: Path, store: Path) -> None:
    site, server = Site(tmp_path, store), ServerKey.load_or_make(tmp_path / "server.key")
    kept = tmp_path / "state" / "countersignatures.jsonl"
    head = site.train(make_study()).ledger_head
    signed = server.sign(run="run", site="one", round_number=1, head=head)
    # It comes with the next message, to train or to evaluate.
    assert not kept.exists()
    site.ask(make_study(), messages.EVALUATE, countersignature=signed.to_json())
    assert read_countersignatures(kept) == (signed,)
    reply = unpack_reply(site.ask(make_study(), round_number=2, countersignature=signed.to_json()))
    assert isinstance(reply, TrainReply)
    second = server.sign(run="run", site="one", round_number=2, head=reply.ledger_head)
    site.ask(make_study(), round_number=3, countersignature=second.to_json())
    assert read_countersignatures(kept) == (signed, second)


@pytest.mark.parametrize("kind", [messages.TRAIN, messages.EVALUATE])
@pytest.mark.parametrize("wrong", ["another ledger's head", "another server's key", "no JSON"])
def test_site_refuses_a_wrong_countersignature_before_it_spends(
    tmp_path: Path, store: Path, kind: str, wrong: str
) -> None:
    site, server = Site(tmp_path, store), ServerKey.load_or_make(tmp_path / "server.key")
    head = site.train(make_study()).ledger_head
    first = server.sign(run="run", site="one", round_number=1, head=head).to_json()
    site.ask(make_study(), messages.EVALUATE, countersignature=first)
    bad = "{}"
    if wrong == "another ledger's head":
        bad = server.sign(run="run", site="one", round_number=1, head="0" * 64).to_json()
    elif wrong == "another server's key":
        other = ServerKey.load_or_make(tmp_path / "other.key")
        bad = other.sign(run="run", site="one", round_number=1, head=head).to_json()
    before = site.ledger.path.read_bytes()
    content = site.ask(make_study(), kind, round_number=2, countersignature=bad)
    assert_refused(content, RefusalReason.LEDGER)
    assert site.ledger.path.read_bytes() == before


def test_site_with_a_broken_site_file_says_no_more_than_that(tmp_path: Path, store: Path) -> None:
    site = Site(tmp_path, store)
    (tmp_path / "site.toml").write_text("name = 'one'\nsecret_path = '/home/dr_zyxwvut'\n")
    content = site.ask(make_study())
    assert unpack_reply(content) == Refusal(site="unknown", reason=RefusalReason.INTERNAL)


def test_site_refuses_when_its_ledger_was_edited(tmp_path: Path, store: Path) -> None:
    site = Site(tmp_path, store)
    site.train(make_study())
    path = site.ledger.path
    path.write_bytes(path.read_bytes().replace(b'"steps": 3', b'"steps": 1'))
    assert_refused(site.ask(make_study(), round_number=2), RefusalReason.LEDGER)


@pytest.mark.parametrize("allowed", [False, True])
def test_evaluation_leaves_only_where_the_policy_releases_it(
    tmp_path: Path, store: Path, allowed: bool
) -> None:
    content = Site(tmp_path, store, release_evaluation=allowed).ask(make_study(), messages.EVALUATE)
    reply = unpack_reply(content)
    assert isinstance(reply, EvaluateReply)
    assert set(values_of(content)) == {"version", "kind", "site"}
    assert ("arrays" in content) == (reply.sums is not None) == allowed


def test_weights_of_another_model_are_refused_before_anything_is_charged(
    tmp_path: Path, store: Path
) -> None:
    site, study = Site(tmp_path, store), make_study()
    [(name, array), *rest] = list(read_state(build_model(study, 2)).items())
    for wrong in (
        dict(rest),
        {name: array[:-1], **dict(rest)},
        {name: array.astype(np.float64), **dict(rest)},
        {name: np.full_like(array, np.nan), **dict(rest)},
    ):
        assert isinstance(unpack_reply(site.ask(study, weights=wrong)), Refusal)
    assert site.ledger.entries() == ()
    site.train(study)
    assert len(site.ledger.entries()) == 1


def test_another_frozen_part_is_refused_before_anything_is_charged(
    tmp_path: Path, store: Path
) -> None:
    study = make_study()
    frozen = study.model_copy(
        update={"model": study.model.model_copy(update={"freeze": "backbone"})}
    )
    head = trained_state(build_model(frozen, 2))
    assert list(head) == ["classifier.3.weight", "classifier.3.bias"]
    site = Site(tmp_path, store)
    for kind in (messages.TRAIN, messages.EVALUATE):
        Site(tmp_path, store, release_evaluation=True)
        assert_refused(site.ask(frozen, kind, weights=head, frozen="0" * 64), RefusalReason.STUDY)
    assert site.ledger.entries() == ()
    reply = unpack_reply(site.ask(frozen, weights=head))
    assert isinstance(reply, TrainReply)
    assert list(reply.update) == list(head)


def costs_of(release: Release) -> dict[str, tuple[str, str]]:
    return {q.name: (q.protection, q.cost) for q in release.quantities}


def test_every_reply_is_listed_as_it_left(tmp_path: Path, store: Path) -> None:
    site, study = Site(tmp_path, store, release_evaluation=True), make_study()
    contents = [
        site.ask(study),
        site.ask(study, messages.EVALUATE),
        site.ask(study, round_number=2),
        site.ask(make_study(unit="none"), round_number=3),
    ]
    listed = site.releases
    assert [release.kind for release in listed] == ["update", "sums", "update", "refusal"]
    assert [release.round_number for release in listed] == [1, 1, 2, 3]
    assert {(release.run, release.study) for release in listed} == {("run", "release")}
    for release, content in zip(listed, contents, strict=True):
        assert release.num_bytes == messages.num_bytes(content)
    reply = unpack_reply(contents[2])
    assert isinstance(reply, TrainReply)
    protection, cost = costs_of(listed[2])["update"]
    assert protection == "dp"
    assert cost.startswith(
        f"epsilon {reply.epsilon:.3f} of 1000 at delta 1e-05 after this (patient)"
    )
    assert set(listed[2].withheld) == {"num_examples", "loss"}
    assert {p for name, (p, _) in costs_of(listed[1]).items() if name in SUMS} == {"none"}


SUMS = ("count", "loss", "matrix", "confusion", "correct", "scores", "calibration")


def test_list_says_what_no_privacy_covers(tmp_path: Path, store: Path) -> None:
    site = Site(tmp_path, store, unit="none")
    site.ask(make_study(unit="none"))
    [release] = site.releases
    costs = costs_of(release)
    for name in ("update", "num_examples", "loss"):
        assert costs[name][0] == "none"
        assert "exact" in costs[name][1]
    assert release.withheld == {}


def test_list_says_who_is_trusted_with_the_noise(tmp_path: Path, store: Path) -> None:
    site = Site(tmp_path, store, unit="site")
    site.ask(make_study("site", **PER_SITE))
    [release] = site.releases
    protection, cost = costs_of(release)["update"]
    assert protection == "none"
    assert "the server is trusted" in cost
    assert "(site)" in cost


def test_list_says_that_seeded_noise_is_not_private(tmp_path: Path, store: Path) -> None:
    site = Site(tmp_path, store, allow_seeded_noise=True)
    site.ask(make_study())
    assert "not private" in costs_of(site.releases[0])["update"][1]


def test_list_says_what_was_withheld(tmp_path: Path, store: Path) -> None:
    for policy in (
        {"release_evaluation": False},
        {"release_evaluation": True, "min_patients_per_count": 5},
        {"release_evaluation": True, "release_metrics": ["tables"]},
    ):
        Site(tmp_path, store, **policy).ask(make_study(), messages.EVALUATE)
    off, few, some = Site(tmp_path, store).releases
    assert set(off.withheld) == {"evaluation"}
    assert "fewer than 5" in few.withheld["evaluation"]
    for release in (off, few):
        assert set(costs_of(release)) == {"version", "kind", "site"}
    assert set(costs_of(some)) == {
        "version", "kind", "site", "count", "confusion", "correct", "matrix"
    }  # fmt: skip
    assert set(some.withheld) == {"loss", "scores", "calibration"}


def test_nothing_leaves_that_cannot_be_listed(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path, store, release_evaluation=True)

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("medfed.client.app.write_release", full)
    assert_refused(site.ask(make_study()), RefusalReason.INTERNAL)
    monkeypatch.undo()
    # A quantity that nobody has stated the cost of.
    monkeypatch.delitem(releases._COSTS["sums"], "matrix")  # type: ignore[arg-type]
    assert_refused(site.ask(make_study(), messages.EVALUATE), RefusalReason.INTERNAL)
