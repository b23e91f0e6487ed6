"""A message's size in memory is known before it takes any: one piece may be named many times."""

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from medfed.common.errors import MessageError
from medfed.common.messages.unfolding import check_unfolded

MB = 1_000_000


def pieces(*arrays: np.ndarray) -> dict[str, bytes]:
    """A message's content as it travels."""
    record = ArrayRecord({f"w{n}": Array(array) for n, array in enumerate(arrays)})
    content = RecordDict({"arrays": record, "medfed": ConfigRecord({"kind": "update"})})
    return {name: part.deflate() for name, part in get_all_nested_objects(content).items()}


def test_zeros_count_with_all_that_they_become() -> None:
    sent = pieces(np.zeros(200 * MB, np.uint8))
    assert sum(map(len, sent.values())) < 30 * MB  # each piece travels once
    check_unfolded(sent, 240 * MB)
    with pytest.raises(MessageError, match="at most 200000000 bytes"):
        check_unfolded(sent, 200 * MB)


def test_ordinary_arrays_count_twice_at_most() -> None:
    sent = pieces(np.random.default_rng(0).integers(0, 256, 20 * MB, np.uint8))
    check_unfolded(sent, 41 * MB)
    with pytest.raises(MessageError):
        check_unfolded(sent, 39 * MB)


def with_array(table: object) -> dict[str, bytes]:
    body = json.dumps(table).encode()
    head = f"Array {'ab' * 32} {len(body)}".encode()
    return {"cd" * 32: head + b"\0" + body, "ab" * 32: b"ArrayChunk  1\0x"}


@pytest.mark.parametrize(
    "table",
    [{}, [], 7, {"arraychunk_ids": "x"}, {"arraychunk_ids": [1]}, {"arraychunk_ids": [None]}],
)
def test_array_that_is_none_is_refused(table: object) -> None:
    check_unfolded(with_array({"arraychunk_ids": [0]}), 1000)
    with pytest.raises(MessageError, match="cannot be read"):
        check_unfolded(with_array(table), 1000)


@pytest.mark.parametrize("piece", [b"", b"\xff\xff", b"Array", b"Array  x\0", b"Array  2\0{}"])
def test_piece_that_is_none_is_refused(piece: bytes) -> None:
    with pytest.raises(MessageError, match="cannot be read"):
        check_unfolded({"ab" * 32: piece}, 1000)
