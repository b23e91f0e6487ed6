"""A rule that is a function of all updates as a table: what it sees, and what becomes of it."""

from collections.abc import Mapping

import numpy as np
import pytest

from medfed.common.errors import UpdateError
from medfed.common.state_dicts import StateDict
from medfed.server.aggregation.rows import Floats, RowRule

WEIGHTS: StateDict = {
    "w": np.ones((2, 2), np.float32),
    "b": np.float32(1.0).reshape(()),
    "steps": np.array(10, np.int64),
}
UPDATES: dict[str, StateDict] = {
    # In another order of names, and of memory.
    "a": {"steps": np.array(1), "b": np.float32(0.5).reshape(()), "w": np.eye(2, dtype="f4")},
    "b": {
        "w": np.asfortranarray(np.array([[1, 2], [3, 4]], np.float32)),
        "b": np.float32(-0.5).reshape(()),
        "steps": np.array(2),
    },
}


def weighted(rows_SD: Floats, weights_S: Floats) -> tuple[Floats, Mapping[int, str]]:
    return weights_S @ rows_SD / weights_S.sum(), {1: "noted"}


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_rule_sees_a_row_a_site_by_name_and_makes_the_new_weights(order: str) -> None:
    seen = []

    def combine(rows_SD: Floats, weights_S: Floats) -> tuple[Floats, Mapping[int, str]]:
        seen.append((rows_SD.tolist(), weights_S.tolist()))
        return weighted(rows_SD, weights_S)

    rule = RowRule(WEIGHTS, combine)
    for site in order:
        rule.add(UPDATES[site], {"a": 1, "b": 3}[site], site)
    assert rule.num_updates == 2
    new = rule.apply()
    assert seen == [([[1, 0, 0, 1, 0.5, 1], [1, 2, 3, 4, -0.5, 2]], [1, 3])]
    np.testing.assert_array_equal(new["w"], [[2, 2.5], [3.25, 4.25]])
    assert float(new["b"]) == 0.75
    assert int(new["steps"]) == 12  # 1.75 steps are two
    assert {n: (a.shape, a.dtype) for n, a in new.items()} == {
        n: (a.shape, a.dtype) for n, a in WEIGHTS.items()
    }
    assert rule.notes == {"b": "noted"}


def test_a_rule_refuses_what_it_cannot_combine() -> None:
    rule = RowRule(WEIGHTS, lambda rows_SD, weights_S: (rows_SD[0, 1:], {}))
    with pytest.raises(UpdateError, match="at least one"):
        rule.apply()
    rule.add(UPDATES["a"], 1, "a")
    with pytest.raises(UpdateError, match="one update of a site"):
        rule.add(UPDATES["b"], 1, "a")
    with pytest.raises(ValueError, match=r"expected 6 numbers, got \(5,\)"):
        rule.apply()
