"""Messages survive the wire exactly, and anything malformed is refused by name."""

import io
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save

from medfed.common import messages
from medfed.common.errors import MessageError, RefusalReason, StudyError
from medfed.common.messages import (
    EvaluateReply,
    JoinReply,
    JoinRequest,
    Refusal,
    SecureReply,
    SecureRequest,
    StatisticsReply,
    StatisticsRequest,
    TrainReply,
)
from medfed.common.state_dicts import digest
from medfed.common.study_file import load_study

STUDY = load_study(Path(__file__).parents[2] / "studies" / "demo.toml")

ARRAYS = st.dictionaries(
    st.text("abc.0", min_size=1, max_size=8),
    hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.int64]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3),
    ),
    min_size=1,
    max_size=4,
)


def train_reply(update: dict[str, np.ndarray]) -> TrainReply:
    return TrainReply(
        site="s",
        update=update,
        num_examples=None,
        loss=None,
        epsilon=1.5,
        noise="secure",
    )


@given(ARRAYS)
@settings(max_examples=50, deadline=None)
def test_arrays_survive_the_wire_bit_for_bit(arrays: dict[str, np.ndarray]) -> None:
    back = messages.unpack_reply(messages.pack_train_reply(train_reply(arrays)))
    assert isinstance(back, TrainReply)
    assert list(back.update) == list(arrays)
    for name, array in arrays.items():
        assert back.update[name].dtype == array.dtype
        assert back.update[name].shape == array.shape
        assert back.update[name].tobytes() == array.tobytes()


def test_requests_survive_the_wire_without_the_simulation() -> None:
    request = messages.unpack_join_request(
        messages.pack_join_request(JoinRequest(study=STUDY, run="r"))
    )
    assert request.study == STUDY.for_sites()
    weights = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    content = messages.pack_model(
        STUDY, "r", 3, messages.pack_arrays(weights), frozen_sha256="f", words=["lungs", "."]
    )()
    back = messages.unpack_model_request(content)
    assert (back.run, back.round_number) == ("r", 3)
    assert (back.parcels, back.weight, back.total_weight, back.countersignature) == (b"", 1, 1, "")
    np.testing.assert_array_equal(back.weights["w"], weights["w"])


def test_model_request_names_its_very_weights() -> None:
    # What a site's ledger calls the round by: another name would be charged, the same not again.
    for value in (0.0, 1.0, 0.0):
        weights = {"b": np.full(3, value, np.float32), "a": np.ones((2, 2), np.float32)}
        packed = messages.pack_model(
            STUDY, "r", 1, messages.pack_arrays(weights), frozen_sha256="f"
        )
        assert messages.unpack_model_request(packed()).weights_digest() == digest(weights)


def test_large_weights_are_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medfed.common.messages.records._MOST_REMEMBERED", 8)
    for value in (1.0, np.nan):
        weights = {"w": np.full(3, value, np.float32)}
        packed = messages.pack_model(
            STUDY, "r", 1, messages.pack_arrays(weights), frozen_sha256="f"
        )
        request = messages.unpack_model_request(packed())
        assert request.packed_weights == b""
        assert request.weights_digest() == digest(weights)
        with pytest.raises(MessageError) if np.isnan(value) else nullcontext():
            request.check_finite()


def test_weights_that_sites_share_are_theirs_to_read_only() -> None:
    # In one process all sites get the very same bytes, and the very same arrays out of them.
    for value in (1.0, np.nan, np.nan, 2.0):
        weights = {"w": np.full(3, value, np.float32)}
        packed = messages.pack_model(
            STUDY, "r", 1, messages.pack_arrays(weights), frozen_sha256="f"
        )
        request = messages.unpack_model_request(packed())
        np.testing.assert_array_equal(request.weights["w"], weights["w"])
        with pytest.raises(ValueError, match="read-only"):
            request.weights["w"] += 1
        if np.isnan(value):
            with pytest.raises(MessageError, match="w: holds NaN"):
                request.check_finite()
        else:
            request.check_finite()


def test_model_request_carries_what_is_one_sites_own() -> None:
    arrays = messages.pack_arrays({"w": np.zeros(2, np.float32)})
    contents = messages.pack_model(
        STUDY, "r", 1, arrays, frozen_sha256="f", num_participants=3, total_weight=95
    )
    for name in ("one", "two"):
        content = contents(f'{{"site": "{name}"}}', parcels=name.encode(), weight=len(name))
        assert messages.num_bytes(content) > 0  # Flower cannot tell the size of every value
        back = messages.unpack_model_request(content)
        assert (back.parcels, back.countersignature) == (name.encode(), f'{{"site": "{name}"}}')
        assert (back.weight, back.total_weight, back.num_participants) == (3, 95, 3)


