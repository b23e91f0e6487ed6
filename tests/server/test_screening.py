"""What must never reach the mean is named and kept out."""

import numpy as np
import pytest

from medfed.common import messages
from medfed.common.errors import UpdateError
from medfed.common.messages import TrainReply
from medfed.common.metrics import classification_sums, sum_shapes
from medfed.server.screening import (
    screen_examples,
    screen_size,
    screen_statement,
    screen_sums,
    screen_update,
)

WEIGHTS = {"w": np.zeros((2, 3), np.float32), "n": np.array(0, np.int64)}


def update(**changes: np.ndarray) -> dict[str, np.ndarray]:
    return {"w": np.ones((2, 3), np.float32), "n": np.array(1, np.int64), **changes}


def test_screen_update_passes_what_fits() -> None:
    screen_update(update(), WEIGHTS)


@pytest.mark.parametrize(
    ("bad", "fragment"),
    [
        ({"w": np.ones((2, 3), np.float32)}, "missing"),
        (update(extra=np.zeros(1)), "extra"),
        (update(w=np.ones((3, 2), np.float32)), "shape"),
        (update(w=np.ones((2, 3), np.float64)), "float64"),
        (update(w=np.full((2, 3), np.nan, np.float32)), "NaN"),
        (update(w=np.full((2, 3), np.inf, np.float32)), "infinite"),
        (update(n=np.array(1.0)), "float64"),
        (update(w=np.ones((2, 3), ">f4")), ">f4"),
        (update(w=np.ones((0, 3), np.float32)), "shape"),
        (update(w=np.full((2, 3), None)), "object"),
        (update(**{f"layer{i}": np.zeros(1) for i in range(50)}), "and 47 more"),
        (update(**{"x" * 500 + "\n": np.zeros(1)}), "x{80}\\.\\.\\."),
        (update(**{"two\nlines": np.zeros(1)}), r"two\\nlines"),
    ],
)
def test_screen_update_refuses(bad: dict[str, np.ndarray], fragment: str) -> None:
    with pytest.raises(UpdateError, match=fragment):
        screen_update(bad, WEIGHTS)


@pytest.mark.parametrize(
    ("stated", "ok"),
    [(1, True), (2**28, True), (0, False), (-5, False), (2**29, False), (None, False)],
)
def test_screen_examples(stated: int | None, ok: bool) -> None:
    if ok:
        assert screen_examples(stated) == stated
    else:
        with pytest.raises(UpdateError, match="examples"):
            screen_examples(stated)


def test_screen_sums_refuses_wrong_shapes_and_negative_counts() -> None:
    sums = classification_sums(np.array([[0.9, 0.1]]), np.array([0]), np.zeros(1), "multiclass")
    screen_sums(sums, sum_shapes(2, "multiclass"))
    for bad in (
        {**sums, "count": np.array(-1)},
        {**sums, "count": np.array(1.0)},
        {**sums, "count": np.array([1])},
        {**sums, "names": np.array(1)},
        {**sums, "count": np.array(2**40)},
        {**sums, "loss": np.array(2**62)},
        {name: array for name, array in sums.items() if name != "count"},
        {},
    ):
        with pytest.raises(UpdateError, match="sum"):
            screen_sums(bad, sum_shapes(2, "multiclass"))


def test_screen_sums_passes_what_a_site_keeps_to_itself() -> None:
    sums = classification_sums(np.array([[0.9, 0.1]]), np.array([0]), np.zeros(1), "multiclass")
    for kept in (["count"], ["count", "loss"], ["count", "scores", "calibration"]):
        screen_sums({name: sums[name] for name in kept}, sum_shapes(2, "multiclass"))


def reply(arrays: dict[str, np.ndarray], **values: object) -> TrainReply:
    stated = {"num_examples": 1, "loss": None, "epsilon": None, "noise": "none", **values}
    return TrainReply(site="s", update=arrays, **stated)  # type: ignore[arg-type]


def test_screen_size_leaves_room_for_headers_and_no_more() -> None:
    content = messages.pack_train_reply(reply({"w": np.zeros(100_000, np.float32)}))
    weights = {"w": np.zeros(100_000, np.float32)}
    screen_size(messages.num_bytes(content), weights)
    many = {f"layer.{i}.weight": np.zeros(1, np.float32) for i in range(2_000)}
    screen_size(messages.num_bytes(messages.pack_train_reply(reply(many))), many)
    with pytest.raises(UpdateError, match="bytes"):
        screen_size(messages.num_bytes(content), {"w": np.zeros(80_000, np.float32)})


@pytest.mark.parametrize(
    ("values", "fragment"),
    [
        ({"epsilon": -0.1}, "epsilon"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"epsilon": float("inf")}, "epsilon"),
        ({"loss": float("nan")}, "loss"),
        ({"loss": float("-inf")}, "loss"),
        ({"noise": "loud"}, "noise"),
    ],
)
def test_screen_statement_refuses_what_is_no_figure(
    values: dict[str, object], fragment: str
) -> None:
    screen_statement(reply({}))
    screen_statement(reply({}, epsilon=0.0, loss=-1.5, noise="secure"))
    with pytest.raises(UpdateError, match=fragment):
        screen_statement(reply({}, **values))
