"""What a wicked site may answer to training, by name, and what the record must say of it."""

import io
import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from wicked import SITES, Crafted, Part, Replies, honest_reply, honest_update, packed, zeros

from medfed.common import messages
from medfed.common.messages import EvaluateReply, TrainReply
from medfed.common.state_dicts import StateDict

WICKED = "scanner-3"
HONEST = SITES[:2]


def stated(asked: Message, **values: Any) -> RecordDict:
    """What the wicked site would send to training if it were honest, but for the given values."""
    reply = honest_reply(WICKED, asked)
    assert isinstance(reply, TrainReply)
    return messages.pack_train_reply(TrainReply(**{**vars(reply), **values}))


def updated(asked: Message, change: Callable[[StateDict], StateDict]) -> RecordDict:
    """The same with another update."""
    weights = messages.unpack_model_request(asked.content).weights
    return stated(asked, update=change(honest_update(WICKED, weights)))


def first_array(asked: Message, **values: Any) -> RecordDict:
    """The same with another array as Flower packs it: that of all arrays."""
    content = stated(asked)
    arrays = dict(content["arrays"])  # type: ignore[arg-type]
    name, old = next(iter(arrays.items()))
    plain = {"dtype": old.dtype, "shape": old.shape, "stype": old.stype, "data": old.data}
    content["arrays"] = ArrayRecord({**arrays, name: Array(**{**plain, **values})})  # type: ignore[arg-type]
    return content


def worded(asked: Message, **values: Any) -> RecordDict:
    """The same with other values in its record."""
    content = stated(asked)
    content["medfed"] = ConfigRecord({**content["medfed"], **values})  # type: ignore[dict-item]
    return content


def filled(value: float) -> Callable[[Message], RecordDict]:
    def fill(asked: Message) -> RecordDict:
        return updated(asked, lambda u: {n: np.full_like(a, value) for n, a in u.items()})

    return fill


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def header(shape: str) -> bytes:
    """Safetensors with one array of any shape, and eight bytes of data."""
    array = f'{{"dtype": "F32", "shape": {shape}, "data_offsets": [0, 8]}}'
    text = f'{{"000000 features.0.weight": {array}}}'.encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


class Bomb:
    """Unpickling it makes a file."""

    marker = ""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return open, (self.marker, "w")


def bombs() -> bytes:
    return npy(np.array([Bomb()] * 4, dtype=object))


def unreadable(kind: str, body: bytes) -> Callable[[Message], Replies]:
    """A content that is no content, announced and hashed as it should be."""
    return lambda asked: [Crafted(Message(stated(asked), reply_to=asked), Part(kind, body))]


def own(content: Callable[[Message], RecordDict]) -> Callable[[Message], Replies]:
    return lambda asked: [Message(content(asked), reply_to=asked)]


NAN = own(filled(float("nan")))
LONG = "x" * 50_000
# By name: what is sent in answer to training, and what the record must say.
ATTACKS: dict[str, tuple[Callable[[Message], Replies], str]] = {
    "NaN": (NAN, "NaN"),
    "infinity": (own(filled(float("-inf"))), "infinite"),
    "too large for a mean": (own(filled(1e38)), "exceeds"),
    "wrong shape": (
        own(lambda m: updated(m, lambda u: {n: a[..., None] for n, a in u.items()})),
        "shape",
    ),
    "wrong type": (
        own(lambda m: updated(m, lambda u: {n: a.astype("i4") for n, a in u.items()})),
        "got int32",
    ),
    "missing name": (own(lambda m: updated(m, lambda u: dict(list(u.items())[1:]))), "missing"),
    "unknown name": (
        own(lambda m: updated(m, lambda u: {**u, "\x1b[2Jx": np.zeros(1, "f4")})),
        "unknown",
    ),
    "30 MB of zeros": (
        own(lambda m: updated(m, lambda u: {**u, "z": np.zeros(30 * 10**6, "u1")})),
        "at most",
    ),
    "pickled objects": (own(lambda m: first_array(m, data=bombs())), "damaged"),
    "a pickle": (
        own(lambda m: first_array(m, data=pickle.dumps(Bomb()), stype="pickle")),
        "Expected arrays as one",
    ),
    "header of terabytes": (own(lambda m: first_array(m, data=header(f"[{2**46}]"))), "damaged"),
    "header of recursion": (
        own(lambda m: first_array(m, data=header("[" * 9000 + "1"))),
        "damaged",
    ),
    "huge example count": (own(lambda m: stated(m, num_examples=2**40)), "examples"),
    "examples below zero": (own(lambda m: stated(m, num_examples=-5)), "examples"),
    "infinite loss": (own(lambda m: stated(m, loss=float("inf"))), "loss"),
    "no ledger head": (own(lambda m: stated(m, ledger_head="\x1b]0;x\x07" * 9)), "hexadecimal"),
    "another's name": (own(lambda m: stated(m, site=HONEST[0])), "another name"),
    "another answer": (
        lambda m: [packed(EvaluateReply(site=WICKED, sums=None), m)],
        "answered training with",
    ),
    "config of wrong types": (
        own(lambda m: worded(m, site=7, num_examples="many", loss=[1.0], noise=b"")),
        "Expected text",
    ),
    "another version": (own(lambda m: worded(m, version=99)), "version"),
    "long kind": (own(lambda m: worded(m, kind=LONG)), "e"),
    "kind with escapes": (own(lambda m: worded(m, kind="\x1b[2J\r\nok")), "kind"),
    "hundreds of thousands of values": (
        own(lambda m: worded(m, **{f"v{n}": n for n in range(4 * 10**5)})),
        "at most",
    ),
    "no record": (own(lambda m: RecordDict()), "medfed record"),
    "arrays of another type": (
        own(lambda m: RecordDict({"medfed": stated(m)["medfed"], "arrays": MetricRecord()})),
        "Expected arrays",
    ),
    "garbage for a content": (unreadable("RecordDict", b"\xff garbage"), "read"),
    "array for a content": (unreadable("Array", json.dumps({"dtype": "x"}).encode()), "read"),
    "garbage for a record": (
        lambda m: [
            Crafted(
                Message(stated(m), reply_to=m),
                Part.holding("RecordDict", {"medfed": Part("ConfigRecord", b"\xff\xff\xff")}),
            )
        ],
        "read",
    ),
    "no message": (
        lambda m: [Crafted(Message(stated(m), reply_to=m), None, root=Part("MetricRecord", b""))],
        "read",
    ),
    "a gigabyte of zeros from one piece": (
        lambda m: [
            Crafted(
                Message(stated(m), reply_to=m),
                Part.holding(
                    "RecordDict", {"arrays": Part.holding("ArrayRecord", {"w": zeros(10**9)})}
                ),
            )
        ],
        "read",
    ),
    "an error": (lambda m: [Message(Error(0, "\x1b[2J" + "x" * 9999), reply_to=m)], "error 0"),
}
