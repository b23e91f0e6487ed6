"""A round that is asked for again at a real site, with noise of its own: update and part agree."""

from pathlib import Path

import numpy as np
import pytest
import tomli_w
from flwr.app import Message

from medfed.client.app import app
from medfed.client.data.prepare import prepare_store
from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.client.own_parts import OwnParts
from medfed.client.replies import KeptReply, ReplyJournal
from medfed.common import messages
from medfed.common.ledger import Ledger
from medfed.common.messages import Refusal, TrainReply, pack_arrays, unpack_reply
from medfed.common.models import build_model, frozen_state_digest, local_names, shared_state
from medfed.common.state_dicts import StateDict, digest, read_state
from medfed.common.study import StudyConfig
from medfed.simulations.grids.local import LocalGrid

STUDY = StudyConfig.model_validate(
    {
        "study": {"name": "kept"},
        "task": {"classes": ["a", "b"]},
        "data": {"image_size": 16},
        "model": {"name": "resnet18"},
        "training": {"local_steps": 1, "momentum": 0.0},
        "federation": {"algorithm": "fedbn"},
        "privacy": {"unit": "patient", "sample_rate": 0.5, "expected_batch_size": 4.0},
    }
)


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site.toml whose policy draws noise from the operating system."""
    records = tuple(
        SourceRecord(
            record_id=f"image {n}",
            patient_id=f"patient {n}",
            labels=("a" if n % 2 else "b",),
            source=f"image {n}",
            read_image=lambda n=n: picture(n),
            split="test" if n % 4 == 0 else "train",
        )
        for n in range(12)
    )
    dataset = SourceDataset(
        name="random", licence="", citation="", classes=("a", "b"), records=records, digest="0" * 64
    )
    store = prepare_store(
        dataset, STUDY.task, STUDY.data, parent=tmp_path / "stores", pseudonym_key=b"key"
    )
    table = {
        "name": "one",
        "data": {"stores": [str(store.folder)]},
        "policy": {"max_epsilon": 1000.0},
    }
    (tmp_path / "site.toml").write_text(tomli_w.dumps(table))
    return tmp_path / "site.toml"


def ask(site: Path, round_number: int) -> TrainReply | Refusal:
    model = build_model(STUDY, 2)
    content = messages.pack_model(
        STUDY,
        "run",
        round_number,
        pack_arrays(shared_state(model, STUDY)),
        frozen_sha256=frozen_state_digest(model),
        num_participants=1,
    )()
    with LocalGrid(app, {7: site}) as grid:
        [reply] = grid.send_and_receive([Message(content, 7, messages.TRAIN)], timeout=60)
    answer = unpack_reply(reply.content)
    assert isinstance(answer, TrainReply | Refusal)
    return answer


@pytest.mark.slow
def test_update_and_part_are_of_one_training_whenever_a_site_dies(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(STUDY, 2)
    names = local_names(model, STUDY)
    start = read_state(model, names)
    parts = OwnParts(site.parent / "state", "run", STUDY.digest())

    def after(round_number: int) -> StateDict:
        found = parts.after(round_number, start)
        assert found is not None
        return found

    first = ask(site, 1)
    assert isinstance(first, TrainReply)
    assert set(first.update).isdisjoint(names)
    kept = after(1)
    assert digest(kept) != digest(start)
    again = ask(site, 1)
    assert isinstance(again, TrainReply)
    assert digest(again.update) == digest(first.update)
    assert digest(after(1)) == digest(kept)

    keep = ReplyJournal.keep

    def die(self: ReplyJournal, reply: KeptReply) -> None:
        raise OSError("killed before the update was kept")

    monkeypatch.setattr(ReplyJournal, "keep", die)
    assert isinstance(ask(site, 2), Refusal)
    lost = after(2)
    monkeypatch.setattr(ReplyJournal, "keep", keep)
    second = ask(site, 2)
    assert isinstance(second, TrainReply)
    # Trained anew from what round 1 left, with other noise, under the charge that stands.
    assert digest(after(2)) != digest(lost)
    assert digest(after(1)) == digest(kept)
    assert len(Ledger(site.parent / "state").entries()) == 2
