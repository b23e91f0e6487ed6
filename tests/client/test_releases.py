"""The release list: whatever leaves is on it, and a power cut costs no earlier line."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from flwr.app import Message, RecordDict

from medfed.client.app import app
from medfed.client.data.prepare import prepare_store
from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.client.releases import (
    RELEASES_FILE,
    Cost,
    Quantity,
    Release,
    list_quantities,
    read_releases,
    total_bytes,
    write_release,
)
from medfed.common import messages
from medfed.common.errors import RefusalReason, ReleaseError
from medfed.common.messages import (
    EvaluateReply,
    JoinReply,
    JoinRequest,
    Refusal,
    Reply,
    SecureReply,
    SplitReply,
    StatisticsReply,
    TrainReply,
    WordsReply,
    WordsRequest,
    pack_arrays,
    unpack_reply,
)
from medfed.common.models import build_model, frozen_state_digest
from medfed.common.state_dicts import read_state
from medfed.common.study import StudyConfig
from medfed.common.tasks import make_task
from medfed.simulations.grids.local import LocalGrid

UPDATE = {"w": np.ones((2, 3), np.float32), "b": np.ones(3, np.float32)}
PAID = Cost("dp", "epsilon 1 of 8")
# Every reply with every field set, how it is packed, and what a field is called on the list.
REPLIES: dict[str, tuple[Reply, Callable[[Any], RecordDict], dict[str, set[str]]]] = {
    "joined": (
        JoinReply(site="one", public_num_patients=40),
        messages.pack_join_reply,
        {},
    ),
    "words": (
        WordsReply(site="one", words=("heart", "size"), epsilon=1.0, ledger_head="0" * 64),
        messages.pack_words_reply,
        {},
    ),
    "statistics": (
        StatisticsReply(
            site="one",
            values={"patients": np.ones(1), "classes": np.ones(3)},
            min_count=5,
            noise="secure",
            epsilon=1.0,
            ledger_head="0" * 64,
        ),
        messages.pack_statistics_reply,
        {"values": {"patients", "classes"}},
    ),
    "update": (
        TrainReply(
            site="one",
            update=UPDATE,
            num_examples=9,
            loss=0.5,
            epsilon=1.0,
            noise="secure",
            ledger_head="0" * 64,
        ),
        messages.pack_train_reply,
        {},
    ),
    "activations": (
        SplitReply(site="one", name="activations", array=np.ones((4, 2, 3), np.float32)),
        messages.pack_split_reply,
        {"name": {"kind"}, "array": {"activations"}},
    ),
    "gradient": (
        SplitReply(site="one", name="gradient", array=np.ones((4, 6), np.float32)),
        messages.pack_split_reply,
        {"name": {"kind"}, "array": {"gradient"}},
    ),
    "sums": (
        EvaluateReply(
            site="one",
            sums={"count": np.array(3), "scores": np.zeros((2, 2, 4), np.int64)},
            global_sums={"count": np.array(3)},
        ),
        messages.pack_evaluate_reply,
        {"sums": {"count", "scores"}, "global_sums": {"global count"}},
    ),
    "secure reply": (
        SecureReply(site="one", payload=b"keys"),
        messages.pack_secure_reply,
        {},
    ),
    "refusal": (Refusal(site="one", reason=RefusalReason.BUDGET), messages.pack_refusal, {}),
}
COSTS = dict.fromkeys(("update", "words", "patients", "classes", "activations", "gradient"), PAID)


def test_every_kind_of_reply_is_tested() -> None:
    assert {type(reply) for reply, _, _ in REPLIES.values()} == set(Reply.__args__)


@pytest.mark.parametrize("kind", REPLIES)
def test_every_field_of_a_reply_is_listed_with_its_bytes(kind: str) -> None:
    reply, pack, names = REPLIES[kind]
    content = pack(reply)
    listed = list_quantities(content, COSTS)
    expected = {"version", "kind"}
    for part in fields(reply):
        expected |= names.get(part.name, {part.name})
    assert {quantity.name for quantity in listed} == expected
    assert sum(quantity.num_bytes for quantity in listed) == messages.num_bytes(content)
    assert all(quantity.cost for quantity in listed)
    # The values themselves stay out of the list.
    assert "heart" not in json.dumps([quantity.__dict__ for quantity in listed])


@pytest.mark.parametrize("kind", REPLIES)
def test_quantity_without_a_stated_cost_stops_its_reply(kind: str) -> None:
    reply, pack, _ = REPLIES[kind]
    content = pack(reply)
    content["medfed"]["age"] = 12
    with pytest.raises(ReleaseError, match="age"):
        list_quantities(content, COSTS)
    content = pack(reply)
    content["metrics"] = content["medfed"]
    with pytest.raises(ReleaseError, match="metrics"):
        list_quantities(content, COSTS)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("update", "update"),
        ("words", "words"),
        ("statistics", "classes"),
        ("activations", "activations"),
        ("gradient", "gradient"),
    ],
)
def test_what_was_paid_for_needs_its_price(kind: str, name: str) -> None:
    reply, pack, _ = REPLIES[kind]
    with pytest.raises(ReleaseError, match=name):
        list_quantities(pack(reply), {})


@pytest.mark.parametrize(
    "sections",
    [
        {"task": {"classes": ["a", "b"]}},
        {"task": {"classes": ["a", "b"], "mode": "multilabel"}},
        {"task": {"type": "segmentation", "classes": ["a"]}, "model": {"name": "unet"}},
        {
            "task": {"type": "report", "report": {"findings": {"e": ["effusion"]}}},
            "model": {"name": "report_lstm"},
            "privacy": {"unit": "none"},
        },
    ],
    ids=["multiclass", "multilabel", "segmentation", "report"],
)
def test_the_sums_of_every_task_have_a_stated_cost(sections: dict[str, Any]) -> None:
    study = StudyConfig.model_validate(
        {"study": {"name": "sums"}, "training": {"local_steps": 1}, **sections}
    )
    shapes = make_task(study).sum_shapes()
    sums = {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}
    content = messages.pack_evaluate_reply(EvaluateReply(site="one", sums=sums))
    listed = {quantity.name: quantity for quantity in list_quantities(content, {})}
    assert set(shapes) <= set(listed)
    assert {listed[name].protection for name in shapes} == {"none"}


def release_of(number: int) -> Release:
    return Release(
        time="2026-11-25T12:00:00.000+00:00",
        run="run",
        study="study",
        round_number=number,
        kind="update",
        quantities=(Quantity("update", 100, *PAID), Quantity("site", 7, "public", "its name")),
        withheld={"loss": "private under DP"},
    )


def test_releases_read_back_as_they_were_written(tmp_path: Path) -> None:
    assert read_releases(tmp_path / "state") == ((), 0)
    releases = tuple(release_of(number) for number in (1, 2, 3))
    for release in releases:
        write_release(tmp_path / "state", release)
    assert read_releases(tmp_path / "state") == (releases, 0)
    other = replace(release_of(4), kind="refusal", quantities=(Quantity("site", 7, "public", "."),))
    assert total_bytes([*releases, other]) == {
        "update": {"public": 21, "dp": 300, "none": 0},
        "refusal": {"public": 7, "dp": 0, "none": 0},
    }


def test_power_cut_at_any_byte_costs_no_other_line(tmp_path: Path) -> None:
    one, two = release_of(1), release_of(2)
    path = tmp_path / RELEASES_FILE
    write_release(tmp_path, one)
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole + whole[:size])
        assert read_releases(tmp_path) == ((one,), int(size > 0))
        write_release(tmp_path, two)
        assert read_releases(tmp_path) == ((one, two), int(size > 0))
    # A line that lacks its end only is whole.
    path.write_bytes(whole + whole[:-1])
    write_release(tmp_path, two)
    assert read_releases(tmp_path) == ((one, one, two), 0)


def test_list_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / RELEASES_FILE).mkdir()
    with pytest.raises(ReleaseError, match="cannot be read"):
        read_releases(tmp_path)


# Through the real ClientApp

PLANTED = ("Zyxwvut", "zyxwvut", "4711")


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve patients; the name of one is his identifier and in his reports."""
    rng = np.random.default_rng(0)
    records = tuple(
        SourceRecord(
            record_id=f"{name} {n}",
            patient_id=name,
            labels=(),
            source=f"/scans/{name}/{n}.png",
            read_image=lambda: rng.integers(0, 256, (16, 16), dtype=np.uint8),
            split="test" if n % 2 else "train",
            report=f"Heart normal. No effusion. {'Seen by Zyxwvut MRN 4711.' * (n < 2)}",
        )
        for n, name in enumerate(["Zyxwvut 4711", "Zyxwvut 4711 jr", *(f"p{i}" for i in range(10))])
    )
    dataset = SourceDataset(
        name="reports", licence="", citation="", classes=(), records=records, digest="0" * 64
    )
    study = study_of()
    folder = tmp_path_factory.mktemp("store")
    return prepare_store(
        dataset, study.task, study.data, parent=folder, pseudonym_key=b"key"
    ).folder