def test_correction_is_one_sites_own_and_survives_the_wire() -> None:
    arrays = messages.pack_arrays({"w": np.zeros(2, np.float32)})
    contents = messages.pack_model(STUDY, "r", 1, arrays, frozen_sha256="f")
    without = contents()
    assert messages.unpack_model_request(without).correction is None
    correction = {"w": np.array([0.5, -1.0], np.float32)}
    content = contents(correction=correction)
    back = messages.unpack_model_request(content)
    assert back.correction is not None
    assert back.correction["w"].tobytes() == correction["w"].tobytes()
    assert back.weights["w"].tobytes() == bytes(8)
    assert messages.num_bytes(content) > messages.num_bytes(without) + 8
    content["correction"] = content["medfed"]
    with pytest.raises(MessageError, match="Expected correction in the message"):
        messages.unpack_model_request(content)


@pytest.mark.parametrize("reference", [(), (0.0, 127.5, 256.0)])
def test_reference_of_grey_levels_survives_the_wire(reference: tuple[float, ...]) -> None:
    weights = messages.pack_arrays({"w": np.zeros(2, np.float32)})
    content = messages.pack_model(STUDY, "r", 1, weights, frozen_sha256="f", reference=reference)()
    assert messages.num_bytes(content) > 0
    assert messages.unpack_model_request(content).reference == reference
    for wrong in ([1, 2], ["a"], [float("nan")], [float("inf")], 3.0, [0.0] * 100_001):
        content["medfed"]["reference"] = wrong
        with pytest.raises(MessageError, match="reference"):
            messages.unpack_model_request(content)


def test_statistics_survive_the_wire_and_nothing_else_passes() -> None:
    request = StatisticsRequest(study=STUDY.for_sites(), run="r")
    assert messages.unpack_statistics_request(messages.pack_statistics_request(request)) == request
    with pytest.raises(MessageError, match="kind"):
        messages.unpack_words_request(messages.pack_statistics_request(request))
    values = {"patients": np.array([np.nan]), "classes": np.array([3.5, -2.0])}
    for epsilon, head in ((None, ""), (1.5, "a" * 64)):
        reply = StatisticsReply(
            site="s", values=values, min_count=0, noise="secure", epsilon=epsilon, ledger_head=head
        )
        content = messages.pack_statistics_reply(reply)
        assert messages.num_bytes(content) > 0
        back = messages.unpack_reply(content)
        assert isinstance(back, StatisticsReply)
        assert (back.epsilon, back.ledger_head, back.min_count) == (epsilon, head, 0)
        assert all(np.array_equal(back.values[n], values[n], equal_nan=True) for n in values)
    for name, wrong in (("noise", 3), ("min_count", 1.5), ("epsilon", "x"), ("ledger_head", 4)):
        content = messages.pack_statistics_reply(reply)
        content["medfed"][name] = wrong
        with pytest.raises(MessageError, match=name):
            messages.unpack_reply(content)
    content = messages.pack_statistics_reply(reply)
    del content["arrays"]
    with pytest.raises(MessageError, match="arrays"):
        messages.unpack_reply(content)


@pytest.mark.parametrize("payload", [b"", b"\x00keys"])
def test_secure_request_survives_the_wire(payload: bytes) -> None:
    request = SecureRequest(
        study=STUDY.for_sites(), run="r", round_number=2, num_participants=4, payload=payload
    )
    content = messages.pack_secure_request(request)
    assert messages.num_bytes(content) > 0
    assert messages.unpack_secure_request(content) == request
    content["medfed"]["num_participants"] = 0
    with pytest.raises(MessageError, match="num_participants"):
        messages.unpack_secure_request(content)


@pytest.mark.parametrize(
    "reply",
    [
        JoinReply(site="s", public_num_patients=None),
        JoinReply(site="s", public_num_patients=300),
        Refusal(site="s", reason=RefusalReason.BUDGET),
        EvaluateReply(site="s", sums=None),
        SecureReply(site="s", payload=b"\x00shares"),
    ],
)
def test_replies_survive_the_wire(reply: messages.Reply) -> None:
    packers = {
        JoinReply: messages.pack_join_reply,
        Refusal: messages.pack_refusal,
        EvaluateReply: messages.pack_evaluate_reply,
        SecureReply: messages.pack_secure_reply,
    }
    assert messages.unpack_reply(packers[type(reply)](reply)) == reply


