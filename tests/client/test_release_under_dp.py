"""What leaves a site through the real ClientApp when training is private, and what stays.

Run on the LocalGrid: every message goes through Flower's bytes.
"""

from pathlib import Path

import numpy as np
import pytest
import tomli_w
from flwr.app import ConfigRecord, Message, RecordDict

from medfed.client.app import app
from medfed.client.data.prepare import prepare_store
from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.common import messages
from medfed.common.accounting import GaussianEvent, epsilon
from medfed.common.errors import RefusalReason
from medfed.common.ledger import Ledger
from medfed.common.messages import EvaluateReply, Refusal, TrainReply, pack_arrays, unpack_reply
from medfed.common.models import build_model, frozen_state_digest, trained_state
from medfed.common.state_dicts import StateDict, read_state
from medfed.common.study import StudyConfig
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
            "policy": {"max_epsilon": 1000.0, **policy},
        }
        (folder / "site.toml").write_text(tomli_w.dumps(table))

    def ask(
        self,
        study: StudyConfig,
        kind: str = messages.TRAIN,
        round_number: int = 1,
        weights: StateDict | None = None,
        frozen: str | None = None,
    ) -> RecordDict:
        """Return the content of the site's reply to `weights`, or to the study's initial ones."""
        arrays = pack_arrays(read_state(build_model(study, 2)) if weights is None else weights)
        frozen = frozen or frozen_state_digest(build_model(study, 2))
        content = messages.pack_model(study, "run", round_number, arrays, frozen_sha256=frozen)()
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
    assert set(values_of(content)) == {"version", "kind", "site", "epsilon", "noise"}
    reply = unpack_reply(content)
    assert isinstance(reply, TrainReply)
    assert (reply.num_examples, reply.loss) == (None, None)
    assert list(reply.update) == list(read_state(build_model(study, 2)))


def test_reply_without_privacy_holds_count_and_loss(tmp_path: Path, store: Path) -> None:
    reply = Site(tmp_path, store, unit="none").train(make_study(unit="none"))
    assert reply.num_examples == 18
    assert reply.loss is not None
    assert (reply.epsilon, reply.noise) == (None, "none")
    assert not (tmp_path / "state").exists()


def test_private_round_is_charged_as_it_ran(tmp_path: Path, store: Path) -> None:
    site = Site(tmp_path, store)
    study = make_study(noise_multiplier=2.0)
    for round_number in (1, 2):
        reply = site.train(study, round_number)
        assert reply.epsilon == epsilon([GaussianEvent(2.0, 0.5, STEPS * round_number)], 1e-5)
    spends = [entry.spend for entry in site.ledger.entries()]
    assert [spend.round_number for spend in spends] == [1, 2]
    assert {spend.study for spend in spends} == {study.digest()}
    assert {spend.noise for spend in spends} == {"secure"}


def test_noise_is_secure_unless_the_policy_allows_seeded(tmp_path: Path, store: Path) -> None:
    site = Site(tmp_path, store)
    first, second = site.train(make_study()), site.train(make_study())
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
    assert not (tmp_path / "state").exists()


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