def study_of(**privacy: Any) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "study": {"name": "reports"},
            "task": {"type": "report", "report": {"min_patients": 2, "max_words": 5}},
            "data": {"image_size": 16},
            "model": {"name": "report_lstm"},
            "training": {"local_steps": 1, "batch_size": 4},
            "privacy": {"unit": "none", **privacy},
        }
    )


def test_planted_name_is_in_no_release_line(tmp_path: Path, reports: Path) -> None:
    table = {
        "name": "one",
        "data": {"stores": [str(reports)]},
        "policy": {
            "unit": "none",
            "release_evaluation": True,
            "release_words": "threshold",
            "min_patients_per_word": 2,
            "min_patients_per_count": 2,
        },
    }
    (tmp_path / "site.toml").write_text(tomli_w.dumps(table))
    study, words = study_of(), ("heart", "normal", "effusion", "no", ".")
    arrays = pack_arrays(read_state(build_model(study, make_task(study, words).num_outputs)))
    frozen = frozen_state_digest(build_model(study, make_task(study, words).num_outputs))
    model = messages.pack_model(study, "run", 1, arrays, frozen_sha256=frozen, words=words)()
    asked = [
        (messages.JOIN, messages.pack_join_request(JoinRequest(study=study, run="run"))),
        (messages.WORDS, messages.pack_words_request(WordsRequest(study=study, run="run"))),
        (messages.TRAIN, model),
        (messages.EVALUATE, model),
        # More than the site has: its log names it and its counts.
        (
            messages.JOIN,
            messages.pack_join_request(
                JoinRequest(
                    study=study.model_copy(
                        update={
                            "training": study.training.model_copy(update={"batch_size": 64}),
                        }
                    ),
                    run="run",
                )
            ),
        ),
    ]
    contents = []
    with LocalGrid(app, {7: tmp_path / "site.toml"}) as grid:
        for kind, content in asked:
            [reply] = grid.send_and_receive([Message(content, 7, kind)], timeout=60)
            assert not reply.has_error(), reply.error
            contents.append(reply.content)
    releases, torn = read_releases(tmp_path / "state")
    assert not torn
    kinds = ["joined", "words", "update", "sums", "refusal"]
    assert [release.kind for release in releases] == kinds
    assert unpack_reply(contents[-1]) == Refusal(site="one", reason=RefusalReason.DATA)
    for release, content in zip(releases, contents, strict=True):
        assert release.num_bytes == messages.num_bytes(content)
    text = (tmp_path / "state" / RELEASES_FILE).read_text()
    # The words left, and are not repeated here; the name is in neither.
    named = unpack_reply(contents[1])
    assert isinstance(named, WordsReply)
    assert "heart" in named.words
    assert "heart" not in text
    for planted in PLANTED:
        assert planted not in text
        assert planted not in str(contents)