def test_sums_of_two_models_survive_the_wire_apart() -> None:
    sums = [{"count": np.array(n), "scores": np.full((2, 3), n)} for n in (3, 5)]
    reply = EvaluateReply(site="s", sums=sums[0], global_sums=sums[1])
    back = messages.unpack_reply(messages.pack_evaluate_reply(reply))
    assert isinstance(back, EvaluateReply)
    for found, expected in zip((back.sums, back.global_sums), sums, strict=True):
        assert found is not None
        assert {n: a.tolist() for n, a in found.items()} == {
            n: a.tolist() for n, a in expected.items()
        }
    alone = EvaluateReply(site="s", sums=sums[0])
    back = messages.unpack_reply(messages.pack_evaluate_reply(alone))
    assert isinstance(back, EvaluateReply)
    assert back.global_sums is None


def packed(*, dtype: str = "uint8", stype: str = "safetensors", data: bytes) -> RecordDict:
    content = messages.pack_train_reply(train_reply({"w": np.zeros(2, np.float32)}))
    array = Array(dtype=dtype, shape=(len(data),), stype=stype, data=data)
    content["arrays"] = ArrayRecord({"safetensors": array})
    return content


def pickled() -> RecordDict:
    return packed(stype="pickle", data=b"cos\nsystem\n.")


def object_array() -> RecordDict:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    return packed(stype="numpy.ndarray", data=buffer.getvalue())


def with_header(**values: object) -> RecordDict:
    content = messages.pack_refusal(Refusal(site="s", reason=RefusalReason.DATA))
    content["medfed"] = ConfigRecord({**content["medfed"], **values})  # type: ignore[dict-item]
    return content


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"medfed": ConfigRecord({})}),
        with_header(version=99),
        with_header(kind="surprise"),
        with_header(reason="because"),
        with_header(site=3),
        with_header(kind="update", noise="secure"),
        pickled(),
        object_array(),
    ],
)
def test_malformed_reply_is_refused(content: RecordDict) -> None:
    with pytest.raises(MessageError):
        messages.unpack_reply(content)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["w"], "numbered"),
        (["000001 w"], "numbered"),
        (["000000 w", "000001 w"], "each once"),
        (["000000 w", "000002 v"], "numbered"),
    ],
)
def test_arrays_without_an_order_are_refused(names: list[str], says: str) -> None:
    data = save({name: np.zeros(2, np.float32) for name in names})
    with pytest.raises(MessageError, match=says):
        messages.unpack_reply(packed(data=data))


def test_arrays_of_other_types_are_refused() -> None:
    data = save({"000000 w": np.zeros(2, np.int16)})
    with pytest.raises(MessageError, match="got int16"):
        messages.unpack_reply(packed(data=data))


@pytest.mark.parametrize("round_number", [0, -1, "3", 1.5])
def test_model_request_with_impossible_round_is_refused(round_number: object) -> None:
    content = messages.pack_model(
        STUDY, "r", 1, messages.pack_arrays({"w": np.zeros(1)}), frozen_sha256="f"
    )()
    content["medfed"] = ConfigRecord(
        {**content["medfed"], "round_number": round_number}  # type: ignore[dict-item]
    )
    with pytest.raises(MessageError, match="round_number"):
        messages.unpack_model_request(content)


def test_request_with_a_changed_study_is_refused() -> None:
    content = messages.pack_join_request(JoinRequest(study=STUDY, run="r"))
    content["medfed"] = ConfigRecord(
        {**content["medfed"], "study": '{"study": {"name": "x", "code": "import os"}}'}  # type: ignore[dict-item]
    )
    with pytest.raises(StudyError, match="code"):
        messages.unpack_join_request(content)


@pytest.mark.parametrize("shape", ["[70368744177664]", "[1]", "[-1]", "[" * 9000 + "1"])
def test_arrays_whose_header_lies_about_their_size_are_refused(shape: str) -> None:
    header = (
        f'{{"000000 w": {{"dtype": "F32", "shape": {shape}, "data_offsets": [0, 8]}}}}'.encode()
    )
    data = len(header).to_bytes(8, "little") + header + bytes(8)
    with pytest.raises(MessageError, match="damaged"):
        messages.unpack_reply(packed(data=data))


def test_size_of_a_message_is_flowers_own_and_that_of_empty_values_is_nothing():
    content = RecordDict(
        {
            "arrays": ArrayRecord({"weight": Array(np.zeros((3, 4), np.float32))}),
            "medfed": ConfigRecord({"a": True, "bc": 1.5, "d": "text", "e": ["x", "yz"]}),
        }
    )
    assert messages.num_bytes(content) == sum(r.count_bytes() for r in content.values())
    before = messages.num_bytes(content)
    content["medfed"] = ConfigRecord({**content["medfed"], "f": "", "g": b"", "h": []})  # type: ignore[dict-item]
    assert messages.num_bytes(content) == before + 3
