"""A site's half of split learning: one step after the other, and nothing out of turn."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from flwr.app import Message, RecordDict

from medfed.client.app import app
from medfed.client.data.prepare import prepare_store
from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.client.data.site_data import load_site_data
from medfed.client.site import load_site
from medfed.client.split import SplitState
from medfed.client.training import Round, step_positions
from medfed.common import messages
from medfed.common.errors import RefusalReason
from medfed.common.ledger import Ledger
from medfed.common.messages import ACTIVATIONS, FEATURES, GRADIENT, Refusal, SplitReply, TrainReply
from medfed.common.models import build_model, frozen_state_digest
from medfed.common.models.stages import cut
from medfed.common.state_dicts import StateDict, read_state
from medfed.common.study import StudyConfig
from medfed.simulations.grids.local import LocalGrid

NODE = 7


def study_of(**federation: Any) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "study": {"name": "split"},
            "task": {"classes": ["a", "b"]},
            "data": {"image_size": 16},
            "training": {"local_steps": 2, "batch_size": 4},
            "federation": {"algorithm": "split", **federation},
            "privacy": {"unit": "none"},
        }
    )


STUDY = study_of()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    records = tuple(
        SourceRecord(
            record_id=f"{n}",
            patient_id=f"p{n}",
            labels=("a" if n % 2 else "b",),
            source=f"{n}.png",
            read_image=lambda: rng.integers(0, 256, (16, 16), dtype=np.uint8),
            split="test" if n % 4 == 0 else "train",
        )
        for n in range(16)
    )
    dataset = SourceDataset(
        name="d", licence="", citation="", classes=("a", "b"), records=records, digest="0" * 64
    )
    folder = tmp_path_factory.mktemp("store")
    return prepare_store(
        dataset, STUDY.task, STUDY.data, parent=folder, pseudonym_key=b"key"
    ).folder


class Asking:
    """One site, and a server that asks it."""

    def __init__(self, grid: LocalGrid, folder: Path, store: Path) -> None:
        self.grid, self.folder, self.store = grid, folder, store
        self.allow()
        model = build_model(STUDY, 2)
        self.frozen = frozen_state_digest(model)
        self.weights = read_state(model, cut(model, STUDY).at_site)

    def allow(self, **policy: Any) -> None:
        table = {
            "name": "one",
            "data": {"stores": [str(self.store)]},
            "policy": {"unit": "none", "allow_activations": True, **policy},
        }
        (self.folder / "site.toml").write_text(tomli_w.dumps(table))

    def ask(self, half: str, content: RecordDict, number: int = 1) -> Any:
        asked = Message(content, NODE, half, group_id=str(number))
        [reply] = self.grid.send_and_receive([asked], timeout=60)
        return messages.unpack_reply(reply.content)

    def __call__(
        self,
        half: str,
        step: int,
        arrays: StateDict,
        *,
        study: StudyConfig = STUDY,
        number: int = 1,
        sites: int = 3,
    ) -> Any:
        contents = messages.pack_split(
            study, "run", number, frozen_sha256=self.frozen, num_participants=sites
        )
        return self.ask(half, contents(step, arrays), number)

    def begin(self, **more: Any) -> Any:
        return self(messages.SPLIT_FRONT, 0, self.weights, **more)

    def features(self, step: int, **more: Any) -> Any:
        return self(messages.SPLIT_BACK, step, {FEATURES: np.ones((4, 128), np.float32)}, **more)

    def gradient(self, step: int, **more: Any) -> Any:
        gradient = np.full((4, 32, 7, 7), 1e-3, np.float32)
        return self(messages.SPLIT_FRONT, step, {GRADIENT: gradient}, **more)


@pytest.fixture
def asking(tmp_path: Path, store: Path) -> Iterator[Asking]:
    with LocalGrid(app, {NODE: tmp_path / "site.toml"}) as grid:
        yield Asking(grid, tmp_path, store)


def assert_refused(reply: Any, reason: RefusalReason) -> None:
    assert reply == Refusal(site="one", reason=reason)


def test_a_round_is_a_gradient_for_every_batch_and_then_an_update(asking: Asking) -> None:
    first = asking.begin()
    assert isinstance(first, SplitReply)
    assert (first.name, first.array.shape) == (ACTIVATIONS, (4, 32, 7, 7))
    for step in (0, 1):
        back = asking.features(step)
        assert isinstance(back, SplitReply)
        assert (back.name, back.array.shape) == (GRADIENT, (4, 128))
        # Of the mean of four losses, each a softmax of two: no entry of a row is beyond its weight.
        assert 0 < np.abs(back.array).max() < 1
        reply = asking.gradient(step + 1)
    assert isinstance(reply, TrainReply)
    assert set(reply.update) == set(asking.weights)
    assert all(np.abs(array).max() > 0 for array in reply.update.values())
    assert (reply.num_examples, reply.epsilon, reply.noise) == (12, None, "none")
    # Nothing is left of it, and it is in the ledger once, as a round without privacy.
    assert not asking.grid._contexts[NODE].state
    [entry] = Ledger(asking.folder / "state").entries()
    assert (entry.spend.unit, entry.spend.steps, entry.hash) == ("none", 2, reply.ledger_head)


def test_activations_are_those_of_the_networks_front(asking: Asking) -> None:
    again = asking.begin().array
    np.testing.assert_array_equal(asking.begin().array, again)
    for array in asking.weights.values():
        array[...] = 0
    np.testing.assert_array_equal(asking.begin().array, np.zeros_like(again))


def test_labels_can_be_worked_out_from_what_leaves(asking: Asking, store: Path) -> None:
    """What documentation warns of: it must not be taken for a protection of labels."""
    asking.begin()
    gradient = asking.features(0).array
    weight, bias = (asking.weights[f"classifier.3.{name}"] for name in ("weight", "bias"))
    answers = np.exp(np.ones((4, 128)) @ weight.T + bias)
    probabilities = answers / answers.sum(axis=1, keepdims=True)
    # d mean loss / d features = (probabilities - one-hot labels) / 4 @ weight
    error = 4 * gradient.astype(np.float64) @ np.linalg.pinv(weight.astype(np.float64))
    found = probabilities - error
    site = load_site(asking.folder / "site.toml")
    data = load_site_data(site, STUDY).train
    this = Round(STUDY, "one", 1, torch.device("cpu"))
    first = next(step_positions(len(data), STUDY.training, this))
    np.testing.assert_allclose(found, np.eye(2)[data.labels[first]], atol=1e-4)


Out = Callable[[Asking], Any]
OUT_OF_TURN: dict[str, tuple[Out, Out]] = {
    "goes on with nothing": (lambda _: None, lambda a: a.gradient(1)),
    "features before a batch": (lambda _: None, lambda a: a.features(0)),
    "gradient before features": (lambda a: a.begin(), lambda a: a.gradient(1)),
    "features twice": (lambda a: (a.begin(), a.features(0)), lambda a: a.features(0)),
    "features of another step": (lambda a: a.begin(), lambda a: a.features(1)),
    "gradient twice": (
        lambda a: (a.begin(), a.features(0), a.gradient(1)),
        lambda a: a.gradient(1),
    ),
    "a step is left out": (lambda a: (a.begin(), a.features(0)), lambda a: a.gradient(2)),
    "another round": (lambda a: a.begin(), lambda a: a.features(0, number=2)),
    "another study": (
        lambda a: a.begin(),
        lambda a: a.features(
            0, study=STUDY.model_copy(update={"study": STUDY.study.model_copy(update={"seed": 9})})
        ),
    ),
    "more steps than there are": (
        lambda a: (a.begin(), a.features(0), a.gradient(1), a.features(1), a.gradient(2)),
        lambda a: a.features(2),
    ),
}


@pytest.mark.parametrize("case", OUT_OF_TURN)
def test_a_message_out_of_turn_is_refused_and_the_round_can_begin_again(
    asking: Asking, case: str
) -> None:
    before, then = OUT_OF_TURN[case]
    before(asking)
    assert_refused(then(asking), RefusalReason.INTERNAL)
    assert isinstance(asking.begin(), SplitReply)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda array: np.where(array > 0, np.float32(np.nan), array),
        lambda array: array.astype(np.float64),
        lambda array: array[:-1],
        lambda array: array[..., :-1],
    ],
    ids=["nan", "type", "images", "shape"],
)
def test_what_the_server_sends_must_be_what_its_part_makes_of_the_batch(
    asking: Asking, spoil: Callable[[Any], Any]
) -> None:
    asking.begin()
    wrong = spoil(np.ones((4, 128), np.float32))
    assert_refused(asking(messages.SPLIT_BACK, 0, {FEATURES: wrong}), RefusalReason.INTERNAL)
    asking.features(0)
    wrong = spoil(np.ones((4, 32, 7, 7), np.float32))
    assert_refused(asking(messages.SPLIT_FRONT, 1, {GRADIENT: wrong}), RefusalReason.INTERNAL)


def test_a_round_begins_from_weights_of_the_sites_parts_alone(asking: Asking) -> None:
    whole = read_state(build_model(STUDY, 2))
    assert_refused(asking(messages.SPLIT_FRONT, 0, whole), RefusalReason.INTERNAL)
    assert_refused(asking.begin(study=study_of(front_stages=2)), RefusalReason.INTERNAL)
    assert not (asking.folder / "state" / "ledger.jsonl").exists()


def test_policy_is_asked_for_every_message(asking: Asking) -> None:
    asking.begin()
    asking.allow(allow_activations=False)
    assert_refused(asking.features(0), RefusalReason.POLICY)
    assert_refused(asking.begin(), RefusalReason.POLICY)
    for policy in ({"min_participants": 4}, {"unit": "patient"}, {"max_steps_per_round": 1}):
        asking.allow(**policy)
        assert_refused(asking.begin(), RefusalReason.POLICY)


def test_studies_of_other_algorithms_get_no_activations(asking: Asking) -> None:
    plain = StudyConfig.model_validate(
        {**STUDY.model_dump(), "federation": {"algorithm": "fedavg"}}
    )
    asking.allow(allow_activations=False)
    assert_refused(asking.begin(study=plain), RefusalReason.STUDY)
    assert_refused(asking.features(0, study=plain), RefusalReason.STUDY)


def test_split_study_is_not_trained_whole(asking: Asking) -> None:
    arrays = messages.pack_arrays(read_state(build_model(STUDY, 2)))
    content = messages.pack_model(STUDY, "run", 1, arrays, frozen_sha256=asking.frozen)()
    assert_refused(asking.ask(messages.TRAIN, content), RefusalReason.STUDY)


def test_state_survives_being_kept() -> None:
    views = np.random.default_rng(3).bit_generator.state
    arrays: StateDict = {
        "back/w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "front/w": np.ones(2, np.float32),
        "loss": np.array(0.3, np.float32),
    }
    state = SplitState(
        about="a", head="h", step=2, after="learn", views=views, num_seen=9, arrays=arrays
    )
    back = SplitState.from_values(**state.to_values())
    assert replace(back, arrays={}) == replace(state, arrays={})
    assert list(back.arrays) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back.arrays[name], array)
        assert back.arrays[name].shape == array.shape
